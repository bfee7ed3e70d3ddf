//! Protocol Buffers' wire format, as far as ONNX needs it. It is read from a file of which nothing is held but what was
//! asked for: values stay where they are, as ranges of bytes. <https://protobuf.dev/programming-guides/encoding>

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// Fields that are read from one file at most: a ResNet-152 has some ten thousand, and each takes memory.
const MAX_FIELDS: u32 = 1 << 18;

/// The longest text, in bytes.
const MAX_TEXT: u64 = 1 << 20;

/// What remains of a message: the bytes from where the last field ended to its own end.
pub(super) type Message = Range<u64>;

/// A field of a message.
pub(super) struct Field {
    pub number: u64,
    /// Its value, if that is a number of variable length.
    pub varint: Option<u64>,
    /// Where its value lies, its length left out.
    pub range: Range<u64>,
}

/// A file that is read.
pub(super) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    length: u64,
    at: u64,
    fields: u32,
}

impl Reader {
    pub fn open(path: &Path) -> Result<Self> {
        let io = |error| Error::io(path, error);
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Ok(Self { path: path.to_owned(), file: BufReader::new(file), length, at: 0, fields: 0 })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn message(&self) -> Message {
        0..self.length
    }

    /// That the file is damaged.
    pub fn bad(&self, message: impl std::fmt::Display) -> Error {
        Error::checkpoint(&self.path, format!("damaged ONNX file: {message}"))
    }

    /// The next field of `message`, which goes on after it; `None` at its end.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it reaches beyond the message, or is written as ONNX never does.
    pub fn field(&mut self, message: &mut Message) -> Result<Option<Field>> {
        if message.is_empty() {
            return Ok(None);
        }
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(self.bad(format!("it has more than {MAX_FIELDS} parts, far more than any ResNet")));
        }
        self.seek(message.start)?;
        let tag = self.varint(message.end)?;
        let mut varint = None;
        let mut start = self.at;
        let length = match tag & 7 {
            0 => {
                varint = Some(self.varint(message.end)?);
                self.at - start
            }
            1 => 8,
            2 => {
                let length = self.varint(message.end)?;
                start = self.at;
                length
            }
            5 => 4,
            other => return Err(self.bad(format!("a field of wire type {other} at byte {start}"))),
        };
        if length > message.end - start {
            return Err(self.bad(format!(
                "{length} bytes are declared at byte {start}, where {} are left: was the download interrupted?",
                message.end - start
            )));
        }
        message.start = start + length;
        Ok(Some(Field { number: tag >> 3, varint, range: start..start + length }))
    }

    /// All bytes of a range that [`Reader::field`] gave.
    pub fn bytes(&mut self, range: &Range<u64>) -> Result<Vec<u8>> {
        self.seek(range.start)?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact(&mut bytes).map_err(|error| Error::io(&self.path, error))?;
        self.at = range.end;
        Ok(bytes)
    }

    /// A text.
    pub fn text(&mut self, range: &Range<u64>) -> Result<String> {
        if range.end - range.start > MAX_TEXT {
            return Err(self.bad(format!("a text of {} bytes at byte {}", range.end - range.start, range.start)));
        }
        String::from_utf8(self.bytes(range)?).map_err(|_| self.bad(format!("no UTF-8 at byte {}", range.start)))
    }

    /// The numbers of a repeated field: one by itself, or many packed.
    pub fn numbers(&mut self, field: &Field, numbers: &mut Vec<i64>) -> Result<()> {
        if let Some(number) = field.varint {
            numbers.push(number as i64);
            return Ok(());
        }
        if field.range.end - field.range.start > u64::from(MAX_FIELDS) {
            return Err(self.bad(format!("too long a list of numbers at byte {}", field.range.start)));
        }
        self.seek(field.range.start)?;
        while self.at < field.range.end {
            let number = self.varint(field.range.end)?;
            numbers.push(number as i64);
        }
        Ok(())
    }

    fn seek(&mut self, to: u64) -> Result<()> {
        // Within the buffer where it can be.
        let moved = match i64::try_from(to).ok().zip(i64::try_from(self.at).ok()) {
            Some((to, at)) => self.file.seek_relative(to - at),
            None => self.file.seek(SeekFrom::Start(to)).map(drop),
        };
        self.at = to;
        moved.map_err(|error| Error::io(&self.path, error))
    }

    fn varint(&mut self, end: u64) -> Result<u64> {
        let start = self.at;
        let number = decode(|| {
            let buffer = self.file.fill_buf().map_err(|error| Error::io(&self.path, error))?;
            let byte = buffer.first().copied().filter(|_| self.at < end);
            self.file.consume(usize::from(byte.is_some()));
            self.at += u64::from(byte.is_some());
            Ok(byte)
        })?;
        number.ok_or_else(|| self.bad(format!("no whole number at byte {start}")))
    }
}

/// Decodes a number of variable length; `None` if it ends early, or has more than 64 bits.
fn decode(mut next: impl FnMut() -> Result<Option<u8>>) -> Result<Option<u64>> {
    let mut number = 0;
    for position in 0..10 {
        let Some(byte) = next()? else { return Ok(None) };
        if position == 9 && byte > 1 {
            return Ok(None);
        }
        number |= u64::from(byte & 0x7f) << (7 * position);
        if byte < 0x80 {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// The numbers that `bytes` are, if they are whole ones.
pub(super) fn unpacked(bytes: &[u8]) -> Option<Vec<u64>> {
    let mut bytes = bytes.iter().copied();
    let mut numbers = Vec::new();
    while bytes.len() > 0 {
        numbers.push(decode(|| Ok(bytes.next())).ok()??);
    }
    Some(numbers)
}

/// Appends a number of variable length.
pub(super) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a field that is a number.
pub(super) fn put_number(out: &mut Vec<u8>, field: u64, number: i64) {
    put_varint(out, field << 3);
    put_varint(out, number as u64);
}

/// Appends a field that is a 32-bit float.
pub(super) fn put_float(out: &mut Vec<u8>, field: u64, number: f32) {
    put_varint(out, field << 3 | 5);
    out.extend(number.to_le_bytes());
}

/// Appends the beginning of a field of `length` bytes, which are to follow.
pub(super) fn put_length(out: &mut Vec<u8>, field: u64, length: u64) {
    put_varint(out, field << 3 | 2);
    put_varint(out, length);
}

/// Appends a field of bytes: a text, or a message.
pub(super) fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: impl AsRef<[u8]>) {
    put_length(out, field, bytes.as_ref().len() as u64);
    out.extend(bytes.as_ref());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_the_specification_says() {
        for (number, bytes) in [
            (0, &[0][..]),
            (127, &[0x7f]),
            // The example of the specification.
            (150, &[0x96, 0x01]),
            (u64::MAX, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ] {
            let mut out = Vec::new();
            put_varint(&mut out, number);
            assert_eq!(out, bytes);
            assert_eq!(unpacked(bytes), Some(vec![number]));
        }
        assert_eq!(unpacked(&[0x96, 0x01, 0x05]), Some(vec![150, 5]));
        assert_eq!(unpacked(&[0x96]), None, "ends early");
        assert_eq!(unpacked(&[0xff; 11]), None, "has more than ten bytes");
        assert_eq!(unpacked(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), None, "has 65 bits");
    }
}
