//! The HTTP client: proxies, certificates, redirects.

use std::{env, fs, path::Path, sync::Arc, time::Duration};

use ureq::{
    Agent, Body, Proxy,
    http::{HeaderName, HeaderValue, Response, Uri, header, uri::Scheme},
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::{Ended, Failure, remote, retries::Cause};
use crate::checkpoint::catalog::is_sha256;

/// Redirects that are followed.
const REDIRECTS: usize = 10;
/// How long a server may keep silent before the connection counts as cut.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(20);

const CERTIFICATES: &str = "SSL_CERT_FILE";
/// The variables that may name a proxy; the first that is set counts, in small letters or large ones. Addresses are
/// those of HTTPS, so its own comes first.
const PROXIES: [&str; 3] = ["HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY"];

pub(super) struct Client {
    agent: Agent,
    /// The variable that names the proxy.
    proxy: Option<&'static str>,
}

impl Client {
    /// For the file at `url`, by way of the proxy that the environment names, which has no way to this machine itself.
    /// It trusts Mozilla's certificates, or those in the file `SSL_CERT_FILE`. A server may keep silent for `silence`.
    pub(super) fn new(url: &str, silence: Duration) -> Result<Self, Failure> {
        let tls =
            TlsConfig::builder().unversioned_rustls_crypto_provider(Arc::new(rustls_graviola::default_provider()));
        let tls = match env::var_os(CERTIFICATES).filter(|file| !file.is_empty()) {
            None => tls,
            Some(file) => tls.root_certs(certificates(Path::new(&file))?),
        };
        let proxy = match address(url)?.host() {
            Some("localhost" | "127.0.0.1" | "[::1]") => None,
            _ => proxy(|name| env::var(name).ok())?,
        };
        let (named_by, proxy) = proxy.unzip();
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(silence))
            .timeout_per_read(Some(silence))
            .proxy(proxy);
        Ok(Self { agent: config.build().into(), proxy: named_by })
    }

    /// Asks for `url`, and there where the answer sends to; with the hash that the host of `url` tells.
    ///
    /// By hand, because the Hub tells the hash in the answer that redirects to where the file is stored. The word of
    /// another host counts nothing.
    pub(super) fn get(
        &self,
        url: &str,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<(Response<Body>, Option<String>), Ended> {
        let first = address(url)?;
        let (mut at, mut told) = (first.clone(), None);
        for _ in 0..=REDIRECTS {
            if is_encrypted(&at) && !can_encrypt() {
                return Err(remote("this processor lacks instructions that encryption needs here (such as AES)").into());
            }
            let request =
                headers.iter().fold(self.agent.get(&at), |request, (name, value)| request.header(name, value));
            let response = request.call().map_err(|error| Ended::Cut(self.explain(&at, &error), Cause::Connection))?;
            if (at.scheme(), at.authority()) == (first.scheme(), first.authority()) {
                told = told.or_else(|| {
                    let hash = text(&response, "x-linked-etag")?.trim_matches('"');
                    is_sha256(hash).then(|| hash.to_string())
                });
            }
            if !response.status().is_redirection() {
                return Ok((response, told));
            }
            let next = text(&response, header::LOCATION).and_then(|location| resolve(&at, location));
            let next = next.ok_or_else(|| remote(format!("{at} redirects to nowhere ({})", response.status())))?;
            let next = address(&next)?;
            if is_encrypted(&at) && !is_encrypted(&next) {
                return Err(remote(format!("{at} redirects to {next}, which is not encrypted")).into());
            }
            at = next;
        }
        Err(remote(format!("more than {REDIRECTS} redirects, the last to {at}")).into())
    }

    /// Why there was no answer, with what can be done about it.
    fn explain(&self, at: &Uri, error: &ureq::Error) -> String {
        let (text, proxy) = (error.to_string(), self.proxy.unwrap_or("HTTPS_PROXY"));
        let advice = match error {
            ureq::Error::ConnectProxyFailed(reason) if reason.contains("407") => {
                format!("; the proxy wants a name and a password, {proxy}=http://NAME:PASSWORD@HOST:PORT")
            }
            ureq::Error::ConnectProxyFailed(_) => format!("; {proxy} names the proxy"),
            _ if text.contains("certificate") => format!(
                "; where a network opens encrypted connections, {CERTIFICATES} must name a PEM file with its certificate"
            ),
            _ => match self.proxy {
                Some(name) => format!(" (through the proxy of {name})"),
                None => String::new(),
            },
        };
        format!("{at}: {text}{advice}")
    }
}

fn address(url: &str) -> Result<Uri, Failure> {
    let address: Option<Uri> = url.parse().ok();
    let known = address.filter(|uri| [Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&uri.scheme()));
    known.ok_or_else(|| remote(format!("'{url}' is no address of HTTP")))
}

fn is_encrypted(address: &Uri) -> bool {
    address.scheme() == Some(&Scheme::HTTPS)
}

/// The proxy that the environment names, and the variable that names it. What `NO_PROXY` lists has none: hosts and
/// what is below them, separated by commas, or `*`.
fn proxy(variable: impl Fn(&str) -> Option<String>) -> Result<Option<(&'static str, Proxy)>, Failure> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let either = |name: &str| set(&name.to_lowercase()).or_else(|| set(name));
    let named = PROXIES.into_iter().find_map(|name| Some((name, either(name)?)));
    let Some((name, value)) = named else { return Ok(None) };
    // Without the value, in which there may be a password.
    let wrong = |_| remote(format!("{name} holds no address of a proxy, such as http://HOST:PORT"));
    let given = Proxy::new(value.trim()).map_err(wrong)?;
    let mut proxy = Proxy::builder(given.protocol()).host(given.host()).port(given.port());
    if let Some(username) = given.username() {
        proxy = proxy.username(username);
    }
    if let Some(password) = given.password() {
        proxy = proxy.password(password);
    }
    for host in either("NO_PROXY").unwrap_or_default().split(',').map(str::trim).filter(|host| !host.is_empty()) {
        proxy = proxy.no_proxy(host);
        if !host.starts_with(['.', '*']) {
            proxy = proxy.no_proxy(&format!(".{host}"));
        }
    }
    Ok(Some((name, proxy.build().map_err(wrong)?)))
}

fn certificates(file: &Path) -> Result<RootCerts, Failure> {
    let wrong = |reason: &str| remote(format!("{CERTIFICATES}={}: {reason}", file.display()));
    let pem = fs::read(file).map_err(|error| wrong(&error.to_string()))?;
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = certificates.collect();
    match certificates.is_empty() {
        true => Err(wrong("there is no certificate in it (PEM)")),
        false => Ok(certificates.into()),
    }
}

/// What `location` means in an answer of `base`.
fn resolve(base: &Uri, location: &str) -> Option<String> {
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

pub(super) fn text<B>(response: &Response<B>, name: impl header::AsHeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
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

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
        thread,
    };

    use super::*;

    fn proxy_in(variables: &[(&str, &str)]) -> Result<Option<(&'static str, Proxy)>, String> {
        let value = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        proxy(value).map_err(|failure| match failure {
            Failure::Remote(reason) => reason,
            Failure::Local(error) => error.to_string(),
        })
    }

    #[test]
    fn the_environment_names_the_proxy_as_it_does_for_other_programs() {
        let both = [("ALL_PROXY", "socks5h://b:1"), ("https_proxy", "http://me:p%40ss@a:3128"), ("HTTP_PROXY", "c")];
        let (name, proxy) = proxy_in(&both).unwrap().unwrap();
        assert_eq!((name, proxy.host(), proxy.port()), ("HTTPS_PROXY", "a", 3128));
        assert_eq!((proxy.username(), proxy.password()), (Some("me"), Some("p@ss")));
        let (name, proxy) = proxy_in(&[both[0], ("HTTPS_PROXY", "")]).unwrap().unwrap();
        assert_eq!((name, proxy.protocol(), proxy.port()), ("ALL_PROXY", ureq::ProxyProtocol::Socks5h, 1));
        assert!(proxy_in(&[("NO_PROXY", "*")]).unwrap().is_none());
        // No connection is tried beside a proxy that cannot be understood, and no password told.
        let wrong = proxy_in(&[("HTTPS_PROXY", "ftp://me:secret@a")]).unwrap_err();
        assert!(wrong.contains("HTTPS_PROXY") && !wrong.contains("secret"), "{wrong}");
    }

    #[test]
    fn an_address_is_encrypted_or_not_however_it_is_written() {
        for (url, encrypted) in [("https://a/b", true), ("HTTPS://a/b", true), ("Http://a/b", false)] {
            assert!(address(url).is_ok_and(|address| is_encrypted(&address) == encrypted), "{url}");
        }
        assert!(address("ftp://a/b").is_err() && address("/a/b").is_err());
    }

    #[test]
    fn what_is_to_have_no_proxy_has_none() {
        let set = [("HTTPS_PROXY", "http://a:3128"), ("NO_PROXY", "localhost, example.com,.org , *.intra")];
        let (_, proxy) = proxy_in(&set).unwrap().unwrap();
        for (host, direct) in [
            ("example.com", true),
            ("files.example.com", true),
            ("anexample.com", false),
            ("a.org", true),
            ("a.intra", true),
            ("huggingface.co", false),
        ] {
            assert_eq!(proxy.is_no_proxy(&format!("https://{host}/x").parse().unwrap()), direct, "{host}");
        }
    }

    #[test]
    fn a_server_that_falls_silent_is_not_waited_for() {
        // Before its answer, and halfway through the file.
        for sent in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/file", listener.local_addr().unwrap());
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                assert!(lines.any(|line| line.is_ok_and(|line| line.is_empty())), "the end of a request");
                stream.write_all(sent.as_bytes()).unwrap();
                // Silent until the client goes away.
                lines.next()
            });
            let answer = Client::new(&url, Duration::from_millis(100)).ok().unwrap().get(&url, &[]);
            match answer {
                Ok((mut response, _)) => {
                    let mut body = Vec::new();
                    let error = response.body_mut().as_reader().read_to_end(&mut body).unwrap_err();
                    assert!(body == b"half" && error.to_string().contains("timeout"), "{body:?} {error}");
                }
                Err(Ended::Cut(reason, Cause::Connection)) => {
                    assert!(sent.is_empty() && reason.contains("timeout"), "{reason}");
                }
                Err(_) => panic!("a silent server is a connection that was cut"),
            }
            server.join().unwrap();
        }
    }
}
