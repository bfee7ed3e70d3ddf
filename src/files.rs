//! Files that appear whole or not at all.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use crate::{Error, Result};

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
        let mut file = builder.tempfile_in(folder).map_err(|error| io::Error::from(error.kind()))?;
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
