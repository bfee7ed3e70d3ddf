//! What is refused before `pytorch-reader` sees it: containers that would unpack to far more memory than the file
//! takes, and pickles that exist to run code.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use crate::{Error, Result};

/// `torch.save` compresses nothing, and weights hardly shrink: an entry that unpacks to more than eight times its
/// size and a mebibyte is a bomb.
const MAX_RATIO: u64 = 8;
const SLACK: u64 = 1 << 20;

/// Parsing takes up to a hundred times a pickle's own size; that of a large ResNet with its optimizer is a megabyte.
const MAX_PICKLE: u64 = 16 << 20;

/// Modules and built-in functions that a checkpoint names only to run code; none whose name an honest project may
/// have taken. Nothing is ever run; refusing the file tells its owner what it is.
const REFUSED_MODULES: [&str; 13] = [
    "os",
    "posix",
    "nt",
    "subprocess",
    "sys",
    "shutil",
    "socket",
    "pty",
    "runpy",
    "importlib",
    "ctypes",
    "webbrowser",
    "marshal",
];
const REFUSED_BUILTINS: [&str; 9] =
    ["eval", "exec", "execfile", "compile", "open", "getattr", "setattr", "__import__", "breakpoint"];

/// Refuses a file whose pickle mentions a function that runs code.
pub(super) fn check_calls(path: &Path, types: &[String]) -> Result<()> {
    match types.iter().find(|name| runs_code(name)) {
        None => Ok(()),
        Some(name) => Err(Error::checkpoint(
            path,
            format!("asks Python to call {name} while it loads: refused, nothing was run; do not trust this file"),
        )),
    }
}

fn runs_code(name: &str) -> bool {
    let (module, item) = name.split_once('.').unwrap_or((name, ""));
    REFUSED_MODULES.contains(&module)
        || (matches!(module, "builtins" | "__builtin__") && REFUSED_BUILTINS.contains(&item))
}

/// Refuses tensors that take far more memory than their file: views that repeat elements (`expand`) cost a few
/// bytes each in a file.
pub(super) fn check_total(path: &Path, sizes: impl Iterator<Item = u64>) -> Result<()> {
    let file = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
    let total = sizes.fold(0, u64::saturating_add);
    if total > file.saturating_mul(MAX_RATIO).saturating_add(SLACK) {
        return Err(Error::checkpoint(path, format!("declares {total} bytes of tensors in {file} bytes: refused")));
    }
    Ok(())
}

/// Refuses archives that unpack to far more than their size.
pub(super) fn check_container(path: &Path, head: &[u8]) -> Result<()> {
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    let refusal = if head.starts_with(b"PK") {
        zip_refusal(file)
    } else if head.get(257..262) == Some(b"ustar") {
        tar_refusal(file)
    } else {
        Ok(None)
    };
    match refusal.map_err(|error| Error::io(path, error))? {
        None => Ok(()),
        Some(message) => Err(Error::checkpoint(path, message)),
    }
}

/// A sparse entry of a tar archive may claim any number of zeros, which the reader would hold in memory.
fn tar_refusal(file: File) -> io::Result<Option<String>> {
    let mut file = BufReader::new(file);
    let mut block = [0; 512];
    loop {
        match file.read_exact(&mut block) {
            Ok(()) if block[257..].starts_with(b"ustar") && block[156] == b'S' => {
                return Ok(Some("is a tar archive with sparse entries: refused".into()));
            }
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Looks through a zip archive's directory for entries that unpack to far more than they take.
fn zip_refusal(mut file: File) -> io::Result<Option<String>> {
    const ENTRY: usize = 46;
    let Some(directory) = zip_directory(&mut file)? else {
        return Ok(Some("is a truncated or damaged zip archive: was the download interrupted?".into()));
    };
    let mut rest = directory.as_slice();
    while !rest.is_empty() {
        let lengths = [28, 30, 32].map(|at| number::<2>(rest, at));
        let (true, [Some(name), Some(extra), Some(comment)]) = (rest.starts_with(b"PK\x01\x02"), lengths) else {
            return Ok(Some("has a damaged zip directory".into()));
        };
        let (method, packed, unpacked) = (number::<2>(rest, 10), number::<4>(rest, 20), number::<4>(rest, 24));
        let stored = method == Some(0);
        let bomb = unpacked > packed.map(|packed| packed * MAX_RATIO + SLACK);
        if !stored && bomb {
            return Ok(Some("is a zip archive that unpacks to far more than its size: refused".into()));
        }
        let pickle = rest.get(ENTRY..).and_then(|rest| rest.get(..name as usize)).is_some_and(|n| n.ends_with(b".pkl"));
        if pickle && unpacked > Some(MAX_PICKLE) {
            return Ok(Some(format!("has a pickle of more than {MAX_PICKLE} bytes: refused")));
        }
        rest = rest.get(ENTRY + (name + extra + comment) as usize..).unwrap_or_default();
    }
    Ok(None)
}

/// The directory of a zip archive, if its end records are where they belong.
fn zip_directory(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    const END: usize = 22;
    const LOCATOR: usize = 20;
    let length = file.metadata()?.len();
    let tail_length = length.min((END + LOCATOR + usize::from(u16::MAX)) as u64);
    let tail = read_at(file, length - tail_length, tail_length)?;

    // The last end record whose comment reaches the end of the file.
    let ends = |at: &usize| {
        tail[*at..].starts_with(b"PK\x05\x06")
            && number::<2>(&tail, at + 20).is_some_and(|comment| at + END + comment as usize == tail.len())
    };
    let Some(end) = (0..tail.len()).rev().find(ends) else { return Ok(None) };
    let (mut size, mut start) = (number::<4>(&tail, end + 12), number::<4>(&tail, end + 16));
    if let Some(locator) = end.checked_sub(LOCATOR).filter(|at| tail[*at..].starts_with(b"PK\x06\x07")) {
        let record = number::<8>(&tail, locator + 8).unwrap_or(length);
        let record = read_at(file, record, 56)?;
        (size, start) = (number::<8>(&record, 40), number::<8>(&record, 48));
    }
    match (start, size) {
        (Some(start), Some(size)) if start.checked_add(size).is_some_and(|end| end <= length) => {
            read_at(file, start, size).map(Some)
        }
        _ => Ok(None),
    }
}

/// At most `length` bytes of the file from `start`.
fn read_at(file: &mut File, start: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start.min(i64::MAX as u64)))?;
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The little-endian number of `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let digits = bytes.get(at..)?.get(..N)?;
    Some(digits.iter().rev().fold(0, |number, &digit| number << 8 | u64::from(digit)))
}
