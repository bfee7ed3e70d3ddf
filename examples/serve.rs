//! A web service that says what is in a picture: `cargo run --release --example serve -- MODEL [ADDRESS]`
//!
//! `curl --data-binary @photo.jpg http://127.0.0.1:8080` is answered with the probable classes, a GET with the names of
//! all, which also tells that it runs. A request has half a minute and 16 MiB. Encryption is left to a proxy in front.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    num::NonZero,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use unfreeze::{data::decode_bytes, prelude::*};

/// Bytes of a picture that are taken.
const LARGEST: usize = 16 << 20;
/// Bytes of what comes before it.
const LARGEST_HEAD: usize = 16 << 10;
/// Pictures that are received and decoded at the same time: slow clients keep others waiting only if they are as many,
/// and no longer than their time.
const RECEIVED: usize = 32;
/// Time that a request has to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the answer says; or a status, and what is wrong.
type Answer<T> = Result<T, (u16, String)>;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(model) = arguments.next() else {
        eprintln!("usage: serve MODEL [ADDRESS]");
        std::process::exit(2);
    };
    let address = arguments.next().unwrap_or("127.0.0.1:8080".into());
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    // One picture at a time is classified, by all processors.
    let classifier = Mutex::new(Classifier::load(model, Device::cpu(threads)?)?);
    let listener = TcpListener::bind(&address).map_err(|error| format!("{address}: {error}"))?;
    println!("listening on http://{}", listener.local_addr()?);
    let work = || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    let request = Timed { stream, until: Instant::now() + PATIENCE };
                    // Whoever asked may have gone away.
                    let _ = respond(&classifier, request);
                }
                // Too many files are open, for example.
                Err(error) => {
                    eprintln!("error: {error}");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    };
    thread::scope(|scope| (0..RECEIVED).for_each(|_| drop(scope.spawn(work))));
    Ok(())
}

/// A connection that is read until its time is over.
struct Timed {
    stream: TcpStream,
    until: Instant,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(buffer)),
        }
    }
}

fn respond(classifier: &Mutex<Classifier>, connection: Timed) -> io::Result<()> {
    connection.stream.set_write_timeout(Some(PATIENCE))?;
    let mut connection = BufReader::new(connection);
    let request = receive(&mut connection);
    let is_head = request.as_ref().is_ok_and(|request| request.method == "HEAD");
    let (status, object) = match request.and_then(|request| answer(classifier, &request)) {
        Ok(object) => ("200 OK".to_owned(), object),
        // The words behind the number are for people, who have them in the object.
        Err((status, reason)) => (format!("{status} Error"), json!({ "error": reason })),
    };
    let text = object.to_string();
    let stream = &mut connection.get_mut().stream;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nAllow: POST, GET, HEAD\r\n\
         Connection: close\r\n\r\n",
        text.len()
    );
    stream.write_all(format!("{head}{}", if is_head { "" } else { &text }).as_bytes())?;
    // Closing a connection on what is still coming would take the answer away with it.
    stream.shutdown(Shutdown::Write)?;
    connection.get_mut().until = Instant::now() + Duration::from_secs(2);
    io::copy(&mut connection, &mut io::sink()).map(drop)
}

struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

/// Reads a request, of no more than it may have.
fn receive(connection: &mut BufReader<Timed>) -> Answer<Request> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => (408, "the request took too long".to_owned()),
        _ => (400, error.to_string()),
    };
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let left = (LARGEST_HEAD - head.len()) as u64;
        match connection.by_ref().take(left).read_until(b'\n', &mut head).map_err(failed)? {
            0 if left == 0 => return Err((431, format!("more than {LARGEST_HEAD} bytes of headers"))),
            0 => return Err((400, "the request ends early".into())),
            _ => {}
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(&head).map_err(|error| (400, format!("no request of HTTP: {error}")))?;
    let (method, path) = (request.method.unwrap_or_default().to_owned(), request.path.unwrap_or_default().to_owned());
    let header = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value))
    };

    if header("Content-Type").is_some_and(|kind| kind.starts_with("multipart")) {
        return Err((415, "send the picture itself, not a form (curl --data-binary @photo.jpg)".into()));
    }
    if header("Transfer-Encoding").is_some() {
        return Err((411, "say the length of the picture beforehand (Content-Length)".into()));
    }
    let length = header("Content-Length").map_or(Ok(0), |length| length.parse::<usize>());
    let length = length.map_err(|_| (400, "the length is no number of bytes".to_owned()))?;
    if length > LARGEST {
        return Err((413, format!("more than {LARGEST} bytes")));
    }
    if header("Expect").is_some() {
        connection.get_mut().stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").map_err(failed)?;
    }
    let mut body = Vec::new();
    match connection.by_ref().take(length as u64).read_to_end(&mut body).map_err(failed)? {
        whole if whole == length => Ok(Request { method, path, body }),
        _ => Err((400, "the request ends early".into())),
    }
}

fn answer(classifier: &Mutex<Classifier>, request: &Request) -> Answer<Value> {
    if request.path != "/" {
        return Err((404, "there is only /".into()));
    }
    let classifier = || classifier.lock().unwrap_or_else(PoisonError::into_inner);
    match request.method.as_str() {
        "GET" | "HEAD" => Ok(json!({ "classes": classifier().classes() })),
        "POST" => {
            let image = decode_bytes(&request.body, "the picture").map_err(|error| (400, error.to_string()))?;
            let classifier = classifier();
            let prediction = classifier.predict(&image).map_err(|error| (400, error.to_string()))?;
            let class =
                |at: usize| json!({ "class": classifier.classes()[at], "probability": prediction.probabilities[at] });
            Ok(json!({ "classes": prediction.top(3).into_iter().map(class).collect::<Vec<_>>() }))
        }
        _ => Err((405, "POST a picture".into())),
    }
}
