//! Wrong usage and what cannot be done: named, and without a trace.

use std::{fs, path::Path};

use crate::{
    TRAIN, checkpoint,
    common::{
        learning::{cats_and_dogs, folders, picture},
        program::{names, unfreeze},
    },
    trained,
};

/// Each mistake names what is wrong, exits as documented, and leaves no run behind.
#[test]
fn mistakes_in_training_are_named_and_leave_nothing() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let data = cats_and_dogs();
    let (one, empty, damaged) = (folders(&["cat"], 1, 1, 0), folders(&["cat", "dog"], 1, 1, 0), cats_and_dogs());
    fs::remove_file(empty.path().join("train/dog/0.png")).unwrap();
    for name in ["train/cat", "train/dog"].map(|class| damaged.path().join(class)) {
        for entry in fs::read_dir(name).unwrap() {
            let path = entry.unwrap().path();
            fs::write(&path, &fs::read(&path).unwrap()[..60]).unwrap();
        }
    }
    fs::write(at("file"), "x").unwrap();
    fs::write(at("page.pth"), "<!DOCTYPE html><html>404</html>").unwrap();
    let resnet20 = checkpoint(work.path());
    fs::write(at("cut.safetensors"), &fs::read(&resnet20).unwrap()[..50_000]).unwrap();
    let with = |path: &str| format!("--weights {}", at(path).display());
    let random = "--weights random --arch resnet20";
    let right = data.path();
    for (data, flags, code, cause) in [
        (at("nowhere").as_path(), random.into(), 1, "nowhere"),
        (&at("file"), random.into(), 1, "file: is a file, not a folder"),
        (empty.path(), random.into(), 1, "train/dog: this class folder holds no images"),
        (one.path(), random.into(), 1, "has one class, `cat`"),
        (damaged.path(), random.into(), 1, "could be decoded"),
        (right, with("missing.pth"), 1, "missing.pth"),
        (right, with("cut.safetensors"), 1, "cut.safetensors: damaged safetensors file"),
        (right, with("page.pth"), 1, "page.pth: is a web page"),
        (right, with("resnet20.safetensors --arch resnet34"), 1, "of resnet20, not of resnet34"),
        (right, "--weights random".into(), 2, "--arch"),
        (right, "--weights random --arch resnet19".into(), 2, "resnet19"),
        (right, format!("{random} --lr 1e-3,1e-2"), 2, "--lr: 2 values given for 3 layer groups (0 stem..layer1"),
        (right, format!("{random} --wd 1,2,3,4"), 2, "--wd: 4 values given for 3"),
        (right, format!("{random} --lr x"), 2, "--lr"),
        (right, format!("{random} --lr 0..1"), 2, "--lr: the range 0..1 needs two positive ends"),
        (right, format!("{random} --lr 1e38"), 1, "diverged: the"),
        (right, format!("{random} --size 0"), 2, "size: 0"),
        (right, format!("{random} --size 32 --resize 16"), 2, "resize: 16"),
        (right, format!("{random} --batch-size 1"), 2, "--batch-size: 1"),
        (right, format!("{random} --batch-size 0"), 2, "--batch-size"),
        (right, format!("{random} --epochs 0"), 2, "--epochs: 0"),
        (right, format!("{random} --cycles 99 --cycle-mult 99"), 2, "cycles"),
        (right, format!("{random} --schedule triangular --cycle-mult 2"), 2, "--cycle-mult: 2, but"),
        (right, format!("{random} --fastai2 0 --freeze-epochs 0"), 2, "--epochs: 0 trains nothing"),
        (right, format!("{random} --fastai2 2 --lr 1,2,3"), 2, "--lr: --fastai2 takes one value"),
        (right, format!("{random} --fastai2 2 --cycles 2"), 2, "cannot be used with"),
        (right, format!("{random} --freeze-epochs 2"), 2, "--fastai2"),
        (right, format!("{random} --sizes 16,0"), 2, "from 1 to 8192"),
        (right, format!("{random} --sizes 16 --size 16"), 2, "cannot be used with"),
        (right, format!("{random} --groups layer"), 2, "give fastai, stage or block"),
        (right, format!("{random} --early-stopping 1 --monitor f1"), 2, "--early-stopping: 'f1' is not recorded"),
        (right, format!("{random} --monitor accuracy"), 2, "--early-stopping"),
        (right, format!("{random} --save-best f1"), 2, "--save-best: 'f1' is not recorded"),
        (right, format!("{random} --freeze-out quartic"), 2, "linear, quadratic or cubic"),
        (right, format!("{random} --freeze-out cubic --schedule constant"), 2, "cannot be used with"),
        (right, format!("{random} --schedule sawtooth"), 2, "one-cycle"),
        (right, format!("{random} --warm-up 8"), 2, "--warm-up: 8 epochs, but the fit has 7"),
        (right, format!("{random} --freeze-to 3"), 2, "--freeze-to: group 3 does not exist"),
        (right, format!("{random} --hidden 99999999999"), 2, "--hidden"),
        (right, format!("{random} --hidden a,b"), 2, "--hidden: 'a,b'"),
        (right, format!("{random} --ps 2"), 2, "--ps: 2"),
        (right, format!("{random} --device cuda:0"), 1, "device cuda:0"),
        (right, format!("{random} --device tpu"), 2, "'tpu' is no device"),
        (right, format!("{random} --recipe head --freeze-to 99"), 2, "--freeze-to: group 99 does not exist"),
        (right, format!("{random} --lr -1"), 2, "--lr: -1 is not a rate"),
        (right, format!("{random} --linear-head --hidden 64"), 2, "cannot be used with"),
        (right, format!("{random} --metrics f1,top2"), 2, "--metrics: top2 of 2 classes says nothing"),
        (right, format!("{random} --metrics speed"), 2, "'speed' is unknown; there are accuracy, topK"),
    ] {
        let run = at("run");
        let ran = unfreeze(&format!("train {{}} --out {{}} {flags}"), &[data, &run]);
        assert!(ran.code == code && ran.err.contains(cause), "{flags}: {} {}", ran.code, ran.err);
        assert!(ran.out.is_empty() && !run.exists(), "{flags}: {} {:?}", ran.out, names(&run));
    }
    let before = names(work.path());
    for (out, cause) in
        [(work.path().to_owned(), "already holds something"), (at("file"), "file"), (at("file/run"), "file/run")]
    {
        let ran = unfreeze(TRAIN, &[right, &out]);
        assert!(
            ran.code == 1 && ran.err.contains(cause) && ran.err.contains(&*out.display().to_string()),
            "{}",
            ran.err
        );
    }
    assert_eq!(names(work.path()), before);
}

#[test]
fn mistakes_elsewhere_are_named() {
    let (data, run) = trained();
    let work = tempfile::tempdir().unwrap();
    let (weights, image) = (checkpoint(work.path()), data.path().join("valid/cat/0.png"));
    let out = work.path().join("no/such/folder/out.safetensors");
    for (arguments, paths, code, cause) in [
        ("predict {} {}", vec![work.path(), &image], 1, "model.safetensors"),
        ("predict {} {}", vec![&out, &image], 1, "out.safetensors"),
        ("predict {} {}", vec![&weights, &image], 1, "resnet20.safetensors: has no 'format_version'"),
        ("predict {} {}", vec![run, Path::new("missing.png")], 1, "missing.png"),
        ("predict {} {}", vec![run, work.path()], 1, "holds no images"),
        ("predict {} {} --batch-size 0", vec![run, &image], 2, "--batch-size"),
        ("predict {}", vec![run], 2, "IMAGE"),
        (
            "features {} --weights {} --out {}",
            vec![&image, &weights, &out],
            1,
            "no/such/folder: there is no such folder",
        ),
        ("features {} --weights {} --out {}", vec![&image, &weights, &image], 2, "should end in .safetensors"),
        ("features {} --weights {} --size 0 --out {}", vec![&image, &weights, &out], 2, "--size"),
        ("features {} --weights {} --layer pool --out {}", vec![&image, &weights, &out], 2, "'pool' is unknown"),
        ("convert {} {}", vec![&weights, &out], 1, "no/such/folder: there is no such folder"),
        ("convert {}", vec![&weights], 2, "OUTPUT"),
        ("convert {} {} --size 32", vec![&weights, &out], 2, "is for a model alone"),
        ("convert {} {} --dtype f8", vec![&weights, &out], 2, "give f32, f16, bf16 or f64"),
        ("convert {} {} --dtype i8", vec![&weights, &out], 2, "give f32, f16, bf16 or f64"),
        ("inspect {}", vec![&image], 1, "0.png: is of no known format"),
        ("evaluate {} --ensemble last:2", vec![run], 2, "there are 0 snapshots"),
        ("evaluate {} --ensemble 2", vec![run], 2, "give for example last:3"),
        ("evaluate {} --ensemble last:2", vec![&weights], 1, "snapshots are in a run folder"),
        ("evaluate {} {} --tta 2", vec![&run.join("model.safetensors"), data.path()], 1, "give its run folder"),
        ("evaluate {} --tta 0", vec![run], 2, "--tta"),
        ("evaluate {} --top-k 2", vec![run], 2, "--top-k: of 2 classes says nothing"),
        ("summary --arch resnet20 --size 0", vec![], 2, "--size"),
        ("summary --arch resnet20 --size 9999999999", vec![], 2, "from 1 to 8192"),
        ("summary --arch resnet20 --classes 99999999999999", vec![], 2, "from 1 to 65536"),
        ("summary --arch resnet20 --freeze-to 9", vec![], 2, "--freeze-to: group 9"),
        ("bench forward --arch resnet20 --size 8192 --batch-size 65536", vec![], 2, "GiB"),
        ("bench train --arch resnet20 --batch-size 1", vec![], 2, "at least 2 images"),
        ("bench train --arch resnet20 --trainable layer4", vec![], 2, "resnet20 has no layer4"),
        ("bench cache --samples 8", vec![], 2, "--batch-size: 16 are more than the 8 samples"),
        ("bench ops --roof-gbs 0", vec![], 2, "give a positive number"),
        ("bench forward --arch resnet20 --threads 1000000", vec![], 2, "--threads: 1000000 are more than"),
        ("bench forward --arch resnet20 --batch-size 0", vec![], 2, "--batch-size"),
        ("bench forward --arch resnet20 --device cuda:99", vec![], 1, "device cuda:99: "),
        ("frobnicate", vec![], 2, "frobnicate"),
    ] {
        let ran = unfreeze(arguments, &paths);
        assert!(ran.code == code && ran.err.contains(cause), "{arguments}: {} {}", ran.code, ran.err);
        assert!(ran.out.is_empty(), "{arguments}: {}", ran.out);
    }
    assert_eq!(names(work.path()), ["resnet20.safetensors"]);
    picture(9, 0, 0).save(work.path().join("tiny.png")).unwrap();
    unfreeze("predict {} {}", &[run, &work.path().join("tiny.png")]).succeeded();
}
