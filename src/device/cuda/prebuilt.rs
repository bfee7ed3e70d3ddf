//! Kernels compiled ahead of time, for machines without NVRTC: a folder of machine code with an index that says what
//! each file was compiled from, so that one of another version of this engine is refused and not run.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Compiled, Source, cache::program_hash};
use crate::{Error, Result, files};

/// The variable that names the folder.
pub const KERNELS_VARIABLE: &str = "UNFREEZE_KERNELS";

const INDEX: &str = "kernels.json";

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct Prebuilt {
    folder: PathBuf,
    index: Index,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Index {
    /// Version of the engine that wrote it.
    engine: String,
    kernels: Vec<Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    file: String,
    source: String,
    arch: String,
    /// CUDA version of the compiler.
    nvrtc: String,
    /// Hash of program, headers and options.
    program: String,
    /// Hash of the file.
    checksum: String,
}

/// The folder that [`KERNELS_VARIABLE`] names.
pub(super) fn asked() -> Option<PathBuf> {
    env::var_os(KERNELS_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from)
}

impl Prebuilt {
    /// Opens the folder.
    ///
    /// # Errors
    /// [`Error::Data`] if it holds no index, or a damaged one.
    pub fn open(folder: &Path) -> Result<Self> {
        let text = fs::read(folder.join(INDEX)).map_err(|error| {
            let message = format!("holds no compiled kernels ({INDEX}: {error}); {}", build("ARCH", folder));
            Error::data(folder, message)
        })?;
        let index = serde_json::from_slice(&text).map_err(|error| {
            Error::data(folder.join(INDEX), format!("is damaged ({error}); {}", build("ARCH", folder)))
        })?;
        Ok(Self { folder: folder.to_owned(), index })
    }

    /// A folder to write to; what it holds already is kept.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be made.
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        let index = Self::open(folder).map(|found| found.index).unwrap_or_default();
        Ok(Self { folder: folder.to_owned(), index })
    }

    /// The machine code of `source` for `arch`.
    ///
    /// # Errors
    /// [`Error::Data`] if it is missing, made from another version of the source, or damaged.
    pub fn read(&self, source: &Source, arch: &str) -> Result<Vec<u8>> {
        let name = source.name;
        let again = build(arch, &self.folder);
        let entry = self.index.kernels.iter().find(|entry| entry.source == name && entry.arch == arch);
        let entry = entry.ok_or_else(|| Error::data(&self.folder, format!("holds no {name} for {arch}; {again}")))?;
        let file = self.folder.join(&entry.file);
        if entry.program != program_hash(source, arch).to_string() {
            let made = &self.index.engine;
            let message = format!("was made from the {name} of another version of this engine (by {made}); {again}");
            return Err(Error::data(file, message));
        }
        let bytes = fs::read(&file).map_err(|error| Error::io(&file, error))?;
        if blake3::hash(&bytes).to_string() != entry.checksum {
            return Err(Error::data(file, format!("is damaged; {again}")));
        }
        Ok(bytes)
    }

    /// Adds machine code compiled by an NVRTC of version `nvrtc`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, source: &Source, arch: &str, compiled: &Compiled, nvrtc: (u32, u32)) -> Result<PathBuf> {
        let file = format!("{}.{arch}.cubin", source.name);
        let path = self.folder.join(&file);
        files::write_atomically(&path, |writer| writer.write_all(&compiled.cubin))?;
        self.index.kernels.retain(|entry| entry.file != file);
        self.index.kernels.push(Entry {
            file,
            source: source.name.to_owned(),
            arch: arch.to_owned(),
            nvrtc: format!("{}.{}", nvrtc.0, nvrtc.1),
            program: program_hash(source, arch).to_string(),
            checksum: blake3::hash(&compiled.cubin).to_string(),
        });
        Ok(path)
    }

    /// Writes the index.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(mut self) -> Result<()> {
        self.index.engine = env!("CARGO_PKG_VERSION").to_owned();
        self.index.kernels.sort_by(|a, b| a.file.cmp(&b.file));
        let path = self.folder.join(INDEX);
        files::write_atomically(&path, |file| {
            serde_json::to_writer_pretty(&mut *file, &self.index)?;
            writeln!(file)
        })
    }
}

/// How such a folder is made.
fn build(arch: &str, folder: &Path) -> String {
    format!("make it with `unfreeze kernels build --arch {arch} --out {}`", folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source = Source { name: "a", text: "text", archs: &["sm_80"], entries: &[], layouts: &[] };

    #[test]
    fn what_does_not_fit_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let refused = |result: Result<Vec<u8>>, what: &str| {
            let text = result.unwrap_err().to_string();
            assert!(text.contains(what) && text.contains("unfreeze kernels build --arch"), "{text}");
        };
        refused(Prebuilt::open(folder).map(|_| Vec::new()), "holds no compiled kernels");
        let compiled = Compiled { cubin: b"machine code".to_vec(), ptx: String::new(), resources: Vec::new() };
        let mut kernels = Prebuilt::create(folder).unwrap();
        kernels.add(&SOURCE, "sm_80", &compiled, (13, 0)).unwrap();
        kernels.save().unwrap();
        // Another architecture joins the first.
        let mut kernels = Prebuilt::create(folder).unwrap();
        let file = kernels.add(&SOURCE, "sm_86", &compiled, (13, 0)).unwrap();
        kernels.save().unwrap();

        let kernels = Prebuilt::open(folder).unwrap();
        assert_eq!(kernels.read(&SOURCE, "sm_80").unwrap(), compiled.cubin);
        assert_eq!(kernels.read(&SOURCE, "sm_86").unwrap(), compiled.cubin);
        refused(kernels.read(&SOURCE, "sm_90a"), "holds no a for sm_90a");
        refused(kernels.read(&Source { text: "newer", ..SOURCE }, "sm_80"), "another version");
        fs::write(file, "machine cod").unwrap();
        refused(kernels.read(&SOURCE, "sm_86"), "is damaged");
        fs::write(folder.join(INDEX), "{").unwrap();
        refused(Prebuilt::open(folder).map(|_| Vec::new()), "is damaged");
    }
}
