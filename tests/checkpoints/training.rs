//! What training programs leave: several sets of weights in a file, an optimizer's state beside them, methods around a
//! network, whole modules, programs.

use std::{collections::BTreeMap, fs};

use unfreeze::{
    Device, Error,
    checkpoint::{CheckpointFile, Conversion, ConvertOptions, FileTensor, Weights, write_onnx, write_pth},
    learner::CancelToken,
    nn::{Arch, HeadSpec},
};

use crate::{
    Tensors,
    common::program::{names, unfreeze},
    containers::{legacy, stored, tensor, text, zip},
    conversion::small,
    hostile::refused,
    round_trips::network,
    write,
};

/// `key: {inner}`, where `inner` pickles items.
pub fn item(key: &str, inner: &[u8]) -> Vec<u8> {
    [&text(key)[..], b"}", inner, b"s"].concat()
}

/// `key: tensor`.
pub fn weight(key: &str, shape: [i32; 2]) -> Vec<u8> {
    [&text(key)[..], &tensor(shape, [shape[1], 1]), b"s"].concat()
}

fn plan(file: CheckpointFile) -> Conversion {
    Conversion::plan(file, &ConvertOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_weights_of_a_key_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let inner =
        [weight("module.w", [3, 2]), [&text("n_averaged")[..], &tensor([1, 1], [1, 1]), b"s"].concat()].concat();
    let state = item("ema", &item("state_dict", &weight("v", [1, 6])));
    let items = [item("model", &weight("w", [2, 3])), item("model_ema", &inner), state].concat();
    fs::write(at("train.pth"), stored(&[b"\x80\x02}", &items[..], b"."].concat())).expect("writes");
    let shapes = |key: Option<&str>| -> Vec<(String, Vec<usize>)> {
        let file = match key {
            Some(key) => CheckpointFile::open_key(at("train.pth"), key),
            None => CheckpointFile::open(at("train.pth")),
        };
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        assert!(file.partial);
        let tensors = plan(file).tensors;
        tensors.into_iter().map(|(name, tensor)| (name, tensor.read().expect("reads").shape)).collect()
    };
    assert_eq!(shapes(None), [("w".to_owned(), vec![2, 3])]);
    assert_eq!(shapes(Some("model")), shapes(None));
    assert_eq!(shapes(Some("model_ema")), [("w".to_owned(), vec![3, 2])]);
    for key in ["ema", "ema.state_dict"] {
        assert_eq!(shapes(Some(key)), [("v".to_owned(), vec![1, 6])]);
    }
    let error = CheckpointFile::open_key(at("train.pth"), "mdoel").expect_err("no such key").to_string();
    assert!(error.contains("under the key mdoel; there are ema, model, model_ema"), "{error}");

    // In names where a format knows no dictionaries.
    let value = |value| FileTensor::from_f32(vec![1], vec![value]).expect("fits");
    write(&at("flat.safetensors"), &Tensors::from([("ema.w".into(), value(1.0)), ("model.w".into(), value(2.0))]));
    let file = CheckpointFile::open_key(at("flat.safetensors"), "ema").expect("opens");
    assert_eq!(file.tensors["w"].read().expect("reads").to_f32(), [1.0]);
    assert_eq!(file.left_out, [("model.w".to_owned(), "stored beside the weights")]);

    let ran = unfreeze("convert {} {}", &[&at("train.pth"), &at("plain.safetensors")]).succeeded();
    let note = "the weights under model are taken; the file also holds model_ema (averaged, by its name): --key model_ema \
                takes those\n";
    assert!(ran.err.contains(note), "{}", ran.err);
    let ran = unfreeze("convert {} --key model_ema --dry-run", &[&at("train.pth")]).succeeded();
    assert!(ran.out.contains("module.w -> w  f32 [3, 2]") && !ran.err.contains("are taken"), "{}", ran.out);
    assert!(ran.out.contains("n_averaged  left out: how many sets of weights were averaged"), "{}", ran.out);
    let ran = unfreeze("convert {} {} --key net", &[&at("train.pth"), &at("none.safetensors")]);
    assert!(ran.code == 1 && ran.err.contains("ema, model, model_ema"), "{}", ran.err);
}

#[test]
fn what_lies_beside_the_weights_is_not_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let epoch = [&text("epoch")[..], b"K\x03s"].concat();
    for (name, items) in [
        ("wrapped.pth", [item("state_dict", &weight("w", [2, 3])), epoch.clone()].concat()),
        ("beside.pth", [weight("w", [2, 3]), epoch].concat()),
        ("two.pth", [item("model", &weight("w", [2, 3])), item("model_ema", &weight("w", [3, 2]))].concat()),
    ] {
        let before = stored(&[b"\x80\x02}", &items[..], b"."].concat());
        fs::write(at(name), &before).expect("writes");
        let mut outputs = vec![at(name), folder.path().join(".").join(name)];
        #[cfg(unix)]
        {
            let link = at(&format!("link-to-{name}"));
            std::os::unix::fs::symlink(at(name), &link).expect("links");
            outputs.push(link);
        }
        for output in outputs {
            let ran = unfreeze("convert {} {} --dtype f16", &[&at(name), &output]);
            assert!(ran.code == 1 && ran.err.contains("would be lost: write to another file"), "{name}: {}", ran.err);
        }
        assert!(fs::read(at(name)).expect("reads") == before, "{name} was written over");
        unfreeze("convert {} {}", &[&at(name), &at("another.pth")]).succeeded();
    }
    // Of weights alone, and their own metadata, nothing is.
    write(&at("plain.safetensors"), &small(HeadSpec::Linear));
    unfreeze("convert {} {} --dtype f16", &[&at("plain.safetensors"), &at("plain.safetensors")]).succeeded();
}

#[test]
fn parts_of_a_method_beside_its_encoder_are_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("method.pth");
    let network = small(HeadSpec::Linear);
    let under =
        |prefix: &'static str| network.iter().map(move |(name, tensor)| (format!("{prefix}{name}"), tensor.clone()));
    let one = FileTensor::from_f32(vec![1], vec![1.0]).expect("fits");

    let queue = [("module.queue".to_owned(), one.clone()), ("module.queue_ptr".to_owned(), one.clone())];
    let tensors: Tensors = under("module.encoder_q.").chain(under("module.encoder_k.")).chain(queue).collect();
    write_pth(&path, &tensors).expect("writes");
    let found = plan(CheckpointFile::open(&path).expect("opens"));
    assert_eq!((found.arch, found.prefixes.concat().as_str()), (Some(Arch::ResNet8), "module.encoder_q."));
    assert_eq!((found.tensors.len(), found.dropped.len()), (network.len(), network.len() + 2));
    assert!(found.dropped.iter().all(|(name, why)| !name.contains("encoder_q") && why.contains("another part")));
    let device = Device::cpu(1).expect("a processor");
    let loaded = Weights::file(&path).and_then(|weights| weights.with_classifier(&device)).map(drop);
    loaded.unwrap_or_else(|error| panic!("{error}"));

    let tensors: Tensors = under("module.").chain([("n_averaged".to_owned(), one)]).collect();
    write_pth(&path, &tensors).expect("writes");
    let found = plan(CheckpointFile::open(&path).expect("opens"));
    assert_eq!(found.dropped, [("n_averaged".to_owned(), "how many sets of weights were averaged")]);
    let loaded = Weights::file(&path).and_then(|weights| weights.with_classifier(&device)).map(drop);
    loaded.unwrap_or_else(|error| panic!("{error}"));

    // DINO's, of which the teacher is evaluated.
    let items = [item("student", &weight("module.backbone.w", [2, 3])), item("teacher", &weight("backbone.w", [3, 2]))];
    fs::write(&path, stored(&[b"\x80\x02}", &items.concat()[..], b"."].concat())).expect("writes");
    let found = plan(CheckpointFile::open(&path).expect("opens"));
    assert_eq!(found.tensors["w"].read().expect("reads").shape, [3, 2]);
}

#[test]
fn whole_modules_and_programs_are_called_what_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("module.pth");
    // In the legacy layout its class comes with its source.
    let class = [&b"("[..], &text("module"), b"cnet\nNet\n", &text("net.py"), &text("class Net(Module): pass"), b"tQ"];
    let tables = [&item("_parameters", &weight("w", [2, 3]))[..], &item("_buffers", &weight("mean", [1, 2]))].concat();
    let inner = [b"cnet\nInner\n)\x81}", &tables[..], &item("_modules", b""), b"b"].concat();
    let passing =
        [&text("_non_persistent_buffers_set")[..], b"c__builtin__\nset\n](", &text("gone"), b"e\x85Rs"].concat();
    let state = [
        item("_parameters", &[&text("bias")[..], b"Ns"].concat()),
        item("_buffers", &weight("gone", [1, 2])),
        item("_modules", &[&text("fc")[..], &inner, b"s"].concat()),
        passing,
    ];
    let module = [&class.concat()[..], b")\x81}", &state.concat(), b"b"].concat();
    let zipped = [b"cnet\nNet\n)\x81}", &state.concat()[..], b"b"].concat();
    let under = |module: &[u8]| [b"\x80\x02}", &text("model")[..], module, b"s."].concat();
    for file in [
        legacy(&[b"\x80\x02", &module[..], b"."].concat()),
        legacy(&under(&module)),
        stored(&[b"\x80\x02", &zipped[..], b"."].concat()),
        stored(&under(&zipped)),
    ] {
        fs::write(&path, file).expect("writes");
        let file = CheckpointFile::open(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["fc.mean", "fc.w"]);
        assert_eq!(file.tensors["fc.w"].read().expect("reads").to_f32(), [0., 1., 2., 3., 4., 5.]);
        assert!(file.partial);
    }
    // A hostile one is called that first.
    let hostile = [b"\x80\x02cos\nsystem\n0", &module[..], b"."].concat();
    assert!(refused("module.pth", &legacy(&hostile)).contains("os.system"));

    let pickle = [b"\x80\x02c__torch__\nNet\n)\x81}", &weight("w", [2, 3])[..], b"b."].concat();
    for sign in ["a/constants.pkl", "a/code/__torch__.py"] {
        let script = zip(&[("a/data.pkl", &pickle), (sign, b"\x80\x02)."), ("a/data/0", &[0; 24])], 0, |n| n as u32);
        let error = refused("script.pt", &script);
        assert!(error.contains("TorchScript") && error.contains("model.state_dict()"), "{error}");
    }
}

#[test]
fn a_number_and_its_digits_are_no_two_keys() {
    let one = tensor([2, 3], [3, 1]);
    let pair = |key: &[u8]| [key, &one[..]].concat();
    let number = pair(b"K\x01");
    let digits = pair(&text("1"));
    for items in [
        [&number[..], b"s", &digits, b"s"].concat(),
        [b"(", &number[..], &digits, b"u"].concat(),
        [b"q\x05(", &digits[..], b"u0h\x05(\x8a\x01\x01", &one, b"u"].concat(),
    ] {
        let pickle = [b"\x80\x02}", &items[..], b"."].concat();
        for file in [stored(&pickle), legacy(&pickle)] {
            let error = refused("keys.pth", &file);
            assert!(error.contains("the keys 1 and \"1\" in one dictionary"), "{error}");
        }
    }
    // Each in a dictionary of its own, and digits that are another name.
    let apart = [item("a", &[&number[..], b"s"].concat()), item("b", &[&digits[..], b"s"].concat())].concat();
    let other = [&number[..], b"s", &pair(&text("01")), b"s"].concat();
    for items in [apart, other] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("apart.pth");
        fs::write(&path, stored(&[b"\x80\x02}", &items[..], b"."].concat())).expect("writes");
        assert_eq!(CheckpointFile::open(&path).unwrap_or_else(|error| panic!("{error}")).tensors.len(), 2);
    }
}

#[test]
fn a_cancelled_conversion_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    write(&at("in.safetensors"), &small(HeadSpec::Linear));
    let mut conversion = plan(CheckpointFile::open(at("in.safetensors")).expect("opens"));
    let token = CancelToken::default();
    conversion.cancelled_by(&token);
    conversion.write(at("out.safetensors")).expect("is not cancelled yet");
    fs::remove_file(at("out.safetensors")).expect("removes");
    token.cancel();
    let error = conversion.write(at("out.safetensors")).expect_err("is cancelled");
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(names(folder.path()), ["in.safetensors"]);
}

#[test]
fn networks_are_compared_on_equal_terms_where_one_is_folded() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for head in [HeadSpec::Linear, HeadSpec::fastai(vec![4])] {
        let mut tensors = network(head, 3);
        write(&at("kept.safetensors"), &tensors);
        write_onnx(at("folded.onnx"), &tensors, &BTreeMap::new(), &Default::default()).expect("writes");
        let compare = |one: &str, other: &str| unfreeze("convert {} --check {}", &[&at(one), &at(other)]);
        let ran = compare("folded.onnx", "kept.safetensors").succeeded();
        assert!(ran.err.contains("this file has batchnorm folded"), "{}", ran.err);
        let ran = compare("kept.safetensors", "folded.onnx").succeeded();
        assert!(
            ran.err.contains("the reference has batchnorm folded") && ran.out.contains(" 0 missing"),
            "{}",
            ran.out
        );
        let ran = compare("folded.onnx", "folded.onnx").succeeded();
        assert!(!ran.err.contains("folded into") && ran.out.contains(" 0 different"), "{}", ran.err);

        let moved = tensors.get_mut("layer2.0.bn1.running_mean").expect("is there");
        *moved = FileTensor::from_f32(moved.shape.clone(), moved.to_f32().iter().map(|x| x * 1.001).collect())
            .expect("fits");
        write(&at("moved.safetensors"), &tensors);
        let ran = compare("moved.safetensors", "folded.onnx");
        assert!(ran.code == 1 && ran.out.contains("layer2.0.conv1.bias: differs"), "{}{}", ran.out, ran.err);
        assert!(!ran.out.contains("layer2.0.conv2.bias: differs") || ran.out.contains("rounding"), "{}", ran.out);
    }
}
