//! A web service that says what is in a picture: `cargo run --release --example serve -- MODEL [ADDRESS]`
//!
//! `curl --data-binary @photo.jpg http://127.0.0.1:8080` is answered with the probable classes. Encryption, and time
//! limits for clients that take theirs, are left to a proxy in front of it.

use std::{io::Read, num::NonZero, thread};

use serde_json::{Value, json};
use tiny_http::{Header, Method, Request, Response, Server};
use unfreeze::{data::decode_bytes, prelude::*};

/// Bytes of a picture that are taken.
const LARGEST: usize = 16 << 20;

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: serve MODEL [ADDRESS]")?;
    let address = arguments.next().unwrap_or("127.0.0.1:8080".into());
    // Requests are answered side by side, each by one thread.
    let classifier = Classifier::load(model, Device::cpu(1)?)?;
    let server = Server::http(address)?;
    println!("listening on http://{}", server.server_addr());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| server.incoming_requests().for_each(|request| answer(&classifier, request)));
        }
    });
    Ok(())
}

fn answer(classifier: &Classifier, mut request: Request) {
    let (status, object) = match classify(classifier, &mut request) {
        Ok(classes) => (200, json!({ "classes": classes })),
        Err((status, reason)) => (status, json!({ "error": reason })),
    };
    let json = Header::from_bytes("Content-Type", "application/json").expect("it is a header");
    let response = Response::from_string(object.to_string()).with_status_code(status).with_header(json);
    // Whoever asked may have gone away.
    let _ = request.respond(response);
}

/// The three most probable classes; or a status, and what is wrong.
fn classify(classifier: &Classifier, request: &mut Request) -> Result<Vec<Value>, (u16, String)> {
    if *request.method() != Method::Post {
        return Err((405, "POST a picture".into()));
    }
    let too_large = || (413, format!("more than {LARGEST} bytes"));
    if request.body_length().is_some_and(|length| length > LARGEST) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut body = request.as_reader().take(LARGEST as u64 + 1);
    body.read_to_end(&mut bytes).map_err(|error| (400, error.to_string()))?;
    if bytes.len() > LARGEST {
        return Err(too_large());
    }
    let image = decode_bytes(&bytes, "the picture").map_err(|error| (400, error.to_string()))?;
    let prediction = classifier.predict(&image).map_err(|error| (400, error.to_string()))?;
    let class = |at: usize| json!({ "class": classifier.classes()[at], "probability": prediction.probabilities[at] });
    Ok(prediction.top(3).into_iter().map(class).collect())
}
