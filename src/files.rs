//! Files that appear whole or not at all, and the folder of those that can be made again.

use std::{
    env,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// The variable that names the folder of what can be made again.
pub const CACHE_VARIABLE: &str = "UNFREEZE_CACHE";

/// A folder for what can be made again: in `UNFREEZE_CACHE`, else in the user's cache folder. `None` where neither is
/// known.
pub(crate) fn cache_folder(name: &str) -> Option<PathBuf> {
    use etcetera::BaseStrategy;
    let asked = env::var_os(CACHE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let users = || etcetera::choose_base_strategy().ok().map(|user| user.cache_dir().join("unfreeze"));
    asked.or_else(users).map(|folder| folder.join(name))
}

/// How the names of temporary files begin; one is left behind only where a process is killed while it writes.
pub(crate) const TEMPORARY: &str = ".unfreeze-";

/// Removes what killed processes left behind in `folder`. One that stays does no harm.
pub(crate) fn remove_temporaries(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Lets `write` fill a temporary file beside `path`, then puts it in place of `path`. The temporary file goes away if
/// anything fails.
///
/// # Errors
/// [`Error::Io`] naming `path`.
pub(crate) fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> Result<()> {
    let whole = || -> io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY);
        // A temporary file is private by default; these are as readable as the user's other files.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        // Its error names the temporary file, which means nothing to the user.
        let mut file = builder.tempfile_in(folder).map_err(|error| match error.kind() {
            kind @ io::ErrorKind::NotFound => io::Error::new(kind, "there is no such folder"),
            kind => kind.into(),
        })?;
        let mut writer = BufWriter::new(file.as_file_mut());
        write(&mut writer)?;
        writer.flush()?;
        drop(writer);
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    whole().map_err(|error| Error::io(path, error))
}
