//! Compiled kernels on disk, so that a program starts fast: a file to each, found by a hash of all that decides its
//! content. Entries appear whole, carry a checksum, and are compiled again where it does not match.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use super::{HEADERS, ImageKind, Source};
use crate::files;

/// First bytes of an entry; a checksum and the image follow.
const MAGIC: &[u8] = b"unfreeze kernel 1\n";

/// The folder of compiled kernels: in `UNFREEZE_CACHE`, else in the user's cache folder. `None` where neither is known.
pub fn kernel_cache() -> Option<PathBuf> {
    files::cache_folder("kernels")
}

/// What NVRTC is told beside the architecture: line numbers for profilers, and what the kernels take in the log.
const OPTIONS: &[&str] = &["--std=c++17", "-lineinfo", "--ptxas-options=-v"];

/// All options for an architecture.
pub(super) fn options(arch: &str) -> Vec<String> {
    let arch = format!("--gpu-architecture={arch}");
    std::iter::once(arch).chain(OPTIONS.iter().map(|option| (*option).to_owned())).collect()
}

/// A hash of what is compiled: program, headers, options.
pub(super) fn program_hash(source: &Source, arch: &str) -> blake3::Hash {
    let headers = HEADERS.iter().flat_map(|(name, text)| [(*name).to_owned(), (*text).to_owned()]);
    hash([source.name.to_owned(), source.program()].into_iter().chain(headers).chain(options(arch)))
}

/// A hash of what is compiled, by what, and to what.
pub(super) fn image_hash(source: &Source, arch: &str, kind: ImageKind, nvrtc: (u32, u32)) -> blake3::Hash {
    let program = program_hash(source, arch).to_string();
    hash([program, format!("{kind:?}"), format!("{nvrtc:?}")])
}

/// A hash of texts and of where they end.
fn hash(parts: impl IntoIterator<Item = String>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize()
}

/// The file of an image.
pub(super) fn entry(folder: &Path, source: &Source, arch: &str, kind: ImageKind, hash: &blake3::Hash) -> PathBuf {
    let extension = match kind {
        ImageKind::Cubin => "cubin",
        ImageKind::Ptx => "ptx",
    };
    folder.join(format!("{}.{arch}.{}.{extension}", source.name, &hash.to_hex()[..16]))
}

/// Reads an entry; `None` if there is none, or it is damaged.
pub(super) fn read(entry: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(entry).ok()?;
    let (checksum, image) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<{ blake3::OUT_LEN }>()?;
    (blake3::hash(image) == *checksum).then(|| image.to_owned())
}

/// Writes an entry. A folder that cannot be written to costs a compilation the next time, and is no error.
pub(super) fn write(entry: &Path, image: &[u8]) {
    let Some(folder) = entry.parent() else { return };
    if fs::create_dir_all(folder).is_ok() {
        let checksum = blake3::hash(image);
        let _ = files::write_atomically(entry, |file| {
            [MAGIC, checksum.as_bytes(), image].into_iter().try_for_each(|part| file.write_all(part))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::Layout;

    const SOURCE: Source = Source { name: "a", text: "text", archs: &["sm_80"], entries: &[], layouts: &[] };

    #[test]
    fn every_ingredient_changes_the_key() {
        let key = |source: &Source, arch, kind, nvrtc| image_hash(source, arch, kind, nvrtc);
        let first = key(&SOURCE, "sm_80", ImageKind::Cubin, (13, 0));
        assert_eq!(first, key(&SOURCE, "sm_80", ImageKind::Cubin, (13, 0)));
        let layouts = &[Layout { name: "P", size: 8, fields: &[("x", 0)] }];
        let others = [
            key(&Source { text: "texts", ..SOURCE }, "sm_80", ImageKind::Cubin, (13, 0)),
            key(&Source { name: "b", ..SOURCE }, "sm_80", ImageKind::Cubin, (13, 0)),
            key(&Source { layouts, ..SOURCE }, "sm_80", ImageKind::Cubin, (13, 0)),
            key(&SOURCE, "sm_86", ImageKind::Cubin, (13, 0)),
            key(&SOURCE, "sm_80", ImageKind::Ptx, (13, 0)),
            key(&SOURCE, "sm_80", ImageKind::Cubin, (13, 1)),
            key(&SOURCE, "sm_80", ImageKind::Cubin, (12, 0)),
        ];
        for (index, other) in others.iter().enumerate() {
            assert!(*other != first && !others[..index].contains(other), "{index}");
        }
        assert_ne!(hash(["ab".to_owned(), "c".to_owned()]), hash(["a".to_owned(), "bc".to_owned()]));
    }

    #[test]
    fn entries_come_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let hash = image_hash(&SOURCE, "sm_80", ImageKind::Cubin, (13, 0));
        let path = entry(&folder.path().join("deep"), &SOURCE, "sm_80", ImageKind::Cubin, &hash);
        assert_eq!(read(&path), None);
        write(&path, b"machine code");
        assert_eq!(read(&path).as_deref(), Some(&b"machine code"[..]));
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(read(&path), None, "{length} bytes of {}", whole.len());
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert_eq!(read(&path), None, "byte {at} changed");
        }
        write(&path, b"machine code");
        assert_eq!(fs::read(&path).unwrap(), whole);
        // A folder that cannot be: a file stands in its place.
        let blocked = path.join("inside/a.cubin");
        write(&blocked, b"machine code");
        assert_eq!(read(&blocked), None);
    }
}
