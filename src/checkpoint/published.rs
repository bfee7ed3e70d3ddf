//! Which published checkpoint a file is: what its name says, or its content.

use std::{fs, path::Path};

use super::catalog::{self, Entry};
use crate::nn::Arch;

/// By how much a size may differ that is published in MiB to three digits.
const SIZE_DIGITS: f64 = 0.001;

/// The entry of the catalogue, of `arch`, that the file at `path` is called after: by its name in
/// `unfreeze weights list`, or by its folder in the cache of the Hugging Face Hub. Else the one whose hash it has: that
/// is computed where the size is right, so that only a file that is likely to be it is read.
pub(super) fn of_file(path: &Path, arch: Arch) -> Option<&'static Entry> {
    among(catalog::entries(), path, arch)
}

fn among<'a>(entries: &'a [Entry], path: &Path, arch: Arch) -> Option<&'a Entry> {
    let mut called = entries.iter().filter(|entry| entry.arch == arch && is_called(path, entry));
    called.next().or_else(|| {
        let mib = fs::metadata(path).ok()?.len() as f64 / f64::from(1 << 20);
        let is_likely = |entry: &&Entry| {
            let size = entry.mib.is_some_and(|published| (published - mib).abs() <= SIZE_DIGITS);
            entry.arch == arch && entry.sha256.is_some() && size
        };
        let mut likely = entries.iter().filter(is_likely).peekable();
        likely.peek()?;
        let found = catalog::sha256(path).ok()?;
        likely.find(|entry| entry.sha256.as_ref().is_some_and(|expected| found.starts_with(expected)))
    })
}

fn is_called(path: &Path, entry: &Entry) -> bool {
    let stem = path.file_stem().is_some_and(|stem| *stem == *entry.name);
    let folder = entry.hub_file().map(|(repository, _)| format!("models--{}", repository.replace('/', "--")));
    stem || folder.is_some_and(|folder| path.iter().any(|part| *part == *folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_file_is_known_by_its_content_whatever_it_is_called() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("renamed.pth");
        fs::write(&path, vec![0; 3 << 18]).unwrap();
        let hash = catalog::sha256(&path).unwrap();
        let entry = |name: &str, arch: &str, hash: &str, mib: f64| {
            format!(
                "[[weights]]\nname = '{arch}.{name}'\narch = '{arch}'\n\
                 url = 'https://huggingface.co/timm/{name}/resolve/main/weights'\n\
                 sha256 = '{hash}'\nmib = {mib}\nlicence = 'MIT'\ntop1 = 1\n\
                 transforms = {{ resize = 2, crop = 1, interpolation = 'bilinear' }}\n"
            )
        };
        let text = entry("a", "resnet50", &hash, 0.75)
            + &entry("b", "resnet18", "00000000", 0.75)
            + &entry("c", "resnet18", &hash[..8], 7.5)
            + &entry("d", "resnet18", &hash[..8], 0.7501);
        let entries = catalog::parse(&text).unwrap();
        let found = |path: &Path| among(&entries, path, Arch::ResNet18).map(|entry| entry.name.as_str());
        assert_eq!(found(&path), Some("resnet18.d"));
        assert_eq!(found(Path::new("models--timm--c/snapshots/1/model.safetensors")), Some("resnet18.c"));
        assert_eq!(found(Path::new("resnet18.b.safetensors")), Some("resnet18.b"));
        assert_eq!(found(Path::new("resnet50.a.safetensors")), None, "of another architecture");
        fs::write(&path, vec![1; 3 << 18]).unwrap();
        assert_eq!(found(&path), None);
    }
}
