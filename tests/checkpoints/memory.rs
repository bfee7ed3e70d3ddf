//! How much memory a conversion takes at its peak, measured on a process of its own.
#![cfg(target_os = "linux")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Seek, Write},
    path::Path,
    process::Command,
};

use unfreeze::checkpoint::{CheckpointFile, Conversion, ConvertOptions, FileDtype, Target};

use crate::containers::{archive, text};

/// Bytes of each tensor, and how many there are: 64 MiB in all.
const TENSOR: usize = 4 << 20;
const COUNT: usize = 16;

/// Kilobytes from `/proc/self/status`.
fn status(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

/// Converts to each target in turn, and prints how much more memory that took than was taken before, in MiB.
#[test]
#[ignore = "runs as a process of its own, started by the test below"]
fn child() {
    let source = std::env::var_os("CONVERSION_SOURCE").expect("a file from the parent test");
    let before = status("VmRSS");
    let folder = Path::new(&source).parent().expect("a folder");
    for (input, output, target, dtype) in [
        (Path::new(&source), "half.pth", Target::Pth, Some(FileDtype::F16)),
        (&folder.join("large.pth.tar"), "whole.safetensors", Target::Safetensors, None),
        (&folder.join("half.pth"), "back.safetensors", Target::Safetensors, Some(FileDtype::F32)),
        (&folder.join("half.pth"), "same.safetensors", Target::Safetensors, Some(FileDtype::F16)),
    ] {
        let options = ConvertOptions { target, dtype, ..ConvertOptions::default() };
        let plan = Conversion::plan(CheckpointFile::open(input).expect("opens"), &options).expect("plans");
        plan.write(folder.join(output)).expect("writes");
    }
    println!("took {}", (status("VmHWM") - before) >> 10);
}

#[test]
fn a_conversion_takes_little_more_than_its_largest_tensor() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("large.safetensors");
    let entry = |at: usize| {
        let place = [at * TENSOR, (at + 1) * TENSOR];
        (format!("tensor{at}"), serde_json::json!({ "dtype": "F32", "shape": [TENSOR / 4], "data_offsets": place }))
    };
    let header = serde_json::json!((0..COUNT).map(entry).collect::<BTreeMap<_, _>>()).to_string();
    let mut file = File::create(&source).expect("creates");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("writes");
    file.write_all(header.as_bytes()).expect("writes");
    // Zeros that take no room on the disk.
    let values = file.stream_position().expect("tells");
    file.set_len(values + (COUNT * TENSOR) as u64).expect("grows");

    fs::write(folder.path().join("large.pth.tar"), large_tar()).expect("writes");

    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["memory::child", "--exact", "--ignored", "--nocapture"]).env("CONVERSION_SOURCE", &source);
    let output = command.output().expect("runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let took = text.split_once("took ").and_then(|(_, rest)| rest.split_whitespace().next()).expect(&text);
    let took: u64 = took.parse().expect("a number");
    eprintln!("{took} MiB");
    assert!(took < 24, "{took} MiB for tensors of 4 MiB");
    let size = |name: &str| fs::metadata(folder.path().join(name)).expect("is there").len() >> 20;
    assert_eq!((size("same.safetensors"), size("whole.safetensors")), (32, 64));
}

/// As many tensors in the layout before PyTorch 0.1.10.
fn large_tar() -> Vec<u8> {
    let elements = (TENSOR / 4) as i64;
    let count = [b"\x80\x02K", &[COUNT as u8][..], b"."].concat();
    let (mut storages, mut tensors, mut root) = (count.clone(), count, b"\x80\x02}".to_vec());
    for key in 0..COUNT as u8 {
        storages.extend([b"\x80\x02K", &[key][..], b"X\x03\0\0\0cpuctorch\nFloatStorage\n\x87."].concat());
        storages.extend(elements.to_le_bytes());
        storages.resize(storages.len() + TENSOR, 0);
        tensors.extend([b"\x80\x02K", &[key][..], b"K", &[key], b"ctorch\nFloatTensor\n\x87."].concat());
        tensors.extend([1, elements, 1, 0].map(i64::to_le_bytes).concat());
        root.extend([&text(&format!("tensor{key}"))[..], &text(&key.to_string()), b"Qs"].concat());
    }
    storages.extend(b"\x80\x02].");
    root.push(b'.');
    let system = b"\x80\x02}X\x0d\0\0\0little_endian\x88s.";
    archive([("sys_info", &system[..]), ("storages", &storages), ("tensors", &tensors), ("pickle", &root)])
}
