//! Runs that are interrupted, by a token, a signal or a kill, end as if they had not been.

mod common;

use std::{
    fs,
    io::BufRead,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use common::{
    learning::{bits, cats_and_dogs, data, learner, timeless},
    program::{command, names, ran, unfreeze},
};
use tempfile::TempDir;
use unfreeze::{
    Device, Error,
    checkpoint::{self, FileTensor},
    learner::{Classifier, EpochRecord, Event, Fit, Flow, Learner, Recipe, RunFolder},
    nn::{Arch, HeadSpec, Model},
    optim::{OptimizerKind, PerGroup},
    random::Random,
};

/// A program of three fits: the head on the cache, everything in cycles, everything with another optimizer.
fn program(learner: &mut Learner) -> unfreeze::Result<()> {
    learner.freeze();
    learner.precompute(true);
    learner.fit(Fit::epochs(3).lr(1e-2).phase("head"))?;
    learner.precompute(false);
    learner.unfreeze();
    learner.fit(Fit::cycles(2).cycle_mult(2).lr(PerGroup::Range(1e-4, 1e-2)).phase("all"))?;
    learner.freeze_to(1)?;
    learner.fit(Fit::epochs(2).lr(1e-3).optimizer(OptimizerKind::adamw()).phase("adam"))?;
    Ok(())
}

#[test]
fn a_program_cancelled_at_any_step_goes_on_bit_for_bit() {
    let images = cats_and_dogs();
    let mut whole = learner(data(&images));
    program(&mut whole).unwrap();
    let steps = whole.steps();
    assert_eq!(steps, 8 * 3);

    for cancelled_at in 0..steps {
        let folder = tempfile::tempdir().unwrap();
        let first = learner(data(&images)).checkpoints(folder.path());
        let token = first.cancel_token();
        let mut seen = 0;
        let mut first = first.callback(move |event: &Event| {
            if matches!(event, Event::Step { .. }) {
                if seen == cancelled_at {
                    token.cancel();
                }
                seen += 1;
            }
            Flow::Continue
        });
        let outcome = program(&mut first);
        let mut second = learner(data(&images)).checkpoints(folder.path());
        if Learner::can_resume(folder.path()) {
            second.resume(folder.path()).unwrap();
            assert_eq!(second.history().len() as u64, (cancelled_at + u64::from(outcome.is_ok())) / 3);
        } else {
            assert!(cancelled_at < 3, "nothing was finished");
        }
        program(&mut second).unwrap();
        assert!(matches!(outcome, Err(Error::Cancelled)) || cancelled_at == steps - 1);
        assert_eq!(timeless(second.history()), timeless(whole.history()), "step {cancelled_at}");
        assert!(bits(second.model()) == bits(whole.model()), "step {cancelled_at}");
        assert_eq!(second.steps(), steps);
    }
}

#[test]
fn a_state_is_refused_where_it_does_not_fit() {
    let (images, folder) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let mut begun = learner(data(&images)).checkpoints(folder.path());
    begun.fit(Fit::epochs(2).phase("head")).unwrap();
    let resumed = || {
        let mut learner = learner(data(&images));
        learner.resume(folder.path()).map(|()| learner)
    };
    let records = resumed().unwrap().fit(Fit::epochs(2).phase("head")).unwrap().to_vec();
    assert_eq!(records, begun.history());
    for other in [Fit::epochs(3).phase("head"), Fit::epochs(2).phase("body")] {
        let message = resumed().unwrap().fit(other).unwrap_err().to_string();
        assert!(message.starts_with("resume") && message.contains("was 'head' of 2"), "{message}");
    }
    let state = folder.path().join("state.safetensors");
    let whole = fs::read(&state).unwrap();
    fs::write(&state, &whole[..whole.len() - 9]).unwrap();
    assert!(matches!(resumed(), Err(Error::Checkpoint { .. })));
    fs::write(&state, whole).unwrap();
    fs::remove_file(images.path().join("train/cat/1.png")).unwrap();
    assert!(matches!(resumed(), Err(Error::Data { .. })), "other images");
}

#[test]
fn a_run_folder_belongs_to_one_run() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let run = out.path().join("run");
    let folder = RunFolder::create(&run, &"settings = 1".parse::<toml::Table>().unwrap()).unwrap();
    let other = RunFolder::resume::<toml::Table>(&run).unwrap_err().to_string();
    assert!(other.contains("another process"), "{other}");
    assert!(RunFolder::create(&run, &toml::Table::new()).unwrap_err().to_string().contains("another process"));
    let mut learner = folder.attach(learner(data(&images))).unwrap();
    let recipe = Recipe { epochs: 1, cycles: 1, ..Recipe::default() };
    learner.run(&recipe, |learner| folder.save(learner)).unwrap();
    drop(folder);
    let (_folder, settings) = RunFolder::resume::<toml::Table>(&run).unwrap();
    assert_eq!(settings["settings"].as_integer(), Some(1));
    assert!(RunFolder::create(&run, &toml::Table::new()).unwrap_err().to_string().contains("--resume"));
}

const TRAIN: &str = "train {} --out {} --weights random --arch resnet20 --size 16 --hidden 8 --batch-size 4 --epochs 3 \
                     --cycles 2 --threads 1 --json";

/// What two runs must have in common.
fn outcome(run: &Path) -> (Vec<EpochRecord>, [Vec<u8>; 3]) {
    let history = fs::read_to_string(run.join("history.jsonl")).unwrap();
    let history: Vec<EpochRecord> = history.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let files = ["model.safetensors", "steps.jsonl", "predictions.jsonl"];
    (timeless(&history), files.map(|file| fs::read(run.join(file)).unwrap()))
}

fn uninterrupted(images: &TempDir, out: &TempDir) -> std::path::PathBuf {
    let run = out.path().join("whole");
    unfreeze(TRAIN, &[images.path(), &run]).succeeded();
    run
}

#[test]
fn a_run_killed_at_fifty_random_moments_ends_bit_identical() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let start = Instant::now();
    let whole = outcome(&uninterrupted(&images, &out));
    let longest = start.elapsed().as_micros() as f32;
    let mut random = Random::stream(7, "moments", &[]);
    let (mut kills, mut runs) = (0, 0);
    while kills < 40 {
        let run = out.path().join(format!("killed {runs}"));
        runs += 1;
        loop {
            // What a run that finished no epoch has left may be begun again, too.
            let resumed =
                run.join("config.toml").exists() && (Learner::can_resume(run.join("checkpoint")) || random.chance(0.5));
            let mut child = match resumed {
                true => command("train --resume --out {} --json", &[&run]),
                false => command(TRAIN, &[images.path(), &run]),
            };
            let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            thread::sleep(Duration::from_micros(random.uniform(1e3, longest) as u64));
            // SIGKILL; a child that has ended already is none to kill.
            let finished = child.try_wait().unwrap();
            child.kill().unwrap();
            let ended = ran(child.wait_with_output().unwrap());
            match finished {
                Some(status) => break assert!(status.success(), "{}", ended.err),
                None => kills += 1,
            }
        }
        assert!(outcome(&run) == whole, "run {runs} after {kills} kills");
        let left: Vec<String> = names(&run).into_iter().chain(names(&run.join("checkpoint"))).collect();
        assert!(!left.iter().any(|name| name.starts_with(".unfreeze-")), "{left:?}");
        assert_eq!(names(&run.join("checkpoint")).len(), 2, "{left:?}");
    }
    assert!(runs > 1);
}

#[cfg(unix)]
#[test]
fn signals_end_a_run_in_good_order() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let whole = outcome(&uninterrupted(&images, &out));
    for signal in ["INT", "TERM"] {
        let run = out.path().join(signal);
        let mut child =
            command(TRAIN, &[images.path(), &run]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The third epoch's line has come, so the next one has begun.
        let lines = std::io::BufReader::new(child.stdout.take().unwrap());
        let third = lines.lines().nth(2).unwrap().unwrap();
        assert!(third.contains("head"), "{third}");
        let sent = std::process::Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let ended = ran(child.wait_with_output().unwrap());
        assert_eq!(ended.code, 1, "{}", ended.err);
        assert!(ended.err.contains("--resume") && ended.err.contains("cancelled"), "{}", ended.err);
        let model = run.join("model.safetensors");
        assert!(Classifier::load(&model, Device::cpu(1).unwrap()).is_ok());
        unfreeze("predict {} {}", &[&run, &images.path().join("valid")]).succeeded();
        unfreeze("train --resume --out {}", &[&run]).succeeded();
        assert!(outcome(&run) == whole, "{signal}");
    }
}

#[cfg(unix)]
#[test]
fn signals_end_a_conversion_that_leaves_nothing_behind() {
    // Halfway through the names comes a classifier that takes a good while: a signal that finds the copy begun comes
    // before its end.
    const CLASSES: usize = 1_000_000;
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = Model::new(Arch::ResNet8, HeadSpec::Linear, 1, 0, &Device::cpu(1).unwrap()).unwrap();
    let mut tensors = checkpoint::collect(&model).unwrap();
    for (name, shape) in [("fc.weight", vec![CLASSES, Arch::ResNet8.features()]), ("fc.bias", vec![CLASSES])] {
        let zeros = vec![0.0; shape.iter().product()];
        tensors.insert(name.into(), FileTensor::from_f32(shape, zeros).unwrap());
    }
    let original = source.path().join("large.safetensors");
    checkpoint::write_safetensors(&original, &tensors, &Default::default()).unwrap();
    drop(tensors);
    for signal in ["INT", "TERM"] {
        let mut copying = command("convert {} {} --dtype f16", &[&original, &out.path().join("copy.safetensors")]);
        let mut child = copying.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while names(out.path()).is_empty() && child.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        let begun = names(out.path());
        let sent = std::process::Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        let ended = ran(child.wait_with_output().unwrap());
        assert!(sent.success() && begun[0].starts_with(".unfreeze-"), "{begun:?} {}", ended.err);
        assert_eq!(ended.code, 1, "{}", ended.err);
        assert!(ended.err.contains("interrupted") && ended.err.contains("cancelled"), "{}", ended.err);
        assert!(names(out.path()).is_empty(), "{:?}", names(out.path()));
    }
}

#[test]
fn resuming_what_is_finished_changes_nothing_and_other_settings_are_refused() {
    let (images, out) = (cats_and_dogs(), tempfile::tempdir().unwrap());
    let run = uninterrupted(&images, &out);
    let before = outcome(&run);
    unfreeze("train --resume --out {}", &[&run]).succeeded();
    unfreeze(&format!("{TRAIN} --resume"), &[images.path(), &run]).succeeded();
    assert!(outcome(&run) == before);
    let refused = unfreeze(&format!("{TRAIN} --resume --wd 0.5"), &[images.path(), &run]);
    assert!(refused.code == 2 && refused.err.contains("--resume") && refused.err.contains("wd"), "{}", refused.err);
    let nothing = unfreeze("train --resume --out {}", &[&out.path().join("nothing")]);
    assert!(nothing.code == 1 && nothing.err.contains("holds no run"), "{}", nothing.err);
}
