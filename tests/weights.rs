//! The checkpoints that this project trained: what they say of real images. And those that others have published: the
//! catalogue, and fetching them.

mod common;
#[path = "weights/environment.rs"]
mod environment;
#[path = "weights/fetching.rs"]
mod fetching;
#[path = "weights/server.rs"]
mod server;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use common::{
    learning::cats_and_dogs,
    program::{Ran, command, ran},
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use unfreeze::{
    Device,
    checkpoint::{
        Checkpoint, Weights,
        catalog::{self, Entry},
        collect, write_safetensors,
    },
    data::{Item, Loader, LoaderOptions, Split, Task, find_labelled},
    learner::Classifier,
    nn::{Arch, HeadSpec, Model},
};

const CIFAR: &str = "weights/resnet20-cifar10.safetensors";

#[test]
fn the_cifar_network_classifies_images_that_it_has_not_seen() {
    let classifier = Classifier::load(CIFAR, Device::cpu(0).unwrap()).unwrap();
    assert_eq!(classifier.classes().len(), 10);
    let Some(archive) = common::shared("data/cifar10.tar.gz") else { return };
    let folder = tempfile::tempdir().unwrap();
    let unpacked = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(folder.path()).arg("test").status();
    assert!(unpacked.unwrap().success());
    let found = find_labelled(folder.path(), Task::SingleLabel, classifier.classes(), Split::Test).unwrap();
    assert!(found.skipped.is_empty() && found.items.len() == 10_000);
    // A tenth of each class, in the order of names, which is random.
    let items: Vec<Item> = found.items.into_iter().step_by(10).collect();
    let order = (0..items.len() as u32).collect();
    let loader = Loader::new(items.into(), classifier.transforms(), order, 50, &LoaderOptions::evaluation()).unwrap();
    let evaluation = classifier.evaluate(loader, None, |failed| panic!("{failed}")).unwrap();
    assert!(evaluation.accuracy > 0.82, "{}", evaluation.accuracy);
}

#[test]
fn the_record_beside_it_is_of_the_run_that_made_it() {
    let history = fs::read_to_string("weights/resnet20-cifar10.history.jsonl").unwrap();
    let last: serde_json::Value = serde_json::from_str(history.lines().last().unwrap()).unwrap();
    assert!(last["epoch"] == 14 && last["metrics"]["accuracy"].as_f64().unwrap() > 0.84);
    let config: toml::Table = fs::read_to_string("weights/resnet20-cifar10.config.toml").unwrap().parse().unwrap();
    let classes: Vec<&str> = config["classes"].as_array().unwrap().iter().filter_map(|class| class.as_str()).collect();
    let classifier = Classifier::load(CIFAR, Device::cpu(1).unwrap()).unwrap();
    assert_eq!(classes, classifier.classes());
}

#[test]
fn the_catalogue_is_of_the_architectures_that_there_are() {
    let entries = catalog::entries();
    let names: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names.len(), entries.len(), "names are unique");
    let files: BTreeSet<String> = entries.iter().map(Entry::file_name).collect();
    assert_eq!(files.len(), entries.len(), "files too");
    for entry in entries {
        let Entry { name, arch, url, transforms, .. } = entry;
        let (stem, tag) = name.split_once('.').unwrap();
        assert_eq!(stem, arch.name());
        assert!(transforms.crop == arch.published_size() && transforms.resize >= transforms.crop, "{name}");
        assert!((60.0..90.0).contains(&entry.top1), "{name}");
        assert!(["BSD-3-Clause", "Apache-2.0", "CC-BY-NC-4.0"].contains(&entry.licence.as_str()), "{name}");
        match &entry.sha256 {
            Some(digits) => {
                let file = format!("https://download.pytorch.org/models/{arch}-{digits}.pth");
                assert!(["v1", "v2"].contains(&tag) && *url == file && digits.len() == 8, "{name}");
                assert_eq!(entry.file_name(), format!("{arch}-{digits}.pth"));
            }
            None => {
                assert_eq!(*url, format!("https://huggingface.co/timm/{name}/resolve/main/model.safetensors"));
                assert_eq!(entry.file_name(), format!("{name}.safetensors"));
            }
        }
        if let Some(mib) = entry.mib {
            // Each convolution's weight and its batchnorm, of two parameters and two statistics; and the classifier.
            let layer = |shape: &[usize]| shape.iter().product::<usize>() + 4 * shape[0];
            let layers: usize = arch.convolutions().iter().map(|(_, shape)| layer(shape)).sum();
            let values = layers + (arch.features() + 1) * arch.published_classes();
            // torchvision's first wide networks are of two bytes to a value.
            let bytes = if arch.name().starts_with("wide") && tag == "v1" { 2 } else { 4 };
            let share = mib * f64::from(1 << 20) / (bytes * values) as f64;
            assert!((1.0..1.01).contains(&share), "{name}: {share}");
        }
    }
    // The other networks are trained on CIFAR-10.
    for arch in Arch::ALL {
        let standard = catalog::standard(arch).map(|entry| entry.name.as_str());
        match arch.published_size() {
            224 => assert_eq!(standard.unwrap(), format!("{arch}.v1")),
            _ => assert!(standard.unwrap_err().to_string().contains(arch.name())),
        }
    }
}

#[test]
fn the_catalogue_says_what_torchvision_documents() {
    for (name, top1, resize) in [
        ("resnet18.v1", 69.758, 256),
        ("resnet34.v1", 73.314, 256),
        ("resnet50.v1", 76.130, 256),
        ("resnet50.v2", 80.858, 232),
        ("resnet101.v1", 77.374, 256),
        ("resnet101.v2", 81.886, 232),
        ("resnet152.v1", 78.312, 256),
        ("resnet152.v2", 82.284, 232),
        ("resnext101_64x4d.v1", 83.246, 232),
    ] {
        let entry = catalog::entry(name).unwrap();
        assert_eq!((entry.top1, entry.transforms.resize), (top1, resize), "{name}");
    }
    for (unknown, told) in [
        ("resnet34.v2", ["did you mean resnet34.v1?", "resnet34.a1_in1k"]),
        ("restnet50.v2", ["did you mean resnet50.v2?", "weights list"]),
        ("resnet50", ["there is resnet50.v1, resnet50.v2", ""]),
        ("vgg16", ["weights list", ""]),
    ] {
        let error = catalog::entry(unknown).unwrap_err().to_string();
        let named = error.contains(&format!("no '{unknown}'"));
        assert!(named && told.iter().all(|told| error.contains(told)), "{error}");
    }
}

#[test]
fn a_catalogue_that_cannot_be_right_is_refused_by_the_entry() {
    let good = fs::read_to_string("weights/catalog.toml").unwrap();
    let (torchvision, timm) = ("entry 1 'resnet18.v1': ", "entry 2 'resnet18.fb_swsl_ig1b_ft_in1k': ");
    for (from, to, entry, cause) in [
        ("arch = \"resnet18\"", "arch = \"resnet19\"", torchvision, "'resnet19' is unknown"),
        ("name = \"resnet18.v1\"", "name = \"resnet34.v1\"", "entry 1 'resnet34.v1': ", "must be resnet18, a dot"),
        ("name = \"resnet18.v1\"", "name = \"resnet18.\"", "entry 1 'resnet18.': ", "must be resnet18, a dot"),
        ("name = \"resnet18.v1\"", "name = \"resnet18./v1\"", "entry 1 'resnet18./v1': ", "must be resnet18, a dot"),
        ("name = \"resnet18.fb_swsl_ig1b_ft_in1k\"", "name = \"resnet18.v1\"", "entry 2 'resnet18.v1': ", "earlier"),
        ("\"https://download", "\"http://download", torchvision, "must begin with https://"),
        ("resnet18-f37072fd.pth", "..", torchvision, "must end in a file's name"),
        ("resnet18-f37072fd.pth", "a%2Fb.pth", torchvision, "must end in a file's name"),
        ("resnet18-f37072fd.pth", "resnet18-f37072fe.pth", torchvision, "must begin with the digits"),
        ("sha256 = \"f37072fd\"", "sha256 = \"F37072FD\"", torchvision, "8 to 64 hexadecimal"),
        ("sha256 = \"f37072fd\"", "sha256 = \"f37072f\"", torchvision, "8 to 64 hexadecimal"),
        ("sha256 = \"f37072fd\"", "", torchvision, "only the Hugging Face Hub"),
        ("mib = 44.661", "mib = -1.0", torchvision, "mib must be above 0"),
        ("mib = 44.661", "mib = 44661.0", torchvision, "mib must be above 0"),
        ("licence = \"CC-BY-NC-4.0\"", "licence = \"\"", timm, "no licence"),
        ("top1 = 73.28", "top1 = 732.8", timm, "a percentage"),
        ("resize = 256", "resize = 25", torchvision, "no larger than resize"),
        ("crop = 224,", "crop = 224, std = [1, 0, 1],", torchvision, "std above 0"),
        ("crop = 224,", "crop = 224, colour = 1,", torchvision, "unknown field"),
    ] {
        assert!(good.contains(from), "{from}");
        let error = catalog::parse(&good.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(entry) && error.contains(cause), "{to}: {error}");
    }
    let hub = "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors";
    let twice = good.replacen("https://huggingface.co/timm/resnet18.a2_in1k/resolve/main/model.safetensors", hub, 1);
    assert!(catalog::parse(&twice).is_ok(), "files of the Hub are told apart by the name of the entry");
    assert!(catalog::parse(&good.replacen("\"https://", "\"HTTPS://", 1)).is_ok());
}

/// Runs the program with caches of its own.
fn unfreeze_in(home: &Path, arguments: &str, paths: &[&Path], environment: &[(&str, &str)]) -> Ran {
    let mut command = command(arguments, paths);
    for (variable, folder) in [("UNFREEZE_CACHE", "own"), ("TORCH_HOME", "torch"), ("HF_HOME", "hub")] {
        command.env(variable, home.join(folder));
    }
    for variable in ["HF_HUB_CACHE", "HF_ENDPOINT"] {
        command.env_remove(variable);
    }
    ran(command.envs(environment.iter().copied()).stdin(Stdio::null()).output().unwrap())
}

#[test]
fn weights_are_listed_fetched_and_found() {
    let home = tempfile::tempdir().unwrap();
    let content = b"not looked at".as_slice();
    let hash: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    let server = server::serve(move |_, request| match request.path.as_str() {
        "/mirror/timm/resnet18.a1_in1k/resolve/main/model.safetensors" => {
            server::answer("200 OK", &[&format!("X-Linked-ETag: \"{hash}\"")], content)
        }
        path => server::answer("404 Not Found", &[], path.as_bytes()),
    });
    let run = |arguments: &str| {
        let mirror = format!("{}/mirror/", server.address);
        unfreeze_in(home.path(), arguments, &[], &[("HF_ENDPOINT", mirror.as_str())])
    };

    let list = || run("weights list --arch resnet18 --json").succeeded().objects();
    let names = |objects: &[serde_json::Value]| objects.iter().map(|o| o["name"].to_string()).collect::<Vec<_>>();
    let before = list();
    assert!(names(&before).contains(&"\"resnet18.v1\"".into()) && before.iter().all(|o| o["path"].is_null()));
    let all = run("weights list").succeeded().out;
    assert!(all.lines().count() == catalog::entries().len() + 1);
    assert!(all.lines().all(|line| line.chars().count() <= 80), "{all}");
    assert!(run("weights list --present").succeeded().err.contains("weights fetch NAME"));
    assert!(run("weights list --arch resnet20").succeeded().err.contains("for resnet20"));
    let missing = run("weights path resnet18.a1_in1k");
    assert!(missing.code == 1 && missing.err.contains("weights fetch resnet18.a1_in1k"), "{}", missing.err);

    let fetched = run("weights fetch resnet18.a1_in1k").succeeded();
    let path = home.path().join("own/weights/resnet18.a1_in1k.safetensors");
    assert_eq!(fetched.out.trim_end(), path.display().to_string());
    assert!(fetched.err.starts_with("fetching http://") && fs::read(&path).unwrap() == content, "{}", fetched.err);
    assert_eq!(run("weights path resnet18.a1_in1k").succeeded().out, fetched.out);
    let again = run("weights fetch resnet18.a1_in1k resnet18.a1_in1k --quiet").succeeded();
    assert!(again.err.is_empty() && again.out == fetched.out.repeat(2) && server.asked().len() == 1, "{}", again.err);
    let present = run("weights list --present").succeeded().out;
    assert!(
        present.lines().count() == 3 && present.lines().last().unwrap().trim_start() == fetched.out.trim_end(),
        "{present}"
    );
    let here: Vec<_> = list().into_iter().filter(|o| !o["path"].is_null()).collect();
    assert_eq!((names(&here), here[0]["path"].as_str()), (vec!["\"resnet18.a1_in1k\"".into()], path.to_str()));

    let failed = run("weights fetch resnet18.a2_in1k");
    assert!(failed.code == 1 && failed.err.contains("404 Not Found") && failed.out.is_empty(), "{}", failed.err);
    let unknown = run("weights fetch resnet18.a9_in1k");
    assert!(unknown.code == 2 && unknown.err.contains("resnet18.a1_in1k"), "{}", unknown.err);
}

/// A cache in which there is a ResNet-18 by the name of timm's a1.
fn with_weights() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("own/weights");
    fs::create_dir_all(&folder).unwrap();
    let model = Model::new(Arch::ResNet18, HeadSpec::Linear, 1000, 1, &Device::cpu(1).unwrap()).unwrap();
    let file = folder.join("resnet18.a1_in1k.safetensors");
    write_safetensors(file, &collect(&model).unwrap(), &Default::default()).unwrap();
    home
}

#[test]
fn commands_take_weights_by_their_name_and_images_as_they_were_published_with() {
    let (home, data) = (with_weights(), cats_and_dogs());
    let file = home.path().join("own/weights/resnet18.a1_in1k.safetensors");
    let out = home.path().join("features.safetensors");
    let image = data.path().join("valid/cat/0.png");
    let features = |flags: &str, paths: &[&Path]| {
        let paths = [&[out.as_path(), image.as_path()][..], paths].concat();
        let arguments = format!("features --out {{}} {{}} --size 48 --layer logits {flags}");
        let ran = unfreeze_in(home.path(), &arguments, &paths, &[]).succeeded();
        (Checkpoint::read(&out).unwrap().tensors["features"].to_f32(), ran.err)
    };
    let (by_name, said) = features("--weights resnet18.a1_in1k", &[]);
    assert!(said.contains("resnet18.a1_in1k (Apache-2.0)") && said.contains("235 to 224") && said.contains("bicubic"));
    // 235 / 224 · 48 is 50.4.
    assert_eq!(by_name, features("--weights {} --resize 50", &[&file]).0);
    assert_ne!(by_name, features("--weights {}", &[&file]).0);
    assert_eq!(features("--weights resnet18.a1_in1k --resize 48", &[]).0, features("--weights {}", &[&file]).0);

    let run = home.path().join("run");
    let flags = "--weights resnet18.a1_in1k --size 32 --recipe head --epochs 1 --hidden none --batch-size 4 --quiet";
    let train = format!("train {{}} --out {{}} {flags}");
    assert_eq!(unfreeze_in(home.path(), &train, &[data.path(), &run], &[]).succeeded().err, "");
    let config: toml::Table = fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    let (weights, transforms) = (config["weights"].as_str(), config["transforms"].as_table().unwrap());
    assert_eq!((weights, transforms["resize"].as_integer()), (Some("resnet18.a1_in1k"), Some(34)));
    unfreeze_in(home.path(), "train --resume --out {}", &[&run], &[]).succeeded();
}

#[test]
fn weights_that_are_not_here_are_named_with_the_place_to_put_them_at() {
    let (home, data) = (tempfile::tempdir().unwrap(), cats_and_dogs());
    let run = home.path().join("run");
    // Nobody listens there.
    let offline = [("HTTPS_PROXY", "http://127.0.0.1:9"), ("ALL_PROXY", "http://127.0.0.1:9"), ("NO_PROXY", "")];
    let place = home.path().join("own/weights/resnet18-f37072fd.pth").display().to_string();
    for (flags, code, causes) in [
        ("--arch resnet18 --weights auto", 1, [place.as_str(), "download.pytorch.org/models/resnet18-f37072fd.pth"]),
        ("--weights resnet18.v1", 1, [place.as_str(), "put it at"]),
        ("--weights auto", 2, ["--arch", "needs an architecture"]),
        ("--arch resnet20 --weights auto", 2, ["none for resnet20", "give a file"]),
        ("--arch resnet34 --weights resnet18.v1", 2, ["resnet18.v1 is of resnet18", "not of resnet34"]),
        ("--weights resnet18.v7", 2, ["no 'resnet18.v7'", "resnet18.v1"]),
        ("--weights nothing.pth", 1, ["nothing.pth", ""]),
    ] {
        let ran = unfreeze_in(home.path(), &format!("train {{}} --out {{}} {flags}"), &[data.path(), &run], &offline);
        assert!(ran.code == code && causes.iter().all(|cause| ran.err.contains(cause)), "{flags}: {}", ran.err);
        assert!(!run.exists(), "{flags}");
    }
    assert!(Weights::auto(Arch::ResNet20).is_err());
}
