//! The corpora of `fuzz/`, each file through what its target does. Then files that are small and would take much memory
//! or time, which a fuzzer hardly comes upon.

use std::{
    collections::BTreeMap,
    fs, panic,
    path::Path,
    time::{Duration, Instant},
};

use unfreeze::{
    Device,
    checkpoint::{CheckpointFile, FileDtype, FileTensor, Weights, collect},
    learner::ModelFile,
    nn::{Arch, HeadSpec, Model},
};

use crate::{Tensors, refusal, write};

#[path = "../../fuzz/src/exercise.rs"]
mod exercise;

fn device() -> Device {
    Device::cpu(1).expect("a processor")
}

#[test]
fn the_corpora_of_fuzzing_do_no_harm() {
    let list = |folder: &Path| {
        let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    let mut count = 0;
    for corpus in list(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")) {
        let target = corpus.file_name().and_then(|name| name.to_str()).expect("the name of a target");
        for path in list(&corpus) {
            let bytes = fs::read(&path).expect("reads");
            let result = panic::catch_unwind(|| exercise::run(target, &bytes));
            assert!(result.is_ok(), "{} does harm: see above", path.display());
            count += 1;
        }
    }
    assert!(count > 100, "only {count} files");
}

#[test]
fn no_network_is_built_that_the_file_does_not_hold() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("claims.safetensors");
    // Of a matrix without columns any number of rows takes no bytes.
    let endless = FileTensor::new(FileDtype::F32, vec![1 << 60, 0], Vec::new()).expect("fits");
    let mut tensors = collect(&Model::new(Arch::ResNet8, HeadSpec::Linear, 2, 0, &device()).expect("a network"))
        .expect("its tensors");
    tensors.insert("fc.weight".into(), endless);
    write(&path, &tensors);
    let error = Weights::file(&path).expect("opens").with_classifier(&device()).expect_err("no classifier").to_string();
    assert!(error.contains("fc.weight of [1152921504606846976, 0], but resnet8 gives 32"), "{error}");

    // Metadata that ask for a ResNet-152, and its last layer alone.
    let metadata = [
        ("format_version", "1"),
        ("engine_version", "0.1.0"),
        ("arch", "resnet152"),
        ("head", r#"{"kind":"linear"}"#),
        ("classes", r#"["cat"]"#),
        ("size", "224"),
        ("resize", "224"),
        ("mean", "[0,0,0]"),
        ("std", "[1,1,1]"),
    ];
    let metadata: BTreeMap<_, _> = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let last = FileTensor::from_f32(vec![1, 2048], vec![0.0; 2048]).expect("fits");
    let tensors = Tensors::from([("fc.weight".into(), last)]);
    unfreeze::checkpoint::write_safetensors(&path, &tensors, &metadata).expect("writes");
    let error = ModelFile::load(&path, &device()).expect_err("no network").to_string();
    assert!(error.contains("a tensor conv1.weight of [64, 3, 7, 7], but there is none"), "{error}");
}

#[test]
fn tensors_have_no_more_extents_than_any_library_gives_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("extents.safetensors");
    for rank in [64, 65] {
        let tensor = FileTensor::from_f32(vec![1; rank], vec![0.0]).expect("fits");
        write(&path, &Tensors::from([("deep".into(), tensor)]));
        match rank {
            64 => drop(CheckpointFile::open(&path).expect("opens")),
            _ => assert!(refusal(&path).contains("65 extents, deep: refused")),
        }
    }
}

/// A field of Protocol Buffers.
fn field(number: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    let (content, mut out) = (content.as_ref(), vec![number << 3 | 2]);
    let mut length = content.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    [&out[..], content].concat()
}

#[test]
fn a_value_that_is_the_input_of_a_node_many_times_is_looked_at_once() {
    const TIMES: usize = 60_000;
    let padding = field(5, [field(1, "pads"), field(8, [1; 4])].concat());
    let weight = [&b"\x08\x08\x08\x03\x08\x03\x08\x03\x10\x02"[..], &field(8, "w"), &field(9, [0; 8 * 27])].concat();
    let convolution = [field(1, "x"), field(1, "w"), field(1, ""), field(1, "x").repeat(TIMES), field(2, "y"), padding];
    let nodes =
        [[field(4, "Conv"), convolution.concat()].concat(), [field(4, "Other"), field(1, "y").repeat(TIMES)].concat()];
    // As many convolutions as a ResNet-8 has.
    let others = field(1, field(4, "Conv")).repeat(6);
    let graph = [field(1, &nodes[0]), field(1, &nodes[1]), others, field(5, weight)].concat();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inputs.onnx");
    fs::write(&path, [&[0x08, 8][..], &field(7, graph)].concat()).expect("writes");
    let start = Instant::now();
    let file = CheckpointFile::open(&path).expect("opens");
    assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["w"]);
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}
