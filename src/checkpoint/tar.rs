//! The layout before PyTorch 0.1.10: a tar archive of entries in which pickles alternate with numbers and values.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use ::tar::EntryType;

use super::pickle::{self, End, Named, Scan};
use crate::{Error, Result};

/// Walks over every pickle of an archive as the reader will, and returns what they name.
pub(super) fn named(path: &Path) -> Result<Named> {
    let fail = |message: String| Error::checkpoint(path, message);
    let io = |error| Error::io(path, error);
    let mut archive = ::tar::Archive::new(BufReader::new(File::open(path).map_err(io)?));
    let mut named = Named::default();
    for entry in archive.entries().map_err(io)? {
        let damaged =
            |error: io::Error| fail(format!("is a truncated or damaged tar archive ({error}): fetch it again"));
        let mut entry = entry.map_err(damaged)?;
        // It may claim any number of zeros, which the reader would hold in memory.
        if entry.header().entry_type() == EntryType::GNUSparse {
            return Err(fail("is a tar archive with sparse entries: refused".into()));
        }
        let name = entry.path().map_err(damaged)?.to_string_lossy().trim_start_matches("./").to_owned();
        if !matches!(name.as_str(), "sys_info" | "storages" | "tensors" | "pickle") {
            continue;
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(damaged)?;
        let mut walk = Walk { rest: &bytes, named: &mut named };
        let walked = match name.as_str() {
            "storages" => walk.storages(),
            "tensors" => walk.tensors(),
            _ => walk.pickle().map(drop),
        };
        walked.map_err(|error| fail(format!("entry {name} of the tar archive {error}")))?;
    }
    Ok(named)
}

struct Walk<'a, 'b> {
    rest: &'a [u8],
    named: &'b mut Named,
}

impl<'a> Walk<'a, '_> {
    fn pickle(&mut self) -> Result<Scan<'a>, String> {
        let (whole, bounded) = (self.rest.len(), &self.rest[..self.rest.len().min(pickle::MAX_BYTES)]);
        let scan = pickle::scan(bounded)?;
        self.named.extend(scan.named.clone());
        if scan.end == End::Cut && whole > bounded.len() {
            return Err(format!("has a pickle of more than {} bytes: refused", pickle::MAX_BYTES));
        }
        if scan.end != End::Whole {
            return Err("has a damaged pickle: was the download interrupted?".into());
        }
        self.rest = &self.rest[scan.length..];
        Ok(scan)
    }

    fn skip(&mut self, bytes: Option<u64>) -> Result<&'a [u8], String> {
        let split = bytes.and_then(|bytes| self.rest.split_at_checked(usize::try_from(bytes).ok()?));
        let (skipped, rest) = split.ok_or("is shorter than it says: was the download interrupted?")?;
        self.rest = rest;
        Ok(skipped)
    }

    fn number(&mut self) -> Result<u64, String> {
        let digits = self.skip(Some(8))?;
        Ok(digits.iter().rev().fold(0, |number, &digit| number << 8 | u64::from(digit)))
    }

    fn count(&mut self) -> Result<u64, String> {
        self.pickle()?.number().ok_or_else(|| "does not begin with a count".into())
    }

    /// A count, then of each storage key, place and type, its number of elements, and these; then a list of views.
    fn storages(&mut self) -> Result<(), String> {
        for _ in 0..self.count()? {
            let scan = self.pickle()?;
            let mut types = scan.named.imports.iter();
            let (Some(storage), None) = (types.next(), types.next()) else {
                return Err("has a storage of no single type".into());
            };
            let size = match storage.name.as_str() {
                "DoubleStorage" | "LongStorage" => 8,
                "FloatStorage" | "IntStorage" => 4,
                "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
                _ => 1,
            };
            let bytes = self.number()?.checked_mul(size);
            self.skip(bytes)?;
        }
        self.pickle().map(drop)
    }

    /// A count, then of each tensor key, storage and type, and in binary rank, padding, sizes, strides and offset.
    fn tensors(&mut self) -> Result<(), String> {
        for _ in 0..self.count()? {
            self.pickle()?;
            let rank = self.number()? & u64::from(u32::MAX);
            self.skip(Some(16 * rank + 8))?;
        }
        Ok(())
    }
}
