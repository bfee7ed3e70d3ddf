//! Hashes of files, and those that are noted beside them.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Why a file is not the one of which the hash, or its first digits, are `published`; `None` if it is. A hash that was
/// noted beside it, or that names what is stored, must be its own too. Without any there is nothing to say.
pub(super) fn flaw(path: &Path, published: Option<&str>) -> Option<String> {
    let noted = match noted(path) {
        Ok(noted) => noted,
        Err(reason) => return Some(reason),
    };
    let stored = fs::canonicalize(path).ok();
    let stored = stored.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()).filter(|n| is_sha256(n));
    let known: Vec<&str> = [published, noted.as_deref(), stored].into_iter().flatten().collect();
    if known.is_empty() {
        return None;
    }
    match sha256(path) {
        Ok(found) => {
            let wrong = known.into_iter().find(|expected| !found.starts_with(expected))?;
            Some(format!("its sha256 is {found}, not {wrong}"))
        }
        Err(error) => Some(error.to_string()),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".sha256");
    name.into()
}

/// The hash in `NAME.sha256`, if there is such a file.
fn noted(path: &Path) -> Result<Option<String>, String> {
    let note = beside(path);
    let wrong = |reason: &str| format!("{}: {reason}", note.display());
    match fs::read_to_string(&note) {
        Ok(text) => match text.split_whitespace().map(str::to_lowercase).find(|word| is_sha256(word)) {
            Some(hash) => Ok(Some(hash)),
            None => Err(wrong("there is no sha256 in it")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(&error.to_string())),
    }
}

/// Notes the hash of the file that is to lie at `path`, as `sha256sum` writes it.
#[cfg(feature = "fetch")]
pub(in crate::checkpoint) fn record(path: &Path, hash: &str) -> crate::Result<()> {
    use std::io::Write;
    let name = path.file_name().unwrap_or_default().display();
    crate::files::write_atomically(&beside(path), |file| writeln!(file, "{hash}  {name}"))
}

pub(in crate::checkpoint) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && is_hexadecimal(text)
}

/// Whether all of it are hexadecimal digits, in small letters.
pub(super) fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// The SHA-256 of a file's content, in hexadecimal digits.
pub(in crate::checkpoint) fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => hash.update(&buffer[..count]),
        }
    }
}
