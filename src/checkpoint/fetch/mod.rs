//! Fetching a published checkpoint over HTTP: into a file beside its place, from where an earlier attempt ended, and
//! moved there once its hash is right.
//!
//! Beside `NAME` lie `NAME.part`, what there is of it, and `NAME.part.etag`: which version of the file the part is of,
//! so that the server sends the rest of that version or all of another (`If-Range`). A lock on `.locks/NAME` lets one
//! process fetch while others wait for it; where there are no locks, each has a part of its own, and fetches all of it.

mod client;
mod part;
mod retries;

use std::{fs, io, path::Path, thread};

use ureq::http::{HeaderValue, Response, StatusCode, header};

use self::{
    client::{Client, text},
    part::{Part, lock},
    retries::{Cause, Retries},
};
use super::catalog::{Entry, Fetching, record};
use crate::{Error, Result, files::CACHE_VARIABLE};

/// Why a file was not fetched.
pub(super) enum Failure {
    /// Something on this machine, such as a full disk.
    Local(Error),
    /// The server or the way to it.
    Remote(String),
}

/// Why an attempt ended.
enum Ended {
    /// For good.
    Failed(Failure),
    /// What there was of the file was of no use.
    Useless(String),
    /// Another attempt may get further.
    Cut(String, Cause),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Ended::Failed(failure)
    }
}

fn remote(reason: impl Into<String>) -> Failure {
    Failure::Remote(reason.into())
}

/// Something failed with what is to lie at `path`.
fn local(path: &Path) -> impl Fn(io::Error) -> Failure {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    move |error| {
        let error = match error.kind() {
            kind @ (PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull) => {
                io::Error::new(kind, format!("{error}; {CACHE_VARIABLE} can name another folder"))
            }
            _ => error,
        };
        Failure::Local(Error::io(path, error))
    }
}

/// Fetches the file of `entry` to `path`.
pub(super) fn fetch(entry: &Entry, path: &Path, tell: &mut dyn FnMut(Fetching)) -> Result<(), Failure> {
    if path.exists() && !path.is_file() {
        return Err(local(path)(io::Error::other("is no file; remove it, its place is the checkpoint's")));
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(local(folder))?;
    let lock = lock(path, tell);
    // Another process may have come and gone between the look and the lock.
    if path.is_file() && entry.flaw(path).is_none() {
        return Ok(());
    }
    // Goes away before the lock does.
    let part = Part::of(path, lock.is_some());
    let url = entry.address();
    let client = Client::new(&url, client::SILENCE)?;
    tell(Fetching::Begun { url: &url, path });
    let (mut retries, mut afresh) = (Retries::default(), false);
    loop {
        let before = part.length();
        let ended = match attempt(&part, &client, &url, entry, tell) {
            Ok(expected) => {
                let found = part.sha256()?;
                if found.starts_with(&expected) {
                    record(path, &found).map_err(Failure::Local)?;
                    return part.put();
                }
                part.clear()?;
                if before == 0 {
                    return Err(remote(format!("{url} sends a file whose sha256 is {found}, not {expected}")));
                }
                // What lay there from an earlier attempt may have been of another file.
                Ended::Useless(format!("its sha256 is {found}, not {expected}"))
            }
            Err(ended) => ended,
        };
        match ended {
            Ended::Failed(failure) => return Err(failure),
            Ended::Useless(reason) if afresh => return Err(remote(reason)),
            Ended::Useless(reason) => {
                afresh = true;
                tell(Fetching::Afresh { reason: &reason });
            }
            Ended::Cut(reason, cause) => {
                let Some(pause) = retries.pause(part.length().saturating_sub(before), &cause) else {
                    return Err(remote(reason));
                };
                tell(Fetching::Resuming { reason: &reason, pause });
                thread::sleep(pause);
            }
        }
    }
}

/// Fetches what is missing, and returns the hash that the whole should have, or its first digits.
fn attempt(
    part: &Part,
    client: &Client,
    url: &str,
    entry: &Entry,
    tell: &mut dyn FnMut(Fetching),
) -> Result<String, Ended> {
    let mut have = part.length();
    // A part of which nobody knows what it is of is fetched anew.
    let range = part.version().filter(|_| have > 0).and_then(|version| {
        let value = |text: &str| HeaderValue::from_str(text).ok();
        Some([(header::RANGE, value(&format!("bytes={have}-"))?), (header::IF_RANGE, value(&version)?)])
    });
    let (mut response, told) = client.get(url, range.as_ref().map_or(&[], |range| range.as_slice()))?;
    let expected = entry.sha256.clone().or(told).ok_or_else(|| {
        remote(format!("{url} does not tell the file's sha256 (X-Linked-Etag), by which it would be verified"))
    });

    let status = response.status();
    let range = text(&response, header::CONTENT_RANGE).unwrap_or_default().to_string();
    match status {
        StatusCode::OK => {
            if have > 0 {
                tell(Fetching::Afresh { reason: "the server sends all of it, not the rest" });
            }
            part.clear()?;
            have = 0;
            if let Some(version) = version_of(&response) {
                part.note_version(version)?;
            }
        }
        StatusCode::PARTIAL_CONTENT if have > 0 && range.starts_with(&format!("bytes {have}-")) => {}
        // All of it was there.
        StatusCode::RANGE_NOT_SATISFIABLE if range == format!("bytes */{have}") => return Ok(expected?),
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
            part.clear()?;
            return Err(Ended::Useless(format!("{url} answers with the range '{range}', which was not asked for")));
        }
        status => {
            let reason = format!("{url} answers {status}");
            return Err(match retries::busy(status, text(&response, header::RETRY_AFTER)) {
                Some(cause) => Ended::Cut(reason, cause),
                None => remote(reason).into(),
            });
        }
    }
    let expected = expected?;
    let total = response.body().content_length().map(|rest| have.saturating_add(rest));
    part.append(response.body_mut().as_reader(), have, total, tell)?;
    Ok(expected)
}

/// What names the version of a file for `If-Range`: a strong ETag, else the time of its last change.
fn version_of<B>(response: &Response<B>) -> Option<&str> {
    let etag = text(response, header::ETAG).filter(|etag| !etag.starts_with("W/"));
    etag.or_else(|| text(response, header::LAST_MODIFIED))
}
