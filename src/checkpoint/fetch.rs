//! Fetching a published checkpoint over HTTP: into a file beside its place, from where an earlier attempt ended, and
//! moved there once its hash is right.
//!
//! Beside `NAME` lie `NAME.part`, locked by the process that fetches, and `NAME.part.etag`: which version of the file
//! the part is of, so that the server sends the rest of that version or all of another (`If-Range`).

use std::{
    env,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    mem,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use ureq::{
    Agent, Body,
    http::{HeaderName, HeaderValue, Response, StatusCode, Uri, header},
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::catalog::{Entry, Fetching, is_sha256, sha256};

/// Redirects that are followed.
const REDIRECTS: usize = 10;
/// Attempts without a byte of progress before giving up, where there was progress before.
const ATTEMPTS: u32 = 4;
/// Shortest time between attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// Longer than any checkpoint of an architecture here: a server that sends more is not sending one.
const LONGEST: u64 = 2 << 30;
/// How long a server may keep silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Why a file was not fetched.
pub(super) enum Failure {
    /// It cannot be written.
    Local(io::Error),
    /// The server or the way to it.
    Remote(String),
}

/// Why an attempt ended.
enum Ended {
    /// For good.
    Failed(Failure),
    /// Another attempt may get further.
    Cut(String),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Ended::Failed(failure)
    }
}

fn remote(reason: impl Into<String>) -> Failure {
    Failure::Remote(reason.into())
}

/// Fetches the file of `entry` to `path`.
pub(super) fn fetch(entry: &Entry, path: &Path, tell: &mut dyn FnMut(Fetching)) -> Result<(), Failure> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(Failure::Local)?;
    let mut part = Part::lock(path, tell).map_err(Failure::Local)?;
    // Another process may have come and gone between the look and the lock.
    if path.is_file() && entry.flaw(path).is_none() {
        return part.remove().map_err(Failure::Local);
    }
    let (agent, url) = (agent(&entry.address())?, entry.address());
    tell(Fetching::Begun { url: &url, path });
    let (mut idle, mut grown, mut afresh) = (0, false, false);
    loop {
        let before = part.length().map_err(Failure::Local)?;
        match part.fill(&agent, &url, entry, tell) {
            Ok(expected) => {
                let found = sha256(&part.path).map_err(Failure::Local)?;
                if found.starts_with(&expected) {
                    return part.put(path).map_err(Failure::Local);
                }
                part.clear().map_err(Failure::Local)?;
                // What lay there from an earlier attempt may have been of another file.
                if before == 0 || afresh {
                    return Err(remote(format!("{url} sends a file whose sha256 is {found}, not {expected}")));
                }
                afresh = true;
                tell(Fetching::Resuming { reason: "what was there of it was of another file" });
            }
            Err(Ended::Failed(failure)) => return Err(failure),
            Err(Ended::Cut(reason)) => {
                let length = part.length().map_err(Failure::Local)?;
                // What was there may be of no use: from the beginning then, but once.
                let useless = length < before && !mem::replace(&mut afresh, true);
                idle = if length > before || useless { 0 } else { idle + 1 };
                grown |= idle == 0;
                if !grown || idle == ATTEMPTS {
                    return Err(remote(reason));
                }
                tell(Fetching::Resuming { reason: &reason });
                thread::sleep(Duration::from_secs(u64::from(idle * idle)).max(PAUSE));
            }
        }
    }
}

/// What there is of a file.
struct Part {
    file: File,
    path: PathBuf,
    etag: PathBuf,
}

impl Part {
    /// Opens the part of the file at `path`, and waits until no other process has it.
    fn lock(path: &Path, tell: &mut dyn FnMut(Fetching)) -> io::Result<Self> {
        let beside = |suffix: &str| {
            let mut name = OsString::from(path);
            name.push(suffix);
            PathBuf::from(name)
        };
        let (part, etag) = (beside(".part"), beside(".part.etag"));
        let file = File::options().create(true).read(true).append(true).open(&part)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                tell(Fetching::Waiting { path });
                file.lock()?;
            }
            // Where the file system knows locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        Ok(Self { file, path: part, etag })
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Forgets what is there.
    fn clear(&mut self) -> io::Result<()> {
        remove(&self.etag)?;
        self.file.set_len(0)
    }

    fn remove(self) -> io::Result<()> {
        remove(&self.etag)?;
        remove(&self.path)
    }

    /// Moves it, whole, to its place.
    fn put(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, path)?;
        remove(&self.etag)
    }

    /// Fetches what is missing, and returns the hash that the whole should have, or its first digits.
    fn fill(
        &mut self,
        agent: &Agent,
        url: &str,
        entry: &Entry,
        tell: &mut dyn FnMut(Fetching),
    ) -> Result<String, Ended> {
        let mut have = self.length().map_err(Failure::Local)?;
        // A part of which nobody knows what it is of is fetched anew.
        let version = fs::read_to_string(&self.etag).ok().filter(|_| have > 0);
        let range = version.and_then(|version| {
            let value = |text: &str| HeaderValue::from_str(text).ok();
            Some([(header::RANGE, value(&format!("bytes={have}-"))?), (header::IF_RANGE, value(&version)?)])
        });
        let (mut response, told) = follow(agent, url, range.as_ref().map_or(&[], |range| range.as_slice()))?;
        let expected = entry.sha256.clone().or(told).ok_or_else(|| {
            remote(format!("{url} does not tell the file's sha256 (X-Linked-Etag), by which it would be verified"))
        });

        let status = response.status();
        let range = text(&response, header::CONTENT_RANGE).unwrap_or_default().to_string();
        match status {
            StatusCode::OK => {
                self.clear().map_err(Failure::Local)?;
                have = 0;
                if let Some(version) = version_of(&response) {
                    fs::write(&self.etag, version).map_err(Failure::Local)?;
                }
            }
            StatusCode::PARTIAL_CONTENT if range.starts_with(&format!("bytes {have}-")) => {}
            // All of it was there.
            StatusCode::RANGE_NOT_SATISFIABLE if range == format!("bytes */{have}") => return Ok(expected?),
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                self.clear().map_err(Failure::Local)?;
                return Err(Ended::Cut(format!("{url} answers with the range '{range}', which was not asked for")));
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Err(Ended::Cut(format!("{url} answers {status}")));
            }
            status => return Err(remote(format!("{url} answers {status}")).into()),
        }
        let expected = expected?;
        let total = response.body().content_length().map(|rest| have.saturating_add(rest));
        self.append(response.body_mut().as_reader(), have, total, tell)?;
        Ok(expected)
    }

    fn append(
        &mut self,
        mut body: impl Read,
        mut done: u64,
        total: Option<u64>,
        tell: &mut dyn FnMut(Fetching),
    ) -> Result<(), Ended> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            tell(Fetching::Progress { done, total });
            if done.max(total.unwrap_or(0)) > LONGEST {
                self.clear().map_err(Failure::Local)?;
                return Err(remote("the server sends more than a checkpoint can be").into());
            }
            match body.read(&mut buffer) {
                Ok(0) if total.is_some_and(|total| done < total) => {
                    return Err(Ended::Cut("the connection was closed before the end".into()));
                }
                Ok(0) => return Ok(()),
                Ok(count) => {
                    self.file.write_all(&buffer[..count]).map_err(Failure::Local)?;
                    done += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Ended::Cut(format!("the connection was cut: {error}"))),
            }
        }
    }
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Asks for `url`, and there where the answer sends to; with the hash that the first of them tells that tells one.
///
/// By hand, because the Hub tells the hash in the answer that redirects to where the file is stored.
fn follow(
    agent: &Agent,
    url: &str,
    headers: &[(HeaderName, HeaderValue)],
) -> Result<(Response<Body>, Option<String>), Ended> {
    let (mut url, mut told) = (url.to_string(), None);
    for _ in 0..=REDIRECTS {
        if url.starts_with("https://") && !can_encrypt() {
            return Err(remote("this processor lacks instructions that encryption needs here (such as AES)").into());
        }
        let request = headers.iter().fold(agent.get(&url), |request, (name, value)| request.header(name, value));
        let response = request.call().map_err(|error| Ended::Cut(format!("{url}: {error}")))?;
        told = told.or_else(|| {
            let hash = text(&response, "x-linked-etag")?.trim_matches('"');
            is_sha256(hash).then(|| hash.to_string())
        });
        if !response.status().is_redirection() {
            return Ok((response, told));
        }
        let next = text(&response, header::LOCATION).and_then(|location| resolve(&url, location));
        let next = next.ok_or_else(|| remote(format!("{url} redirects to nowhere ({})", response.status())))?;
        if url.starts_with("https://") && !next.starts_with("https://") {
            return Err(remote(format!("{url} redirects to {next}, which is not encrypted")).into());
        }
        url = next;
    }
    Err(remote(format!("more than {REDIRECTS} redirects, the last to {url}")).into())
}

/// What `location` means in an answer of `base`.
fn resolve(base: &str, location: &str) -> Option<String> {
    let base: Uri = base.parse().ok()?;
    let (scheme, host) = (base.scheme_str()?, base.authority()?);
    let is_scheme = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if location.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme)) {
        Some(location.into())
    } else if location.starts_with("//") {
        Some(format!("{scheme}:{location}"))
    } else if location.starts_with('/') {
        Some(format!("{scheme}://{host}{location}"))
    } else {
        let (folder, _) = base.path().rsplit_once('/')?;
        Some(format!("{scheme}://{host}{folder}/{location}"))
    }
}

/// What names the version of a file for `If-Range`: a strong ETag, else the time of its last change.
fn version_of(response: &Response<Body>) -> Option<&str> {
    let etag = text(response, header::ETAG).filter(|etag| !etag.starts_with("W/"));
    etag.or_else(|| text(response, header::LAST_MODIFIED))
}

fn text(response: &Response<Body>, name: impl header::AsHeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

/// The client, by way of the proxy that the environment names (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`),
/// which has no way to this machine itself. It trusts Mozilla's certificates, or those in the file `SSL_CERT_FILE`.
fn agent(url: &str) -> Result<Agent, Failure> {
    let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(Arc::new(rustls_graviola::default_provider()));
    let tls = match env::var_os("SSL_CERT_FILE").filter(|file| !file.is_empty()) {
        None => tls,
        Some(file) => tls.root_certs(certificates(Path::new(&file))?),
    };
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_connect(Some(SILENCE))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE));
    let url: Uri = url.parse().map_err(|_| remote(format!("'{url}' is no address")))?;
    let config = match url.host() {
        Some("localhost" | "127.0.0.1" | "[::1]") => config.proxy(None),
        _ => config,
    };
    Ok(config.build().into())
}

fn certificates(file: &Path) -> Result<RootCerts, Failure> {
    let pem = fs::read(file).map_err(|error| remote(format!("SSL_CERT_FILE={}: {error}", file.display())))?;
    let items = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    Ok(items.collect::<Vec<_>>().into())
}

/// Whether graviola can compute here; it would panic where it cannot.
#[cfg(target_arch = "x86_64")]
fn can_encrypt() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("aes") && has!("pclmulqdq") && has!("bmi1") && has!("adx") && has!("avx2")
}

/// Whether graviola can compute here; it would panic where it cannot.
#[cfg(target_arch = "aarch64")]
fn can_encrypt() -> bool {
    use std::arch::is_aarch64_feature_detected as has;
    has!("neon") && has!("aes") && has!("pmull") && has!("sha2")
}
