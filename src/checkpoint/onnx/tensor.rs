//! A tensor of an ONNX file: what it is, and where its values lie.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    path::{Component, Path, PathBuf},
};

use super::wire::{Field, Message, Reader, unpacked};
use crate::{
    Error, Result,
    checkpoint::{FileDtype, FileTensor},
};

/// ONNX's numbers of element types, what they are here, and the field of `TensorProto` that has their values where
/// there are no raw bytes. <https://onnx.ai/onnx/repo-docs/IR.html>
const DTYPES: [(u64, FileDtype, u64); 13] = [
    (1, FileDtype::F32, 4),
    (2, FileDtype::U8, 5),
    (3, FileDtype::I8, 5),
    (4, FileDtype::U16, 5),
    (5, FileDtype::I16, 5),
    (6, FileDtype::I32, 5),
    (7, FileDtype::I64, 7),
    (9, FileDtype::Bool, 5),
    (10, FileDtype::F16, 5),
    (11, FileDtype::F64, 10),
    (12, FileDtype::U32, 11),
    (13, FileDtype::U64, 11),
    (16, FileDtype::BF16, 5),
];

/// ONNX's number of `dtype`, as files are written with it.
pub(super) fn number(dtype: FileDtype) -> i64 {
    DTYPES.iter().find(|(_, known, _)| *known == dtype).map_or(0, |(number, ..)| *number as i64)
}

/// A tensor whose values are in a file until they are asked for.
#[derive(Clone, Debug)]
pub(super) struct OnnxTensor {
    pub name: String,
    /// The element type; its number if it is none of ours.
    pub dtype: Result<FileDtype, u64>,
    pub shape: Vec<usize>,
    /// The file of the values: the ONNX file itself, or one beside it.
    pub file: PathBuf,
    ranges: Vec<Range<u64>>,
    /// Whether each value is a number of variable length.
    varints: bool,
    onnx: PathBuf,
}

/// Where a tensor says that its values are.
#[derive(Default)]
struct Fields {
    name: String,
    dims: Vec<i64>,
    dtype: u64,
    raw: Option<Range<u64>>,
    /// Number of the field, and its parts.
    typed: Option<(u64, Vec<Range<u64>>)>,
    is_external: bool,
    location: Option<String>,
    offset: Option<String>,
    length: Option<String>,
}

impl OnnxTensor {
    /// Reads a `TensorProto`, but for its values.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is damaged: the sizes are whatever the file says, and are checked here, before
    /// anything is allocated for values.
    pub fn read(reader: &mut Reader, mut message: Message) -> Result<Self> {
        let mut fields = Fields::default();
        while let Some(field) = reader.field(&mut message)? {
            fields.take(reader, field)?;
        }
        let bad = |reader: &Reader, text: String| reader.bad(format!("tensor {}: {text}", fields.name));
        let shape: Option<Vec<usize>> = fields.dims.iter().map(|&extent| usize::try_from(extent).ok()).collect();
        let shape = shape.ok_or_else(|| bad(reader, format!("an extent of {:?} is negative", fields.dims)))?;
        let known = DTYPES.iter().find(|(number, ..)| *number == fields.dtype);
        let mut tensor = Self {
            name: std::mem::take(&mut fields.name),
            dtype: known.map(|(_, dtype, _)| *dtype).ok_or(fields.dtype),
            shape,
            file: reader.path().to_owned(),
            ranges: Vec::new(),
            varints: false,
            onnx: reader.path().to_owned(),
        };
        let Some(&(_, dtype, typed_field)) = known else { return Ok(tensor) };

        let bad = |text: String| reader.bad(format!("tensor {}: {text}", tensor.name));
        let elements = tensor.shape.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent as u64));
        let bytes = elements.and_then(|elements| elements.checked_mul(dtype.size() as u64));
        let (Some(elements), Some(bytes)) = (elements, bytes) else {
            return Err(bad(format!("an extent of {:?} is too large", tensor.shape)));
        };
        if fields.is_external {
            let (file, range) = external(reader.path(), &fields, bytes).map_err(|text| {
                Error::checkpoint(reader.path(), format!("tensor {}: its values {text}", tensor.name))
            })?;
            (tensor.file, tensor.ranges) = (file, vec![range]);
            return Ok(tensor);
        }
        match (fields.raw, fields.typed) {
            (Some(raw), _) => tensor.ranges = vec![raw],
            (None, Some((field, parts))) if field == typed_field => {
                tensor.varints = !matches!(dtype, FileDtype::F32 | FileDtype::F64);
                tensor.ranges = parts;
            }
            (None, Some(_)) => return Err(bad(format!("its values are not of its type, {dtype}"))),
            (None, None) => {}
        }
        let found: u64 = tensor.ranges.iter().map(|range| range.end - range.start).sum();
        // A number of variable length takes a byte at least.
        let fits = if tensor.varints { elements <= found } else { bytes == found };
        match fits {
            true => Ok(tensor),
            false => Err(bad(format!("{found} bytes of values do not fill {:?} of {dtype}", tensor.shape))),
        }
    }

    /// Number of elements. Those of a type that is not supported have not been checked.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |product, &extent| product.saturating_mul(extent))
    }

    /// Bytes of its values in memory.
    pub fn bytes(&self) -> u64 {
        self.dtype.map_or(0, |dtype| (self.elements() * dtype.size()) as u64)
    }

    /// Whether its values are in another file than the ONNX file.
    pub fn is_external(&self) -> bool {
        self.file != self.onnx
    }

    /// The element type.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is not supported.
    pub fn known_dtype(&self) -> Result<FileDtype> {
        self.dtype.map_err(|number| self.fail(format!("is of ONNX's type {number}, which is not supported")))
    }

    fn fail(&self, text: String) -> Error {
        Error::checkpoint(&self.onnx, format!("tensor {} {text}", self.name))
    }

    /// The tensor with its values.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Checkpoint`] if its type is not supported or its values are damaged.
    pub fn load(&self) -> Result<FileTensor> {
        let dtype = self.known_dtype()?;
        let io = |error| Error::io(&self.file, error);
        let mut file = File::open(&self.file).map_err(io)?;
        let mut bytes = Vec::new();
        for range in &self.ranges {
            let start = bytes.len();
            bytes.resize(start + (range.end - range.start) as usize, 0);
            file.seek(SeekFrom::Start(range.start)).map_err(io)?;
            file.read_exact(&mut bytes[start..]).map_err(io)?;
        }
        if self.varints {
            let numbers = unpacked(&bytes).ok_or_else(|| self.fail("has damaged values".into()))?;
            // Signed ones too: those are written as 64 bits of two's complement.
            bytes = numbers.iter().flat_map(|number| number.to_le_bytes().into_iter().take(dtype.size())).collect();
        }
        FileTensor::new(dtype, self.shape.clone(), bytes).map_err(|error| self.fail(format!("is damaged: {error}")))
    }
}

impl Fields {
    fn take(&mut self, reader: &mut Reader, field: Field) -> Result<()> {
        match field.number {
            1 => reader.numbers(&field, &mut self.dims)?,
            2 => self.dtype = field.varint.unwrap_or_default(),
            3 => return Err(reader.bad("a tensor in segments, which nothing writes")),
            number @ (4 | 5 | 7 | 10 | 11) => {
                let (first, parts) = self.typed.get_or_insert((number, Vec::new()));
                if *first != number {
                    return Err(reader.bad("a tensor with values of two types"));
                }
                parts.push(field.range);
            }
            8 => self.name = reader.text(&field.range)?,
            9 => self.raw = Some(field.range),
            13 => {
                let (key, value) = entry(reader, field.range)?;
                match key.as_str() {
                    "location" => self.location = Some(value),
                    "offset" => self.offset = Some(value),
                    "length" => self.length = Some(value),
                    _ => {}
                }
            }
            14 => self.is_external = field.varint == Some(1),
            _ => {}
        }
        Ok(())
    }
}

/// A `StringStringEntryProto`.
pub(super) fn entry(reader: &mut Reader, mut message: Message) -> Result<(String, String)> {
    let (mut key, mut value) = (String::new(), String::new());
    while let Some(field) = reader.field(&mut message)? {
        match field.number {
            1 => key = reader.text(&field.range)?,
            2 => value = reader.text(&field.range)?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// The file beside the ONNX file that has a tensor's `bytes` of values, and where they are in it; else what is wrong.
fn external(onnx: &Path, fields: &Fields, bytes: u64) -> Result<(PathBuf, Range<u64>), String> {
    let location = fields.location.as_deref().ok_or("are in another file, which is not named")?;
    let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
    if location.is_empty() || !Path::new(location).components().all(inside) {
        return Err(format!("are said to be in {location}, outside the folder: refused"));
    }
    let number = |text: &Option<String>, default: u64| match text {
        Some(text) => text.parse().map_err(|_| format!("are said to be at '{text}' of {location}")),
        None => Ok(default),
    };
    let file = onnx.parent().unwrap_or(Path::new("")).join(location);
    let metadata = std::fs::metadata(&file)
        .map_err(|error| format!("are in {location}, a file that belongs beside this one: {error}"))?;
    let start = number(&fields.offset, 0)?;
    let length = number(&fields.length, bytes)?;
    if length != bytes {
        return Err(format!("are {length} bytes of {location}, but it needs {bytes}"));
    }
    match start.checked_add(length) {
        Some(end) if metadata.is_file() && end <= metadata.len() => Ok((file, start..end)),
        _ => Err(format!(
            "are at byte {start} of {location}, which has {} bytes: was the download interrupted?",
            metadata.len()
        )),
    }
}
