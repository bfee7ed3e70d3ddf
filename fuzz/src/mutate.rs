//! Changes to files whose checksums and lengths would make a reader refuse nearly every random change: a part is
//! changed, and the whole put together again. Every fourth change is to the bytes as they are.

use std::io::{Cursor, Read, Write};

use libfuzzer_sys::fuzzer_mutate;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

/// A named part of an archive.
type Part = (Vec<u8>, Vec<u8>);

/// Changes a zip or tar archive; any other file as it is.
pub fn archive(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut seed = Seed(seed);
    let whole = &data[..size];
    let changed = match seed.below(4) {
        0 => None,
        _ if whole.starts_with(b"PK") => {
            unzip(whole).and_then(|parts| zip(&changed(parts, max_size, &mut seed), &mut seed))
        }
        _ if whole.get(257..262) == Some(b"ustar") => {
            untar(whole).and_then(|parts| tar(&changed(parts, max_size, &mut seed)))
        }
        _ => None,
    };
    put(data, size, max_size, changed)
}

/// Changes the header of a safetensors file, whose length comes before it; or the values behind it.
pub fn safetensors(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut seed = Seed(seed);
    let whole = &data[..size];
    let length = whole.first_chunk().and_then(|length| usize::try_from(u64::from_le_bytes(*length)).ok());
    let split = length.and_then(|length| whole[8..].split_at_checked(length));
    let changed = split.filter(|_| seed.below(4) > 0).map(|(header, values)| {
        let (mut header, mut values) = (header.to_vec(), values.to_vec());
        if seed.below(4) > 0 {
            change(&mut header, max_size);
        } else {
            change(&mut values, max_size);
        }
        [&(header.len() as u64).to_le_bytes()[..], &header, &values].concat()
    });
    put(data, size, max_size, changed)
}

/// Changes a field of one of the messages of an ONNX file.
pub fn onnx(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut seed = Seed(seed);
    let changed = match seed.below(4) {
        0 => None,
        _ => message(&data[..size], Some(MODEL)).map(|mut fields| {
            change_message(&mut fields, max_size, &mut seed);
            let mut out = Vec::new();
            put_message(&mut out, &fields);
            out
        }),
    };
    put(data, size, max_size, changed)
}

/// The changed bytes in place of the old ones, if they fit; else those are changed as they are.
fn put(data: &mut [u8], size: usize, max_size: usize, changed: Option<Vec<u8>>) -> usize {
    match changed.filter(|changed| changed.len() <= max_size) {
        Some(changed) => {
            data[..changed.len()].copy_from_slice(&changed);
            changed.len()
        }
        None => fuzzer_mutate(data, size, max_size),
    }
}

/// Lets libFuzzer change `bytes`.
fn change(bytes: &mut Vec<u8>, max_size: usize) {
    let size = bytes.len();
    // Room to grow, though less than would make the file too large in a few changes.
    let room = (size + 64).min(max_size.max(size));
    bytes.resize(room, 0);
    let size = fuzzer_mutate(bytes, size, room);
    bytes.truncate(size);
}

/// A source of numbers (xorshift).
struct Seed(u32);

impl Seed {
    fn below(&mut self, end: usize) -> usize {
        self.0 |= 1;
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize % end.max(1)
    }
}

/// Changes content or name of a part, takes one away, doubles one, or swaps two.
fn changed(mut parts: Vec<Part>, max_size: usize, seed: &mut Seed) -> Vec<Part> {
    if parts.is_empty() {
        return parts;
    }
    let (at, other) = (seed.below(parts.len()), seed.below(parts.len()));
    match seed.below(16) {
        0 => drop(parts.remove(at)),
        1 => parts.push(parts[at].clone()),
        2 => parts.swap(at, other),
        3 => parts[at].1 = parts[other].1.clone(),
        4 => change(&mut parts[at].0, max_size),
        _ => change(&mut parts[at].1, max_size),
    }
    parts
}

fn unzip(bytes: &[u8]) -> Option<Vec<Part>> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).ok()?;
    let mut parts = Vec::new();
    for index in 0..archive.len().min(64) {
        let entry = archive.by_index(index).ok()?;
        let name = entry.name_raw().to_vec();
        let mut content = Vec::new();
        entry.take(1 << 20).read_to_end(&mut content).ok()?;
        parts.push((name, content));
    }
    Some(parts)
}

fn zip(parts: &[Part], seed: &mut Seed) -> Option<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in parts {
        let method = if seed.below(8) == 0 { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        let options = SimpleFileOptions::default().compression_method(method);
        archive.start_file(String::from_utf8_lossy(name), options).ok()?;
        archive.write_all(content).ok()?;
    }
    Some(archive.finish().ok()?.into_inner())
}

fn untar(bytes: &[u8]) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    for entry in tar::Archive::new(bytes).entries().ok()? {
        let entry = entry.ok()?;
        let name = entry.path_bytes().into_owned();
        let mut content = Vec::new();
        entry.take(1 << 20).read_to_end(&mut content).ok()?;
        parts.push((name, content));
    }
    Some(parts)
}

fn tar(parts: &[Part]) -> Option<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in parts {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        let length = name.len().min(100);
        header.as_old_mut().name[..length].copy_from_slice(&name[..length]);
        header.set_cksum();
        archive.append(&header, content.as_slice()).ok()?;
    }
    archive.into_inner().ok()
}

/// The fields of a message of ONNX that are messages.
struct Kind(&'static [(u64, &'static Kind)]);

const MODEL: &Kind = &Kind(&[(7, GRAPH), (14, ENTRY)]);
const GRAPH: &Kind = &Kind(&[(1, NODE), (5, TENSOR)]);
const NODE: &Kind = &Kind(&[(5, ATTRIBUTE)]);
const ATTRIBUTE: &Kind = &Kind(&[(5, TENSOR)]);
const TENSOR: &Kind = &Kind(&[(13, ENTRY)]);
const ENTRY: &Kind = &Kind(&[]);

/// A field of a message of Protocol Buffers.
#[derive(Clone)]
struct Field {
    tag: u64,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Number(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

/// The fields of a message, if it is whole.
fn message(mut bytes: &[u8], kind: Option<&'static Kind>) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            1 => Value::Fixed(take(&mut bytes, 8)?.to_vec()),
            5 => Value::Fixed(take(&mut bytes, 4)?.to_vec()),
            2 => {
                let length = varint(&mut bytes)?;
                let taken = take(&mut bytes, length)?;
                let kind = kind.and_then(|kind| kind.0.iter().find(|(number, _)| *number == tag >> 3));
                let inner = kind.and_then(|(_, kind)| message(taken, Some(kind)));
                inner.map_or_else(|| Value::Bytes(taken.to_vec()), Value::Message)
            }
            _ => return None,
        };
        fields.push(Field { tag, value });
    }
    Some(fields)
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for position in 0..10 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).checked_shl(7 * position)?;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_message(out: &mut Vec<u8>, fields: &[Field]) {
    for field in fields {
        put_varint(out, field.tag);
        match &field.value {
            Value::Number(number) => put_varint(out, *number),
            Value::Fixed(bytes) => out.extend(bytes),
            Value::Bytes(bytes) => {
                put_varint(out, bytes.len() as u64);
                out.extend(bytes);
            }
            Value::Message(fields) => {
                let mut inner = Vec::new();
                put_message(&mut inner, fields);
                put_varint(out, inner.len() as u64);
                out.extend(inner);
            }
        }
    }
}

/// Changes one field of the message, or of one within it; or takes it away, doubles it, or swaps two.
fn change_message(fields: &mut Vec<Field>, max_size: usize, seed: &mut Seed) {
    if fields.is_empty() {
        return;
    }
    let (at, other) = (seed.below(fields.len()), seed.below(fields.len()));
    match (seed.below(16), &mut fields[at].value) {
        (0, _) => drop(fields.remove(at)),
        (1, _) => fields.insert(other, fields[at].clone()),
        (2, _) => fields.swap(at, other),
        (3, _) => fields[at].value = fields[other].value.clone(),
        (_, Value::Message(fields)) => change_message(fields, max_size, seed),
        (_, Value::Bytes(bytes) | Value::Fixed(bytes)) if bytes.is_empty() => {}
        (_, Value::Bytes(bytes)) => change(bytes, max_size),
        (_, Value::Fixed(bytes)) => {
            let length = bytes.len();
            change(bytes, max_size);
            bytes.resize(length, 0);
        }
        (_, Value::Number(number)) => {
            let mut bytes = number.to_le_bytes();
            let size = bytes.len();
            fuzzer_mutate(&mut bytes, size, size);
            *number = u64::from_le_bytes(bytes);
        }
    }
}
