//! An HTTP server of a few lines: it answers each request by a function, and remembers what it was asked.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// What was asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub path: String,
    /// In lower case.
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let path = lines.next()?.split(' ').nth(1)?.to_string();
        let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_lowercase(), value.trim().to_string()))
        });
        Some(Self { path, headers: headers.collect() })
    }
}

/// A running server; it ends with the process.
pub struct Server {
    pub address: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// One that has gone away.
    pub fn gone() -> Self {
        listening().0
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

/// Serves what `answer` says to the request of this number, from 0: bytes, after which the connection is closed.
pub fn serve(answer: impl Fn(usize, &Request) -> Vec<u8> + Send + 'static) -> Server {
    let (server, listener) = listening();
    let log = Arc::clone(&server.asked);
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let Some(request) = Request::read(&stream) else { continue };
            let number = noted(&log, &request);
            let _ = stream.write_all(&answer(number, &request));
        }
    });
    server
}

/// The same, where requests are answered side by side.
pub fn serve_at_once(answer: impl Fn(usize, &Request) -> Vec<u8> + Send + Sync + 'static) -> Server {
    let (server, listener) = listening();
    let (log, answer) = (Arc::clone(&server.asked), Arc::new(answer));
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
            thread::spawn(move || {
                let Some(request) = Request::read(&stream) else { return };
                let number = noted(&log, &request);
                let _ = stream.write_all(&answer(number, &request));
            });
        }
    });
    server
}

/// A proxy that answers itself what is asked through its tunnels, by `answer`, if `accept` accepts the tunnel; else it
/// answers 407.
pub fn proxy(
    accept: impl Fn(&Request) -> bool + Send + 'static,
    answer: impl Fn(&Request) -> Vec<u8> + Send + 'static,
) -> Server {
    let (server, listener) = listening();
    let log = Arc::clone(&server.asked);
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let Some(tunnel) = Request::read(&stream) else { continue };
            noted(&log, &tunnel);
            if !accept(&tunnel) {
                let _ = stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
                continue;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n");
            let Some(request) = Request::read(&stream) else { continue };
            noted(&log, &request);
            let _ = stream.write_all(&answer(&request));
        }
    });
    server
}

fn listening() -> (Server, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    (Server { address, asked: Arc::default() }, listener)
}

/// Remembers the request, and gives it its number.
fn noted(log: &Mutex<Vec<Request>>, request: &Request) -> usize {
    let mut log = log.lock().unwrap();
    log.push(request.clone());
    log.len() - 1
}

/// An answer of this status and these headers, a length among them if it has a body.
pub fn answer(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for header in headers {
        head += &format!("{header}\r\n");
    }
    if !headers.iter().any(|header| header.starts_with("Content-Length")) {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// As a server answers that knows ranges, of a file in this version: the rest if the same version was asked for.
pub fn file(request: &Request, content: &[u8], version: &str) -> Vec<u8> {
    let etag = format!("ETag: {version}");
    let from = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from.filter(|_| request.header("if-range").is_none_or(|asked| asked == version)) {
        None => answer("200 OK", &[&etag], content),
        Some(from) if from >= content.len() => {
            answer("416 Range Not Satisfiable", &[&format!("Content-Range: bytes */{}", content.len())], b"")
        }
        Some(from) => {
            let range = format!("Content-Range: bytes {from}-{}/{}", content.len() - 1, content.len());
            answer("206 Partial Content", &[&etag, &range], &content[from..])
        }
    }
}

/// The answer, cut off after so many bytes of its body.
pub fn cut(answer: Vec<u8>, after: usize) -> Vec<u8> {
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    answer[..body + after].to_vec()
}
