//! A web service that says what is in a picture: `cargo run --release --example serve -- MODEL [ADDRESS]`
//!
//! `curl --data-binary @photo.jpg http://127.0.0.1:8080` is answered with the probable classes, a GET with the names of
//! all, which also tells that it runs. Encryption, and time limits for clients that take theirs, are left to a proxy in
//! front of it.

use std::{
    io::Read,
    num::NonZero,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
};

use serde_json::{Value, json};
use tiny_http::{Header, Method, Request, Response, Server};
use unfreeze::{data::decode_bytes, prelude::*};

/// Bytes of a picture that are taken.
const LARGEST: usize = 16 << 20;
/// Pictures that are received and decoded at the same time: slow clients keep others waiting only if they are as many.
const RECEIVED: usize = 32;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut arguments = std::env::args().skip(1);
    let Some(model) = arguments.next() else {
        eprintln!("usage: serve MODEL [ADDRESS]");
        std::process::exit(2);
    };
    let address = arguments.next().unwrap_or("127.0.0.1:8080".into());
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    // One picture at a time is classified, by all processors.
    let classifier = Mutex::new(Classifier::load(model, Device::cpu(threads)?)?);
    let server = Server::http(&address).map_err(|error| format!("{address}: {error}"))?;
    println!("listening on http://{}", server.server_addr());
    thread::scope(|scope| {
        for _ in 0..RECEIVED {
            scope.spawn(|| server.incoming_requests().for_each(|request| respond(&classifier, request)));
        }
    });
    Ok(())
}

fn respond(classifier: &Mutex<Classifier>, mut request: Request) {
    let (status, object) = match answer(classifier, &mut request) {
        Ok(object) => (200, object),
        Err((status, reason)) => (status, json!({ "error": reason })),
    };
    let header = |name: &str, value: &str| Header::from_bytes(name, value).expect("it is a header");
    let response = Response::from_string(object.to_string())
        .with_status_code(status)
        .with_header(header("Content-Type", "application/json"))
        .with_header(header("Allow", "POST, GET, HEAD"));
    // Whoever asked may have gone away.
    let _ = request.respond(response);
}

/// What the answer says; or a status, and what is wrong.
fn answer(classifier: &Mutex<Classifier>, request: &mut Request) -> Result<Value, (u16, String)> {
    if request.url() != "/" {
        return Err((404, "there is only /".into()));
    }
    let classifier = || classifier.lock().unwrap_or_else(PoisonError::into_inner);
    match request.method() {
        Method::Get | Method::Head => Ok(json!({ "classes": classifier().classes() })),
        Method::Post => {
            let image = decode_bytes(&picture(request)?, "the picture").map_err(|error| (400, error.to_string()))?;
            let classifier = classifier();
            let prediction = classifier.predict(&image).map_err(|error| (400, error.to_string()))?;
            let class =
                |at: usize| json!({ "class": classifier.classes()[at], "probability": prediction.probabilities[at] });
            Ok(json!({ "classes": prediction.top(3).into_iter().map(class).collect::<Vec<_>>() }))
        }
        _ => Err((405, "POST a picture".into())),
    }
}

/// The body of a request.
fn picture(request: &mut Request) -> Result<Vec<u8>, (u16, String)> {
    let is_form =
        |header: &Header| header.field.equiv("Content-Type") && header.value.as_str().starts_with("multipart");
    if request.headers().iter().any(is_form) {
        return Err((415, "send the picture itself, not a form (curl --data-binary @photo.jpg)".into()));
    }
    let mut bytes = Vec::new();
    let announced = request.body_length().unwrap_or(0);
    if announced <= LARGEST {
        let mut body = request.as_reader().take(LARGEST as u64 + 1);
        body.read_to_end(&mut bytes).map_err(|error| (400, error.to_string()))?;
    }
    if announced.max(bytes.len()) > LARGEST {
        return Err((413, format!("more than {LARGEST} bytes")));
    }
    Ok(bytes)
}
