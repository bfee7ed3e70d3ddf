//! How much memory decoding takes at its peak, measured on a process of its own.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use unfreeze::data::decode;

use crate::common::shared;
use crate::made;

/// Decodes all files of the folder in the environment and prints the most memory that this took, in MiB. What the
/// test runner itself takes, about 5 MiB, is in it.
#[test]
#[ignore = "runs as a process of its own, started by the other tests here"]
fn child() {
    let folder = std::env::var_os("DECODING_FOLDER").expect("a folder from the parent test");
    let mut folders = vec![Path::new(&folder).to_owned()];
    let mut decoded = 0;
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => decoded += u32::from(decode(path).is_ok()),
            }
        }
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    println!("decoded {decoded} peak {}", peak >> 10);
}

/// Files decoded, and the peak in MiB.
fn measure(folder: &Path) -> (u32, u64) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["memory::child", "--exact", "--ignored", "--nocapture"]).env("DECODING_FOLDER", folder);
    let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let (_, rest) = output.split_once("decoded ").expect(&output);
    let (decoded, rest) = rest.split_once(" peak ").unwrap();
    (decoded.parse().unwrap(), rest.split_whitespace().next().unwrap().parse().unwrap())
}

#[test]
fn promises_of_pixels_take_no_memory() {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in made::bombs() {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let (decoded, peak) = measure(folder.path());
    eprintln!("bombs: {peak} MiB");
    assert_eq!(decoded, 0);
    assert!(peak < 32, "{peak} MiB");
}

#[test]
fn the_measure_sees_what_an_image_takes() {
    let folder = TempDir::new().unwrap();
    made::gradient(5000, 4000).save(folder.path().join("large.png")).unwrap();
    let (decoded, peak) = measure(folder.path());
    assert_eq!(decoded, 1);
    // 57 MiB are the pixels.
    assert!((57..57 + 32).contains(&peak), "{peak} MiB");
}

#[test]
fn nasty_files_take_little_memory() {
    let Some(folder) = shared("data/nasty") else { return };
    let (decoded, peak) = measure(&folder);
    eprintln!("nasty: {decoded} files decoded, {peak} MiB");
    // The largest image has 1512 × 2688 pixels, 12 MiB, and is progressive.
    assert!(decoded > 100 && peak < 96, "{peak} MiB");
}
