//! The one error type of the library: every variant names the file, the tensor or the setting at fault
//! and says what to do about it.

use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, as values; nothing in the library panics on user input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A checkpoint is damaged, of an unknown format, or does not fit the architecture.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// The checkpoint file.
        path: PathBuf,
        /// Cause and remedy.
        message: String,
    },
    /// An image could not be decoded.
    #[error("{}: {message}", path.display())]
    Image {
        /// The image file.
        path: PathBuf,
        /// Cause.
        message: String,
    },
    /// A data set is missing, empty or inconsistent.
    #[error("{}: {message}", path.display())]
    Data {
        /// The folder or file.
        path: PathBuf,
        /// Cause and remedy.
        message: String,
    },
    /// Tensor shapes that an operation cannot combine.
    #[error("{op}: {message}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The shapes at hand and those expected.
        message: String,
    },
    /// A setting (builder value or flag) that makes no sense.
    #[error("{setting}: {message}")]
    Setting {
        /// The setting's name.
        setting: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// The device asked for is not available.
    #[error("device {device}: {message}")]
    Device {
        /// The device's name, such as `cuda:0`.
        device: String,
        /// Cause and remedy.
        message: String,
    },
    /// A device's memory does not hold what was asked for.
    #[error(
        "{device}: out of memory: {} asked for, {} of {} free; use a smaller batch size or smaller images, or free the \
         device",
        size(*requested), size(*free), size(*total)
    )]
    OutOfMemory {
        /// The device's name, such as `cuda:0`.
        device: String,
        /// Bytes asked for.
        requested: usize,
        /// Bytes that are free, though perhaps not in one piece.
        free: usize,
        /// Bytes that the device has.
        total: usize,
    },
    /// Training produced a number that is not finite.
    #[error("training diverged: {0}")]
    Diverged(String),
    /// A cancel token ended the work.
    #[error("cancelled")]
    Cancelled,
}

/// Bytes for people to read.
pub(crate) fn size(bytes: usize) -> String {
    match bytes as f64 / f64::from(1 << 20) {
        mebibytes if mebibytes < 1024.0 => format!("{mebibytes:.1} MiB"),
        mebibytes => format!("{:.1} GiB", mebibytes / 1024.0),
    }
}

impl Error {
    /// An input/output error on `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), source }
    }

    /// A checkpoint error on `path`.
    pub fn checkpoint(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Checkpoint { path: path.as_ref().to_owned(), message: message.into() }
    }

    /// An image error on `path`.
    pub fn image(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Image { path: path.as_ref().to_owned(), message: message.into() }
    }

    /// A data set error on `path`.
    pub fn data(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Data { path: path.as_ref().to_owned(), message: message.into() }
    }

    /// A shape error in operation `op`.
    pub fn shape(op: &'static str, message: impl Into<String>) -> Self {
        Error::Shape { op, message: message.into() }
    }

    /// A bad value of `setting`.
    pub fn setting(setting: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Setting { setting: setting.into(), message: message.into() }
    }
}
