//! Pickles that run code, that grow without end, or that contradict themselves, in every container.

use std::time::{Duration, Instant};

use unfreeze::checkpoint::CheckpointFile;

use crate::{
    containers::{legacy, pickle, stored, tar, tensor, text, zip},
    hostile::refused,
};

fn hidden(more: &[u8]) -> Vec<u8> {
    pickle([2, 3], [3, 1], more)
}

#[test]
fn calls_hidden_beside_good_tensors_are_refused() {
    for (call, name) in [
        (&b"X\x01\0\0\0xcposix\nsystem\nX\x02\0\0\0ls\x85Rs"[..], "posix.system"),
        (b"X\x01\0\0\0x]c__builtin__\neval\nX\x01\0\0\x001\x85Ras", "__builtin__.eval"),
        (b"X\x01\0\0\0xcsubprocess\nPopen\n)\x81s", "subprocess.Popen"),
        // Called, and thrown away.
        (b"cos\nsystem\nX\x02\0\0\0ls\x85R0", "os.system"),
        (b"\x8c\x03pty\x8c\x05spawn\x93\x8c\x02sh\x85R0", "pty.spawn"),
        (b"\x8c\x09os.system\x94\x8c\x05torch\x94h\x01h\x000\x8c\x09os.system\x93)R00", "torch.os.system"),
        // Imported and not called.
        (b"X\x01\0\0\0xcrunpy\nrun_path\ns", "runpy.run_path"),
        // The argument of a harmless call.
        (b"X\x01\0\0\0xcfunctools\npartial\ncos\nsystem\n\x85Rs", "os.system"),
    ] {
        for file in [stored(&hidden(call)), legacy(&hidden(call)), tar(Some(("pickle", &hidden(call))))] {
            let error = refused("hidden.pth", &file);
            assert!(error.contains(name) && error.contains("nothing was run"), "{name}: {error}");
        }
    }
    let computed = refused("computed.pth", &stored(&hidden(b"cbuiltins\nstr\n)R\x8c\x06system\x930")));
    assert!(computed.contains("whose name it computes"), "{computed}");
    let storages = b"\x80\x02cos\nsystem\n(X\x02\0\0\0lstR.";
    let error = refused("first.pth", &tar(Some(("storages", storages))));
    assert!(error.contains("os.system"), "{error}");
}

#[test]
fn what_honest_scripts_leave_beside_the_weights_is_passed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("honest.pth");
    for honest in [
        &b"X\x01\0\0\0xcargparse\nNamespace\n)\x81}X\x02\0\0\0lrK\x01sbs"[..],
        b"X\x01\0\0\0xcpathlib\nPosixPath\n(X\x03\0\0\0runtRs",
        b"X\x01\0\0\0xccollections\ndefaultdict\nc__builtin__\nlist\n\x85RX\x01\0\0\0a]ss",
        b"X\x01\0\0\0xcomegaconf.dictconfig\nDictConfig\n)\x81}X\x02\0\0\0lrK\x01sbs",
        b"X\x01\0\0\0xcfunctools\npartial\nctorch.nn.modules.batchnorm\nBatchNorm2d\n\x85Rs",
    ] {
        std::fs::write(&path, stored(&hidden(honest))).expect("writes");
        let file = CheckpointFile::open(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((file.tensors.len(), file.left_out.len()), (1, 0));
    }
}

/// `bytes` as the pickle of each container.
fn everywhere(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let header = [bytes, b"\x80\x02K\0."].concat();
    vec![
        ("zip.pth", stored(bytes)),
        ("legacy.pth", legacy(bytes)),
        ("plain.pkl", bytes.to_vec()),
        ("root.pth", tar(Some(("pickle", bytes)))),
        ("system.pth", tar(Some(("sys_info", bytes)))),
        ("storages.pth", tar(Some(("storages", &header)))),
        ("tensors.pth", tar(Some(("tensors", &header)))),
    ]
}

#[test]
fn pickles_are_bounded_in_every_container() {
    let long = [&b"\x80\x02\x8e"[..], &(17u64 << 20).to_le_bytes(), &vec![0; 17 << 20], b"."].concat();
    for (name, file) in everywhere(&long) {
        assert!(refused(name, &file).contains("pickle of more than 16777216 bytes"), "{name}");
    }
    let many = [&b"\x80\x02"[..], &vec![b']'; 4 << 20], b"."].concat();
    for (name, file) in everywhere(&many) {
        assert!(refused(name, &file).contains("pickle of more than 2097152 instructions"), "{name}");
    }
    // A class of a long name, fetched often; the reader would hold each.
    let names = [&b"\x80\x02c"[..], &[b'x'; 100_000], b"\ny\nq\0", &b"h\0".repeat(10_000), b"."].concat();
    // A tensor of many extents, likewise.
    let ones = [b"(", &b"K\x01".repeat(50_000)[..], b"t"].concat();
    let mut ranks = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec();
    ranks.extend([b"X\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK\0", &ones[..], &ones, b"\x89}tRq\0"].concat());
    ranks.extend([&b"h\0".repeat(10_000)[..], b"."].concat());
    // Lists of two lists of two lists …
    let laughs: Vec<u8> = (0..60).flat_map(|level| [b'(', b'h', level, b'h', level, b'l', b'q', level + 1]).collect();
    let laughs = [b"\x80\x02]q\0", &laughs[..], b"."].concat();
    // Values that are fetched again are not copied: what is refused is that they are no checkpoint.
    let start = Instant::now();
    for bomb in [names, ranks, laughs] {
        for (name, file) in everywhere(&bomb) {
            refused(name, &file);
        }
    }
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}

#[test]
fn values_that_hold_each_other_end() {
    let one = tensor([2, 3], [3, 1]);
    // Dictionaries of the same two dictionaries of the same two … of a tensor.
    let mut laughs = [&b"\x80\x02}"[..], &text("w"), &one, b"sq\0"].concat();
    for level in 0..60u8 {
        laughs.extend(
            [&b"}("[..], &text("a"), &[b'h', level], &text("b"), &[b'h', level, b'u', b'q', level + 1]].concat(),
        );
    }
    laughs.push(b'.');
    // One that holds itself and a tensor, twice.
    let itself = [&b"\x80\x02}q\0("[..], &text("w"), &one, &text("a"), b"h\0", &text("b"), b"h\0u."].concat();
    // A long key of many dictionaries.
    let mut keys = [&b"\x80\x02}"[..], &text(&"x".repeat(1 << 20)), &one, b"sq\0}("].concat();
    keys.extend((0..10_000u16).flat_map(|key| [&[b'M'][..], &key.to_le_bytes(), b"h\0"].concat()));
    keys.extend(b"u.");
    let start = Instant::now();
    for (bytes, cause) in [(laughs, "refused"), (itself, "refused"), (keys, "refused")] {
        let error = refused("each.pth", &stored(&bytes));
        assert!(error.contains(cause), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
}

#[test]
fn deep_nesting_overflows_no_stack() {
    let one = tensor([2, 3], [3, 1]);
    for (open, close) in [(&b"]"[..], &b"a"[..]), (b"", b"\x85"), (b"}K\0", b"s"), (b"(", b"l"), (b"]", b"\x85a")] {
        for (depth, innermost, opens) in [(100_000, &b"N"[..], true), (100, &one[..], true), (100_000, &one[..], false)]
        {
            let nested = [open.repeat(depth), innermost.to_vec(), close.repeat(depth)].concat();
            let nested = [&text("x")[..], &nested, b"s"].concat();
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("nested.pth");
            std::fs::write(&path, stored(&hidden(&nested))).expect("writes");
            assert_eq!(CheckpointFile::open(&path).is_ok(), opens, "{depth} deep");
        }
    }
    let calls = [b"ctorch._utils\n_rebuild_parameter\n".repeat(100_000), one, b"\x85R".repeat(100_000)].concat();
    let calls = [&text("x")[..], &calls, b"s"].concat();
    assert!(refused("calls.pth", &stored(&hidden(&calls))).contains("calls within calls"));
}

#[test]
fn names_are_bounded_and_differ() {
    let one = tensor([2, 3], [3, 1]);
    let inner = [&text("a")[..], b"}", &text("b"), &one, b"ss"].concat();
    let twice = [&b"\x80\x02}"[..], &inner, &text("a.b"), &one, b"s."].concat();
    let error = refused("twice.pth", &stored(&twice));
    assert!(error.contains("two tensors a.b"), "{error}");
    let listed = [&b"\x80\x02}"[..], &text("a"), b"]", &one, b"as", &text("a.0"), &one, b"s."].concat();
    assert!(refused("listed.pth", &stored(&listed)).contains("two tensors a.0"));

    // A long key above many tensors: the reader makes a name of it for each.
    let mut long = [&b"\x80\x02}"[..], &text(&"x".repeat(100_000)), b"}(K\0", &one, b"q\0"].concat();
    long.extend((1..1000u16).flat_map(|key| [&[b'M'][..], &key.to_le_bytes(), b"h\0"].concat()));
    long.extend(b"us.");
    assert!(refused("long.pth", &stored(&long)).contains("names its tensors in more than"));
}

#[test]
fn bombs_of_views_and_sparse_entries_are_refused() {
    let view = refused("view.pth", &stored(&pickle([40_000, 50_000], [0, 0], b"")));
    assert!(view.contains("bytes of tensors"), "{view}");
    let outside = refused("outside.pth", &stored(&pickle([40_000, 50_000], [50_000, 1], b"")));
    assert!(outside.contains("needs"), "{outside}");
    let mut sparse = tar(None);
    sparse[156] = b'S';
    sparse[257..265].copy_from_slice(b"ustar  \0");
    let sparse = refused("sparse.pth", &sparse);
    assert!(sparse.contains("sparse"), "{sparse}");
}

/// The tensor `w` of other arguments: storage key, extents and strides, and what follows these.
fn odd(key: &[u8], extents: &[u8], strides: &[u8], rest: &[u8]) -> Vec<u8> {
    let storage = [b"(", &text("storage")[..], b"ctorch\nFloatStorage\n", key, &text("cpu"), b"K\x06tQ"].concat();
    [b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage[..], b"K\0", extents, strides, rest, b"tR"].concat()
}

/// `value`, under so many names.
fn many(value: &[u8], names: u16) -> Vec<u8> {
    let again = (1..names).flat_map(|key| [&[b'M'][..], &key.to_le_bytes(), b"h\x07"].concat());
    [b"\x80\x02}(K\0", value, b"q\x07", &again.collect::<Vec<_>>(), b"u."].concat()
}

#[test]
fn what_one_value_holds_is_not_copied_for_each_of_its_names() {
    let (two, one) = (b"K\x02\x85", b"K\x01\x85");
    let (long, ones) = (text(&"k".repeat(1 << 20)), [b"(", &b"K\x01".repeat(100_000)[..], b"t"].concat());
    let classes = [
        b"\x80\x04}",
        &text(&"x".repeat(1 << 20))[..],
        b"q\0",
        &text("y"),
        b"q\x01(",
        &b"h\0h\x01\x93".repeat(1000),
        b"100.",
    ];
    // Modules of one long list of buffers that they do not keep.
    let passing = [b"(", &text(&"n".repeat(1000))[..], b"q\x08", &b"h\x08".repeat(50_000), b"l"].concat();
    let tables = ["_parameters", "_buffers", "_modules"].map(|table| {
        let entries =
            if table == "_parameters" { [&text("w")[..], &tensor([2, 3], [3, 1]), b"s"].concat() } else { vec![] };
        [&text(table)[..], b"}", &entries].concat()
    });
    let state = [b"}(", &tables.concat()[..], &text("_non_persistent_buffers_set"), &passing, b"u"].concat();
    let module = [b"cnet\nNet\n)\x81", &state[..], b"b"].concat();
    let start = Instant::now();
    for (bytes, cause) in [
        (classes.concat(), "imports names of more than"),
        (many(&odd(&long, two, one, b"\x89}"), 1000), "storage that is not known"),
        (many(&odd(&text("0"), &ones, &ones, b"\x89}"), 1000), "arguments that are not known"),
        (many(&module, 1000), "hold each other again and again"),
    ] {
        let error = refused("many.pth", &stored(&bytes));
        assert!(error.contains(cause), "{error}");
    }
    // Keys that are no names: classes, of which one has a long one.
    let class = [b"\x80\x02}c", &[b'x'; 1 << 20][..], b"\ny\nq\x000(", &b"h\0K\x01".repeat(10_000), b"u"].concat();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("classes.pth");
    std::fs::write(&path, stored(&[&class[..], &text("w"), &tensor([2, 3], [3, 1]), b"s."].concat())).expect("writes");
    assert_eq!(CheckpointFile::open(&path).unwrap_or_else(|error| panic!("{error}")).tensors.len(), 1);
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
}

#[test]
fn what_is_read_for_views_is_bounded() {
    // Of its first element and its last, a megabyte apart.
    const BYTES: usize = 1 << 20;
    let elements = (BYTES as u32 / 4).to_le_bytes();
    let storage =
        [b"(", &text("storage")[..], b"ctorch\nFloatStorage\n", &text("0"), &text("cpu"), b"J", &elements, b"tQ"]
            .concat();
    let stride = (BYTES as u32 / 4 - 1).to_le_bytes();
    let view =
        [b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage[..], b"K\0K\x02\x85J", &stride, b"\x85\x89}tR"].concat();
    let far = |names| zip(&[("a/data.pkl", &many(&view, names)), ("a/data/0", &[0; BYTES])], 0, |n| n as u32);
    let error = refused("far.pth", &far(100));
    assert!(error.contains("bytes of tensors"), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("far.pth");
    std::fs::write(&path, far(4)).expect("writes");
    assert!(CheckpointFile::open(&path).is_ok(), "an honest one");
}

#[test]
fn an_archive_of_two_pickles_is_refused() {
    let whole = hidden(b"");
    let file = zip(&[("a/data.pkl", &whole), ("bb/data.pkl", &whole)], 0, |n| n as u32);
    let error = refused("two.pth", &file);
    assert!(error.contains("a/data.pkl") && error.contains("bb/data.pkl"), "{error}");
}

#[test]
fn flags_extents_and_keys_of_other_kinds_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("odd.pth");
    let open = |entries: &[u8]| {
        std::fs::write(&path, stored(&[b"\x80\x02}", entries, b"."].concat())).expect("writes");
        CheckpointFile::open(&path).unwrap_or_else(|error| panic!("{error}"))
    };
    let (two, one, hooks) = (&b"K\x02\x85"[..], &b"K\x01\x85"[..], &b"\x89}"[..]);
    let flagged = [hooks, b"}", &text("neg"), b"\x88s"].concat();
    let file = open(
        &[&text("w")[..], &odd(&text("0"), two, one, &flagged), b"s", &text("b"), &tensor([2, 3], [3, 1]), b"s"]
            .concat(),
    );
    assert!(file.left_out[0].1.contains("negated"), "{:?}", file.left_out);
    let file = open(&[&text("w")[..], &odd(&text("0"), b"ctorch\nSize\nK\x02\x85\x85R", one, hooks), b"s"].concat());
    assert_eq!(file.tensors["w"].read().expect("reads").shape, [2]);
    let none = [&b"\x80\x02}"[..], &text("w"), &odd(&text("0"), two, b"N", hooks), b"s."].concat();
    assert!(refused("none.pth", &stored(&none)).contains("arguments that are not known"));

    // Keys that are floats, beside the weights.
    let floats = [
        &b"}"[..],
        b"G?\xf0\0\0\0\0\0\0",
        &tensor([2, 3], [3, 1]),
        b"sG@\0\0\0\0\0\0\0",
        &tensor([2, 3], [3, 1]),
        b"s",
    ];
    let weights = [&b"}"[..], &text("w"), &tensor([2, 3], [3, 1]), b"s"].concat();
    let file = open(&[&text("a")[..], &floats.concat(), b"s", &text("state_dict"), &weights, b"s"].concat());
    assert_eq!((file.tensors.len(), file.left_out.len()), (1, 2));

    // Parameters as PyTorch pickled them before 1.0, and a module whose parts are called as wrappers are.
    let old = [b"ctorch.nn.parameter\nParameter\n", &tensor([2, 3], [3, 1])[..], b"\x85R(\x88\x89}tb"].concat();
    let variable = [b"ctorch.autograd.variable\nVariable\n(", &tensor([2, 3], [3, 1])[..], b"\x88tR"].concat();
    let file = open(&[&text("w")[..], &old, b"s", &text("v"), &variable, b"s"].concat());
    assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["v", "w"]);
    let table = |name: &str, entries: &[u8]| [&text(name)[..], b"}", entries, b"s"].concat();
    let part = |inner: &[u8]| [b"cnet\nPart\n)\x81}", inner, b"b"].concat();
    let leaf = part(
        &[table("_parameters", &[&text("w")[..], &old, b"s"].concat()), table("_buffers", b""), table("_modules", b"")]
            .concat(),
    );
    let parts = [&text("net")[..], &leaf, b"s", &text("fc"), &leaf, b"s"].concat();
    let module = part(&[table("_parameters", b""), table("_buffers", b""), table("_modules", &parts)].concat());
    std::fs::write(&path, stored(&[b"\x80\x02", &module[..], b"."].concat())).expect("writes");
    let file = CheckpointFile::open(&path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["fc.w", "net.w"]);
}
