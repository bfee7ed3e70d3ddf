//! A part of a file in which pickles and binary values follow each other.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Seek, SeekFrom},
};

use super::super::pickle::{self, End, Global, MAX_BYTES, Pickle};

/// How much is read at first of a pickle, whose length nothing tells: PyTorch's are either short or the last.
const WINDOW: usize = 4096;

/// What a stream's end or damage is called.
pub(super) const CUT: &str = "is truncated or damaged: was the download interrupted?";

pub(super) struct Stream<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    /// All that the pickles import, those of a damaged one too.
    pub imports: BTreeSet<Global>,
}

impl<'a> Stream<'a> {
    /// The bytes `at .. end` of a file.
    pub fn new(file: &'a File, at: u64, end: u64) -> Self {
        Self { file, at, end, imports: BTreeSet::new() }
    }

    /// Where what comes next begins in the file.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Takes the pickle that is next.
    pub fn pickle(&mut self) -> Result<Pickle, String> {
        let rest = self.end - self.at;
        let mut window = WINDOW;
        loop {
            let length = rest.min(window as u64) as usize;
            let pickle = pickle::parse(&self.read(length)?)?;
            match pickle.end {
                End::Cut if (length as u64) < rest && window < MAX_BYTES => window = (window * 16).min(MAX_BYTES),
                end => {
                    self.imports.extend(pickle.imports.iter().cloned());
                    return match end {
                        End::Whole => {
                            self.at += pickle.length as u64;
                            Ok(pickle)
                        }
                        End::Cut if (length as u64) < rest => Err(too_long()),
                        End::Cut => Err(CUT.into()),
                        End::Damaged => Err("has a damaged pickle: was the download interrupted?".into()),
                    };
                }
            }
        }
    }

    /// Takes a number of 64 bits, which must not be below zero.
    pub fn number(&mut self) -> Result<usize, String> {
        let bytes = self.read(8)?;
        self.at += 8;
        let number = bytes.first_chunk().map(|bytes| i64::from_le_bytes(*bytes));
        number.and_then(|number| number.try_into().ok()).ok_or_else(|| "has a size below zero".into())
    }

    /// Takes a number of 32 bits, and 4 bytes behind it, which may be anything.
    pub fn number_of_32_bits(&mut self) -> Result<usize, String> {
        let bytes = self.read(8)?;
        self.at += 8;
        let number = bytes.first_chunk().map(|bytes| i32::from_le_bytes(*bytes));
        number.and_then(|number| number.try_into().ok()).ok_or_else(|| "has a size below zero".into())
    }

    /// Passes over so many bytes.
    pub fn skip(&mut self, bytes: Option<usize>) -> Result<(), String> {
        let at = bytes.and_then(|bytes| self.at.checked_add(bytes as u64)).filter(|at| *at <= self.end);
        self.at = at.ok_or("is shorter than it says: was the download interrupted?")?;
        Ok(())
    }

    /// The next bytes, which stay next.
    fn read(&self, length: usize) -> Result<Vec<u8>, String> {
        if length as u64 > self.end - self.at {
            return Err(CUT.into());
        }
        let (mut file, mut bytes) = (self.file, vec![0; length]);
        file.seek(SeekFrom::Start(self.at))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| error.to_string())?;
        Ok(bytes)
    }
}

/// That a pickle is longer than any is read.
pub(super) fn too_long() -> String {
    format!("has a pickle of more than {MAX_BYTES} bytes: refused")
}
