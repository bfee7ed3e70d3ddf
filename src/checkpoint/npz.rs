//! NumPy's `.npz`: a zip archive of one `.npy` file per tensor, as `numpy.savez` and `savez_compressed` write it.
//!
//! The layout of `.npy` is that of <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    CheckpointFile, FileDtype, FileTensor, Format, StoredTensor,
    guard::{self, Archive},
    strides::{column_major, in_row_order},
};
use crate::{Error, Result};

/// NumPy's own limit on the length of a header.
const MAX_HEADER: usize = 10_000;

/// NumPy's own limit on the rank of an array.
const MAX_RANK: usize = 64;

/// Whether a zip archive holds NumPy's arrays and no PyTorch pickle.
pub(super) fn is_npz(archive: &Archive) -> bool {
    let (mut arrays, mut pickles) = (false, false);
    for name in archive.file_names().flatten() {
        arrays |= name.ends_with(".npy");
        pickles |= name == "data.pkl" || name.ends_with("/data.pkl");
    }
    arrays && !pickles
}

/// Reads the header of every array. Arrays of anything but numbers that are read are left out where others are
/// there.
pub(super) fn open(path: &Path, mut archive: Archive) -> Result<CheckpointFile> {
    let bad = |message: String| Error::checkpoint(path, format!("damaged .npz: {message}"));

    let (mut headers, mut left_out) = (Vec::new(), Vec::new());
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| bad(error.to_string()))?;
        let name = entry.name().map_err(|error| bad(error.to_string()))?.into_owned();
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else {
            left_out.push((name, "no array"));
            continue;
        };
        let text = Header::text(&mut entry).map_err(|message| bad(format!("array {name}: {message}")))?;
        let kind = kind(&text.0).map_err(|message| bad(format!("array {name}: {message}")))?;
        let header = match kind {
            Ok((dtype, is_big)) => Header::parse(text, dtype, is_big),
            Err(why) => {
                left_out.push((name, why));
                continue;
            }
        };
        let header = header.map_err(|message| bad(format!("array {name}: {message}")))?;
        let declared = header.bytes().and_then(|bytes| bytes.checked_add(header.length));
        if declared != Some(entry.size()) {
            let message =
                format!("array {name}: {} of {:?} do not take {} bytes", header.dtype, header.shape, entry.size());
            return Err(bad(message));
        }
        headers.push((index, name, header));
    }
    if headers.is_empty() {
        let listed: Vec<String> = left_out.iter().take(8).map(|(name, what)| format!("{name}: {what}")).collect();
        return Err(Error::checkpoint(path, format!("holds no arrays of numbers, only {}", listed.join(", "))));
    }
    guard::check_total(path, &guard::NUMPY, headers.iter().map(|(_, _, header)| header.bytes().unwrap_or(u64::MAX)))?;

    let archive = Arc::new(Mutex::new(archive));
    let mut checkpoint = CheckpointFile {
        path: path.to_owned(),
        format: Format::Npz,
        tensors: Default::default(),
        metadata: Default::default(),
        partial: !left_out.is_empty(),
        left_out,
        notes: Vec::new(),
        input: Default::default(),
    };
    for (index, name, header) in headers {
        let (dtype, shape) = (header.dtype, header.shape.clone());
        if checkpoint.tensors.contains_key(&name) {
            return Err(Error::checkpoint(path, format!("holds two arrays {name}: refused")));
        }
        let array = Array { path: path.to_owned(), archive: archive.clone(), index, name: name.clone(), header };
        checkpoint.tensors.insert(name, StoredTensor::new(dtype, shape, move || array.read()));
    }
    Ok(checkpoint)
}

/// An array of an archive.
struct Array {
    path: PathBuf,
    archive: Arc<Mutex<Archive>>,
    index: usize,
    name: String,
    header: Header,
}

impl Array {
    fn read(&self) -> Result<FileTensor> {
        let Header { dtype, is_big, ref shape, fortran, length } = self.header;
        let fail = |error: &dyn std::fmt::Display| {
            let message = format!("damaged .npz: array {}: {error}; was the download interrupted?", self.name);
            Error::checkpoint(&self.path, message)
        };
        let mut archive = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entry = archive.by_index(self.index).map_err(|error| fail(&error))?;
        // `open` has compared the size with the archive's, and `guard` that with the bytes there. One byte more than
        // there should be reaches the entry's end, where its checksum is compared.
        let limit = self.header.bytes().unwrap_or(0).saturating_add(1);
        let mut bytes = Vec::with_capacity(limit as usize);
        io::copy(&mut entry.by_ref().take(length), &mut io::sink())
            .and_then(|_| entry.take(limit).read_to_end(&mut bytes))
            .map_err(|error| fail(&error))?;
        if is_big {
            bytes.chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
        }
        if fortran {
            bytes = in_row_order(&bytes, shape, &column_major(shape), dtype.size());
        }
        FileTensor::new(dtype, shape.clone(), bytes).map_err(|error| fail(&error))
    }
}

/// What an `.npy` file says of itself.
#[derive(Debug, PartialEq)]
struct Header {
    dtype: FileDtype,
    /// Whether the bytes of an element are in the other order.
    is_big: bool,
    shape: Vec<usize>,
    /// Whether the first extent varies fastest.
    fortran: bool,
    /// Bytes before the elements.
    length: u64,
}

impl Header {
    /// Bytes of the elements.
    fn bytes(&self) -> Option<u64> {
        let size = self.dtype.size() as u64;
        self.shape.iter().try_fold(size, |bytes, &extent| bytes.checked_mul(extent as u64))
    }

    /// The Python dictionary that an `.npy` file begins with, and the bytes up to its end.
    fn text(file: &mut impl Read) -> Result<(String, u64), String> {
        let mut start = [0; 8];
        file.read_exact(&mut start).map_err(|error| error.to_string())?;
        if !start.starts_with(b"\x93NUMPY") {
            return Err("does not begin as an .npy file".into());
        }
        let (fields, length) = match start[6] {
            1 => {
                let mut length = [0; 2];
                file.read_exact(&mut length).map_err(|error| error.to_string())?;
                (10, usize::from(u16::from_le_bytes(length)))
            }
            2 | 3 => {
                let mut length = [0; 4];
                file.read_exact(&mut length).map_err(|error| error.to_string())?;
                (12, u32::from_le_bytes(length) as usize)
            }
            version => return Err(format!("is of .npy version {version}, which is not known")),
        };
        if length > MAX_HEADER {
            return Err(format!("declares a header of {length} bytes"));
        }
        let mut text = vec![0; length];
        file.read_exact(&mut text).map_err(|error| error.to_string())?;
        Ok((String::from_utf8_lossy(&text).into_owned(), fields + length as u64))
    }

    fn parse((text, length): (String, u64), dtype: FileDtype, is_big: bool) -> Result<Self, String> {
        Ok(Self { dtype, is_big, fortran: fortran(&text)?, shape: shape(&text)?, length })
    }
}

/// The text of the Python dictionary after `'key':`.
fn field<'a>(header: &'a str, key: &str) -> Result<&'a str, String> {
    let found = header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    found.ok_or_else(|| format!("has no '{key}' in its header"))
}

/// What an array holds, and whether it is big-endian; or why it is not read.
fn kind(header: &str) -> Result<Result<(FileDtype, bool), &'static str>, String> {
    let value = field(header, "descr")?;
    let Some((code, _)) = value.strip_prefix('\'').and_then(|rest| rest.split_once('\'')) else {
        return Ok(Err("of several fields, which are not read"));
    };
    let name = code.trim_start_matches(['<', '>', '|', '=']);
    let dtype = match name {
        "f8" => FileDtype::F64,
        "f4" => FileDtype::F32,
        "f2" => FileDtype::F16,
        "i8" => FileDtype::I64,
        "i4" => FileDtype::I32,
        "i2" => FileDtype::I16,
        "i1" => FileDtype::I8,
        "u8" => FileDtype::U64,
        "u4" => FileDtype::U32,
        "u2" => FileDtype::U16,
        "u1" => FileDtype::U8,
        "b1" => FileDtype::Bool,
        "c8" => return Ok(Err("complex64, which is not read")),
        "c16" => return Ok(Err("complex128, which is not read")),
        "f12" | "f16" => return Ok(Err("of floats beyond 64 bits, which are not read: save it as float64")),
        "V2" => return Ok(Err("of an unnamed type of two bytes (bfloat16?), which is not read: save it as float32")),
        _ => {
            return Ok(Err(match name.chars().next() {
                Some('O') => "Python objects (a pickle), which are not read",
                Some('U' | 'S') => "text",
                Some('M' | 'm') => "times",
                _ => "of a type that is not known, and not read",
            }));
        }
    };
    Ok(Ok((dtype, code.starts_with('>'))))
}

fn fortran(header: &str) -> Result<bool, String> {
    let value = field(header, "fortran_order")?;
    match (value.starts_with("True"), value.starts_with("False")) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err("has a bad 'fortran_order'".into()),
    }
}

fn shape(header: &str) -> Result<Vec<usize>, String> {
    let extents = field(header, "shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let (extents, _) = extents.ok_or("has a bad 'shape'")?;
    let extents = extents.split(',').map(str::trim).filter(|extent| !extent.is_empty());
    let extents: Vec<usize> = extents
        .map(|extent| extent.parse().map_err(|_| format!("has a bad extent {extent}")))
        .collect::<Result<_, _>>()?;
    if extents.len() > MAX_RANK {
        return Err(format!("has {} extents, of which NumPy allows {MAX_RANK}", extents.len()));
    }
    Ok(extents)
}
