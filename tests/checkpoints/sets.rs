//! Files with several sets of weights: which is taken is said, and `--key` takes another.

use std::fs;

use unfreeze::{
    Device,
    checkpoint::{CheckpointFile, Weights, collect},
    nn::{Arch, HeadSpec, Model},
};

use crate::{
    Tensors,
    common::{learning::cats_and_dogs, program::unfreeze},
    containers::stored,
    read,
    training::{item, weight},
    write,
};

#[test]
fn the_set_that_is_taken_and_the_others_are_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("train.pth");
    let set =
        |key: &str, names: &[&str]| item(key, &names.iter().flat_map(|name| weight(name, [2, 3])).collect::<Vec<u8>>());
    let w = &["layer.weight"][..];
    let taken = |key: &str, rest: &str| Some(format!("the weights under {key} are taken; the file also holds {rest}"));
    for (items, note) in [
        (vec![set("state_dict", w)], None),
        (vec![set("state_dict", w), set("optimizer", &["0.exp_avg", "0.exp_avg_sq"])], None),
        (vec![set("state_dict", &["a.weight", "b.weight", "c.weight"]), set("criterion", w)], None),
        (
            vec![set("state_dict", w), set("ema_state_dict", &["module.layer.weight"])],
            taken("state_dict", "ema_state_dict (averaged, by its name): --key ema_state_dict takes those"),
        ),
        (
            vec![set("model", w), set("state_dict_ema", w)],
            taken("model", "state_dict_ema (averaged, by its name): --key state_dict_ema takes those"),
        ),
        (vec![set("student", w), set("teacher", w)], taken("teacher", "student: --key student takes those")),
        (
            vec![item("model", &[set("state_dict", w), set("ema", w)].concat()), set("schema", w)],
            taken(
                "model.state_dict",
                "model.ema (averaged, by its name), schema: --key model.ema takes the first of these",
            ),
        ),
    ] {
        fs::write(&path, stored(&[b"\x80\x02}", &items.concat()[..], b"."].concat())).expect("writes");
        let file = CheckpointFile::open(&path).expect("opens");
        assert_eq!(file.notes, note.iter().cloned().collect::<Vec<_>>());
        // What it says that --key takes is there, and nothing is said of what was asked for.
        let Some((_, key)) = note.as_deref().and_then(|note| note.split_once("--key ")) else { continue };
        let key = key.split(' ').next().expect("a key");
        let other = CheckpointFile::open_key(&path, key).unwrap_or_else(|error| panic!("{error}"));
        assert!(other.notes.is_empty() && other.tensors.len() == 1, "{key}: {:?}", other.notes);
    }
}

#[test]
fn train_and_its_like_take_the_weights_of_a_key() {
    let data = cats_and_dogs();
    let at = |name: &str| data.path().join(name);
    let network = |seed| {
        let device = Device::cpu(1).expect("a processor");
        collect(&Model::new(Arch::ResNet8, HeadSpec::Linear, 3, seed, &device).expect("a network")).expect("collects")
    };
    let named = |key: &'static str, seed| network(seed).into_iter().map(move |(name, t)| (format!("{key}.{name}"), t));
    write(&at("both.safetensors"), &named("student", 1).chain(named("teacher", 2)).collect::<Tensors>());
    write(&at("teacher.safetensors"), &network(2));

    // Neither is more than the other, and the file's format has no dictionaries.
    let error = Weights::file(at("both.safetensors")).expect_err("which one?").to_string();
    assert!(error.contains("under student (resnet8) and teacher (resnet8): --key student takes"), "{error}");

    let (both, run) = (at("both.safetensors"), at("run"));
    let train = "train {} --weights {} --key teacher --out {} --recipe head --size 32 --epochs 1 --linear-head -q";
    unfreeze(train, &[data.path(), &both, &run]).succeeded();
    let (trained, teacher) = (read(run.join("model.safetensors")).tensors, network(2));
    for (name, tensor) in teacher.iter().filter(|(name, _)| !name.starts_with("fc.")) {
        assert_eq!(&trained[name], tensor, "{name}");
    }
    assert_eq!(fs::read_to_string(run.join("config.toml")).expect("reads").matches("key = \"teacher\"").count(), 1);
    unfreeze("train --resume --out {} -q", &[&run]).succeeded();
    let ran = unfreeze(&format!("{train} --resume").replace("teacher", "student"), &[data.path(), &both, &run]);
    assert!(ran.code == 2 && ran.err.contains("begun with key = "), "{}", ran.err);

    let features = "features {} --layer avgpool --size 32 --out {} --weights {}";
    let (image, of_key, alone) = (at("train/cat/0.png"), at("key.safetensors"), at("alone.safetensors"));
    let image = if image.exists() { image } else { at("train") };
    unfreeze(&format!("{features} --key teacher"), &[&image, &of_key, &both]).succeeded();
    unfreeze(features, &[&image, &alone, &at("teacher.safetensors")]).succeeded();
    assert_eq!(read(&of_key).tensors, read(&alone).tensors);
    assert!(unfreeze("inspect {} --key teacher", &[&both]).succeeded().out.contains("\nfc.weight "));

    let ran = unfreeze("train {} --weights random --arch resnet8 --key teacher --out {}", &[data.path(), &at("no")]);
    assert!(ran.code == 2 && ran.err.contains("--key: teacher is of a checkpoint file"), "{}", ran.err);
}
