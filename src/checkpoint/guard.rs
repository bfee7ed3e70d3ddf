//! What is refused before the readers see it: containers that would unpack to far more memory than the file takes, or
//! whose parts contradict each other.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use zip::{CompressionMethod, ZipArchive, result::ZipError};

use crate::{Error, Result};

/// An archive that has passed [`open_zip`].
pub(super) type Archive = ZipArchive<BufReader<File>>;

/// How much memory the tensors of a file may take.
pub(super) struct Allowance {
    /// Times the file's size …
    pub ratio: u64,
    /// … and bytes beside.
    pub slack: u64,
}

/// `torch.save` compresses nothing, and weights hardly shrink; but a mask may repeat one element.
pub(super) const PYTORCH: Allowance = Allowance { ratio: 8, slack: 32 << 20 };

/// What small entries of its archives may have more, unpacked.
const UNPACKED: u64 = 1 << 20;

/// `numpy.savez_compressed` shrinks zeros a thousandfold, but weights hardly, even where nine of ten are zero.
pub(super) const NUMPY: Allowance = Allowance { ratio: 64, slack: 64 << 20 };

/// What deflate can shrink at most: 258 bytes to two bits.
const DEFLATE: u64 = 1032;

/// The most entries of an archive.
const MAX_ENTRIES: usize = 1 << 16;

/// The most comparisons of names. The reader looks for each that is not UTF-8 among all entries.
const MAX_LOOKS: usize = 1 << 24;

/// Refuses tensors that take far more memory than their file: those of compressed entries, and views that repeat
/// elements (`expand`), which cost a few bytes each in a file.
pub(super) fn check_total(path: &Path, allowance: &Allowance, sizes: impl Iterator<Item = u64>) -> Result<()> {
    let file = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
    let total = sizes.fold(0, u64::saturating_add);
    if total > file.saturating_mul(allowance.ratio).saturating_add(allowance.slack) {
        let message = format!(
            "declares {total} bytes of tensors in {file} bytes: refused (of views that repeat elements, `contiguous()` makes \
             tensors of their own)"
        );
        return Err(Error::checkpoint(path, message));
    }
    Ok(())
}

/// Opens a zip archive, if its directory makes sense: every entry there once, at a place of its own, and no larger
/// than its bytes can become.
pub(super) fn open_zip(path: &Path) -> Result<Archive> {
    let fail = |message: String| Err(Error::checkpoint(path, message));
    let damaged = |error: ZipError| {
        Error::checkpoint(
            path,
            format!("is a truncated or damaged zip archive ({error}): was the download interrupted?"),
        )
    };
    let mut file = File::open(path).map_err(|error| Error::io(path, error))?;
    let mut archive =
        ZipArchive::new(BufReader::new(file.try_clone().map_err(|error| Error::io(path, error))?)).map_err(damaged)?;

    if archive.has_duplicate_names() {
        let name = twice(&mut file, archive.central_directory_start()).map_err(|error| Error::io(path, error))?;
        return fail(format!("is a zip archive with two entries {name}: refused"));
    }
    if archive.offset() != 0 {
        return fail(format!("has {} bytes before the zip archive in it: refused", archive.offset()));
    }
    if archive.len() > MAX_ENTRIES {
        return fail(format!("is a zip archive of {} entries: refused", archive.len()));
    }
    let mut foreign = 0;
    for index in 0..archive.len() {
        let entry = archive.by_index_data(index).map_err(damaged)?;
        foreign += usize::from(str::from_utf8(entry.name_raw()).is_err());
        let (size, packed) = (entry.size(), entry.compressed_size());
        let plausible = match entry.compression() {
            CompressionMethod::Stored => size == packed,
            _ => size <= packed.saturating_mul(DEFLATE),
        };
        if !plausible {
            let name = String::from_utf8_lossy(entry.name_raw());
            return fail(format!("is a zip archive whose entry {name} claims {size} bytes in {packed}: refused"));
        }
    }
    if foreign * archive.len() > MAX_LOOKS {
        return fail(format!(
            "is a zip archive of {} entries, many of whose names are not UTF-8: refused",
            archive.len()
        ));
    }
    if archive.has_overlapping_entries().map_err(damaged)? {
        return fail("is a zip archive whose entries overlap: refused".into());
    }
    Ok(archive)
}

/// The name that is twice in the directory which begins at `start`.
fn twice(file: &mut File, start: u64) -> io::Result<String> {
    const HEADER: usize = 46;
    let mut directory = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.take(16 << 20).read_to_end(&mut directory)?;
    let mut seen = HashSet::new();
    let name = (0..directory.len()).filter(|at| directory[*at..].starts_with(b"PK\x01\x02")).find_map(|at| {
        let header = directory.get(at..at + HEADER)?;
        let length = usize::from(u16::from_le_bytes([header[28], header[29]]));
        let name = directory.get(at + HEADER..)?.get(..length)?;
        (!seen.insert(name)).then(|| String::from_utf8_lossy(name).into_owned())
    });
    Ok(name.unwrap_or_else(|| "of the same name".into()))
}

/// Refuses an archive of PyTorch's that is compressed too well.
pub(super) fn check_unpacked(path: &Path, archive: &Archive) -> Result<()> {
    let sizes = (0..archive.len()).filter_map(|index| Some(archive.by_index_data(index).ok()?.size()));
    let unpacked = sizes.fold(0, u64::saturating_add);
    let file = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
    if unpacked > file.saturating_mul(PYTORCH.ratio).saturating_add(UNPACKED) {
        return Err(Error::checkpoint(path, "is a zip archive that unpacks to far more than its size: refused"));
    }
    Ok(())
}
