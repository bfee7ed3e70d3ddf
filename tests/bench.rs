//! The benchmark as a user runs it, on the processor and with other sides of the comparison that behave and misbehave.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{
    emulator::{Settings, emulated},
    learning::cats_and_dogs,
    program::{Ran, unfreeze},
};
use serde_json::Value;
use unfreeze::{Device, Tensor, autograd::Tape, ops::elementwise::relu};

const SMALL: &str =
    "--arch resnet20 --batch-size 2 --rounds 2 --seconds 0.01 --warm-up 0 --roof-tflops 1 --roof-gbs 10";

fn number(object: &Value, key: &str) -> f64 {
    object[key].as_f64().unwrap_or_else(|| panic!("{key} of {object}"))
}

#[test]
fn every_way_of_training_a_head_gets_its_time() {
    let data = cats_and_dogs();
    let bench =
        "bench views {} --arch resnet20 --weights random --size 16 --batch-size 4 --seeds 2 --epochs 3 --seconds 60";
    let found = unfreeze(&format!("{bench} --json"), &[data.path()]).succeeded().objects();
    assert_eq!(found.len(), 10);
    assert!(found.iter().all(|way| way["epochs"] == 3 && number(way, "accuracy") <= 1.0), "{found:?}");
    let of = |way: &str| -> Vec<f64> {
        found.iter().filter(|found| found["way"] == way).map(|found| number(found, "accuracy")).collect()
    };
    // One cached view is the clean one: the same training as without a cache, but faster.
    assert_eq!(of("1 cached view"), of("no cache, no augmentation"));
    let short = unfreeze(&bench.replace("seconds 60", "seconds 1e-9").replace("seeds 2", "seeds 1"), &[data.path()]);
    assert_eq!(short.succeeded().out.lines().count(), 7);
    assert!(
        unfreeze("bench views {} --weights random --arch resnet20 --seconds 0", &[data.path()])
            .err
            .contains("--seconds")
    );
}

#[test]
fn what_freezing_saves_is_measured_beside_what_is_predicted() {
    let bench = unfreeze("bench freeze-out --epochs 1 --freeze-out linear:0.1 --device cpu --json", &[]).succeeded();
    let bench = bench.objects().remove(0);
    let saved = |key: &str| number(&bench["saved"], key);
    assert!((0.0..1.0).contains(&number(&bench["all"], "accuracy")) && number(&bench["frozen"], "seconds") > 0.0);
    // Equal costs would save 1 − (1 + 0.55) / 2 by the formula; kernels' backward passes cost twice the forward ones.
    assert!((0.15..0.3).contains(&saved("formula")) && (0.2..0.4).contains(&saved("kernels")), "{bench}");
    let measured = 1.0 - number(&bench["frozen"], "seconds") / number(&bench["all"], "seconds");
    assert!((saved("measured") - measured).abs() < 1e-9, "{bench}");
}

#[test]
fn measurements_stand_in_their_order_and_below_their_roof() {
    for what in [
        "forward --size 8",
        "train --size 8",
        "train --size 8 --trainable layer3",
        "train --trainable head",
        "cache",
        "cache --head fastai --classes 5",
    ] {
        let bench = unfreeze(&format!("bench {what} {SMALL} --json"), &[]).succeeded().objects().remove(0);
        let rate = number(&bench, "images_per_second");
        assert!(0.0 < number(&bench, "low") && number(&bench, "low") <= rate && rate <= number(&bench, "high"));
        assert!((number(&bench, "share") * number(&bench, "floor") / rate - 1.0).abs() < 1e-9, "{bench}");
        assert_eq!((&bench["batch_size"], number(&bench, "rounds")), (&2.into(), 2.0));
        // The parameters at least.
        assert!(
            number(&bench, "peak_memory") > 4.0 * 64.0 * f64::min(1000.0, 2.0 * number(&bench, "classes")),
            "{bench}"
        );
        // What the system counts holds the tensors too.
        let resident = bench["peak_resident"].as_f64();
        assert!(resident.is_none_or(|resident| resident > number(&bench, "peak_memory")), "{bench}");
        let table = unfreeze(&format!("bench {what} {SMALL}"), &[]).succeeded().out;
        assert!(table.contains("images/s") && table.contains("roof: 1.000 TFLOP/s, 10.0 GB/s"), "{table}");
    }
}

#[test]
fn stages_of_the_input_pipeline_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    let flags = "--size 32 --threads 2 --rounds 2 --seconds 0.02 --warm-up 0 --json";
    let drawn = unfreeze(&format!("bench data --images 3 --draw {{}} {flags}"), &[&pictures]).succeeded().objects();
    let names = ["decode", "resize, crop", "resize, augment, crop", "normalise"].into_iter();
    let stages = names
        .map(|name| (name, 1.0))
        .chain([1.0, 2.0].into_iter().flat_map(|threads| [("evaluation", threads), ("training", threads)]));
    let found = drawn.iter().map(|row| (row["stage"].as_str().unwrap(), number(row, "threads")));
    assert!(found.eq(stages), "{drawn:?}");
    assert!(drawn.iter().all(|row| 0.0 < number(row, "low") && number(row, "low") <= number(row, "high")), "{drawn:?}");
    let (pixels, bytes) = (number(&drawn[0], "pixels"), number(&drawn[0], "bytes"));
    // About as many bytes to a pixel as photographs have.
    assert!(pixels == 500.0 * 375.0 && (0.15..0.25).contains(&(bytes / pixels)), "{bytes}");

    let own = unfreeze(&format!("bench data {{}} --images 2 {flags}"), &[&pictures]).succeeded().objects();
    assert_eq!(number(&own[0], "images"), 2.0);
    fs::write(pictures.join("0001.jpg"), b"\xFF\xD8\xFF nothing").unwrap();
    let damaged = unfreeze(&format!("bench data {{}} {flags}"), &[&pictures]);
    assert!(damaged.code == 1 && damaged.err.contains("0001.jpg"), "{}", damaged.err);
}

#[test]
fn one_setting_changes_at_a_time() {
    let flags = "--arch resnet20 --threads 1,2 --batch-size 2 --size 8,12 --rounds 1 --seconds 0 --warm-up 0 \
                 --roof-tflops 1 --roof-gbs 10";
    let lines = unfreeze(&format!("bench scaling {flags} --json"), &[]).succeeded().objects();
    let point = |line: &Value| ["threads", "batch_size", "size"].map(|key| number(line, key));
    let expected = [[1.0, 16.0, 32.0], [2.0, 16.0, 32.0], [2.0, 2.0, 32.0], [2.0, 16.0, 8.0], [2.0, 16.0, 12.0]];
    assert_eq!(lines.iter().map(point).collect::<Vec<_>>(), expected);
    assert!(lines.iter().all(|line| number(line, "share") > 0.0 && number(line, "images_per_second") > 0.0));
    // A larger image takes more memory.
    assert!(number(&lines[4], "peak_memory") > number(&lines[3], "peak_memory"));
    let table = unfreeze(&format!("bench scaling {flags}"), &[]).succeeded().out;
    assert_eq!(table.lines().count(), 2 + expected.len());
}

#[test]
fn a_step_is_explained() {
    let explain = "bench train --arch resnet20 --size 8 --batch-size 4 --explain";
    let bench = unfreeze(&format!("{explain} --json"), &[]).succeeded().objects().remove(0);
    let families = bench["model"].as_array().unwrap();
    let kernels: f64 = families.iter().map(|family| number(family, "kernels")).sum();
    assert_eq!(kernels, number(&bench, "model_kernels"));
    // This engine keeps what the model says and, as yet, more.
    let share = number(&bench, "saved") / number(&bench, "model_saved");
    assert!((0.9..3.0).contains(&share), "{share}");
    let text = unfreeze(explain, &[]).succeeded().out;
    assert!(text.contains("weight gradient") && text.contains("activations kept"), "{text}");
}

#[test]
fn every_operation_of_a_network_is_measured() {
    let ops = unfreeze(&format!("bench ops --size 16 {SMALL} --json"), &[]).succeeded().objects();
    let count = |name: &str| -> f64 { ops.iter().filter(|op| op["op"] == name).map(|op| number(op, "count")).sum() };
    assert_eq!(
        [count("conv forward"), count("conv input gradient"), count("conv weight gradient")],
        [19.0, 18.0, 19.0]
    );
    assert_eq!([count("batchnorm apply"), count("average pool + grad"), count("sgd")], [19.0, 1.0, 1.0]);
    assert!(ops.iter().all(|op| number(op, "seconds") > 0.0 && number(op, "bytes") > 0.0 && number(op, "share") > 0.0));
    let refused = unfreeze(&format!("bench ops --dtype bf16 --device cpu {SMALL}"), &[]);
    assert!(refused.code == 2 && refused.err.contains("bf16 is for newer GPUs"), "{}", refused.err);
}

/// The launches that a device counts are those that its driver saw.
#[test]
fn launches_are_counted() {
    let Some((device, driver)) = emulated(Settings::default()) else { return };
    let Device::Cuda(cuda) = &device else { unreachable!("an emulated GPU") };
    assert!(cuda.launches().is_empty());
    for _ in 0..3 {
        let mut tape = Tape::new();
        let x = tape.leaf("x", Tensor::full([70], -1.0, &device).unwrap());
        relu(&mut tape, &x).unwrap();
    }
    let launches = cuda.launches();
    assert!(launches.keys().copied().eq(driver.counters().keys().map(String::as_str)), "{launches:?}");
    assert!(!launches.is_empty() && launches.values().all(|count| *count == 3), "{launches:?}");
}

/// A folder with another side that is a shell script: `cases` of a `case $line in`, before those that do what they
/// ought. Its logits are this engine's; its variants are slow and fast, a step of the one taking ten times that of the
/// other.
fn other_side(cases: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("other.sh");
    let program = env!("CARGO_BIN_EXE_unfreeze");
    let text = format!(
        r#"
        seconds=1
        while read -r line; do
            case $line in
                {cases}
                *'"hello"'*) echo '{{"device":"none","software":"a script","variants":["slow","fast","broken"]}}' ;;
                *'"logits"'*) printf '%s\n' "$line" | "{program}" bench serve --device cpu --threads 1 ;;
                *'"slow"'*) seconds=0.01; echo '{{"ready":true}}' ;;
                *'"fast"'*) seconds=0.001; echo '{{"ready":true}}' ;;
                *'"prepare"'*) seconds=0; echo '{{"error":"CUDA out of memory"}}' ;;
                *'"block"'*) echo "{{\"steps\":1,\"seconds\":$seconds}}" ;;
                *'"finish"'*) echo '{{"peak_memory":12345678,"peak_resident":3000000000}}' ;;
            esac
        done
        "#
    );
    fs::write(&script, text).unwrap();
    (folder, script)
}

/// Compares on the smallest network.
fn compare(script: &Path, out: &Path, flags: &str) -> Ran {
    let flags = format!(
        "bench compare --python sh --script {{}} --out {{}} --device cpu --threads 1 --arch resnet20 --size 8 --batch-size 2 \
         --dtype f32 --seconds 0.01 --warm-up 0 --roof-tflops 1 --roof-gbs 10 {flags}"
    );
    unfreeze(&flags, &[script, out])
}

fn records(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_comparison_takes_the_fastest_variant_and_goes_on_where_it_was() {
    let (folder, script) = other_side("");
    let out = folder.path().join("log.jsonl");
    let first = compare(&script, &out, "--work forward,full --blocks 3 --variants all").succeeded();
    let found = records(&out);
    assert_eq!(found.len(), 2);
    for record in &found {
        let [ours, theirs] = ["ours", "theirs"].map(|side| &record[side]["measured"]);
        assert_eq!((&theirs["variant"], number(theirs, "peak_memory")), (&"fast".into(), 12345678.0));
        // Two images in a thousandth of a second.
        assert_eq!(theirs["images_per_second"], serde_json::json!([2000.0, 2000.0, 2000.0]));
        assert_eq!(theirs["tried"], serde_json::json!([["slow", 200.0], ["fast", 2000.0]]));
        assert_eq!(ours["images_per_second"].as_array().map(Vec::len), Some(3));
        assert!(number(ours, "peak_memory") > 0.0 && number(record, "floor") > 0.0);
    }
    assert!(first.err.contains("broken: CUDA out of memory"), "{}", first.err);
    assert!(first.out.contains("| forward | resnet20 | 2 | f32 | ") && first.out.contains("| 2000.0 | fast | "));
    assert!(first.out.contains("| 12.3 MB | ") && first.out.contains("| 3.00 GB |"), "{}", first.out);
    assert!(first.out.contains("2 of 2 cells measured; 2 compared"), "{}", first.out);

    let again = compare(&script, &out, "--work forward,full,head --blocks 3 --minutes 0").succeeded();
    assert!(again.out.contains("| head | resnet20 | 2 | f32 | not measured") && again.err.is_empty(), "{}", again.err);
    let more = compare(&script, &out, "--work forward,full,head --quick").succeeded();
    assert!(more.err.contains("1 of 1: head"), "{}", more.err);
    assert_eq!(records(&out)[..2], found);
    assert_eq!(records(&out)[2]["cell"]["work"], "head");
}

#[test]
fn a_side_that_fails_is_written_down_and_the_next_cell_measured() {
    // Ends, falls silent, and answers nonsense.
    let (folder, script) = other_side(
        r#"*'"work":"full"'*'"prepare"'*) exit 3 ;;
           *'"work":"head"'*'"prepare"'*) exec sleep 60 ;;
           *'"work":"layer3"'*'"prepare"'*) echo what ;;"#,
    );
    let out = folder.path().join("log.jsonl");
    let ran = compare(&script, &out, "--work forward,full,head,layer3,cached --blocks 1 --patience 3").succeeded();
    let found = records(&out);
    let failed = |index: usize| found[index]["theirs"]["failed"]["message"].as_str().unwrap().to_owned();
    assert!(failed(1).contains("the other side ended (exit status: 3)"), "{}", failed(1));
    assert!(failed(2).contains("no answer within 3 s"), "{}", failed(2));
    assert!(failed(3).contains("the other side answered: what"), "{}", failed(3));
    assert!(found[1..4].iter().all(|record| record["ours"]["measured"].is_object()));
    for index in [0, 4] {
        assert!(found[index]["theirs"]["measured"].is_object(), "{}", found[index]);
    }
    assert!(ran.out.contains("| failed: no answer within 3 s | "), "{}", ran.out);
    // Once more, where that is asked for.
    let retry = compare(&script, &out, "--work forward,full,cached --blocks 1 --patience 3 --retry").succeeded();
    assert!(retry.err.contains("1 of 1: full"), "{}", retry.err);
}

#[test]
fn nothing_is_timed_where_results_differ() {
    let logits = vec!["0.5"; 4000].join(",");
    let (folder, script) = other_side(&format!(r#"*'"logits"'*) echo '{{"logits":[{logits}]}}' ;;"#));
    let out = folder.path().join("log.jsonl");
    let ran = compare(&script, &out, "--work forward").succeeded();
    assert!(ran.out.contains("logits differ by"), "{}", ran.out);
    let record = records(&out).remove(0);
    assert!(record["mismatch"].is_string() && record["ours"].is_null() && record["theirs"].is_null());

    let missing = compare(Path::new("no/such/script"), &folder.path().join("other.jsonl"), "--work forward");
    assert!(missing.code == 1 && missing.err.contains("the other side ended"), "{}", missing.err);
    let nowhere = compare(&script, Path::new("no/such/folder/log.jsonl"), "--work forward");
    assert!(nowhere.code == 1 && nowhere.err.contains("no/such/folder"), "{}", nowhere.err);
    let beyond = compare(&script, &out, "--work layer4");
    assert!(beyond.code == 2 && beyond.err.contains("resnet20 has no layer4"), "{}", beyond.err);
}

/// What the serving process answers to what it cannot do.
#[test]
fn a_serving_process_outlives_bad_requests() {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };
    let cell = r#""cell":{"arch":"resnet20","size":8,"batch_size":2,"work":"layer4","dtype":"f32"}"#;
    let requests = [
        "nonsense".to_string(),
        r#"{"request":"block","seconds":1}"#.into(),
        format!(r#"{{"request":"prepare",{cell},"variant":"other","warm_up":0}}"#),
        format!(r#"{{"request":"prepare",{cell},"variant":"default","warm_up":0}}"#),
        format!(r#"{{"request":"logits",{cell},"weights":"missing.safetensors","images":1}}"#),
        format!(r#"{{"request":"prepare",{},"variant":"default","warm_up":0}}"#, cell.replace("layer4", "full")),
        r#"{"request":"block","seconds":0}"#.into(),
        r#"{"request":"finish"}"#.into(),
        r#"{"request":"hello"}"#.into(),
    ];
    let mut serve = Command::new(env!("CARGO_BIN_EXE_unfreeze"));
    serve.args(["bench", "serve", "--device", "cpu", "--threads", "1"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut serve = serve.spawn().unwrap();
    serve.stdin.take().unwrap().write_all((requests.join("\n") + "\n").as_bytes()).unwrap();
    let ran = common::program::ran(serve.wait_with_output().unwrap()).succeeded();
    let answers = ran.objects();
    let errors = ["no request", "no cell is ready", "'other' is unknown", "no layer4", "missing.safetensors"];
    for (answer, error) in answers.iter().zip(errors) {
        assert!(answer["error"].as_str().unwrap().contains(error), "{answer}");
    }
    assert_eq!((&answers[5]["ready"], &answers[6]["steps"]), (&true.into(), &1.into()));
    assert!(
        number(&answers[7], "peak_memory") > 0.0 && answers[8]["software"].as_str().unwrap().starts_with("unfreeze")
    );
}
