//! Running the program as a user does.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::Once,
};

use serde_json::Value;

/// What it answered.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs the program; arguments are separated by spaces, `{}` stands for the next of `paths`.
pub fn unfreeze(arguments: &str, paths: &[&Path]) -> Ran {
    ran(command(arguments, paths).output().unwrap())
}

/// The program with these arguments, not yet started. What it keeps from one run to the next is kept out of the user's
/// folders.
pub fn command(arguments: &str, paths: &[&Path]) -> Command {
    let mut paths = paths.iter();
    let arguments = arguments.split_whitespace().map(|argument| match argument {
        "{}" => paths.next().expect("a path for each {}").as_os_str().to_owned(),
        text => text.into(),
    });
    // What the tests before have left there no other test finds again.
    const CACHE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/cache");
    static EMPTY: Once = Once::new();
    EMPTY.call_once(|| drop(fs::remove_dir_all(CACHE)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_unfreeze"));
    command.args(arguments.collect::<Vec<_>>()).env("UNFREEZE_CACHE", CACHE);
    command
}

/// What a finished program answered, which is never a panic.
pub fn ran(output: Output) -> Ran {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let ran = Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) };
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    ran
}

impl Ran {
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.err);
        self
    }

    /// Standard output, an object to a line.
    pub fn objects(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
