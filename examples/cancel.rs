//! End a fit from another thread, here after some seconds: `cargo run --release --example cancel -- DATA WEIGHTS SECONDS`
//!
//! What was learned until then stays in the learner, and the epochs that were finished in its history.

use std::{process, thread, time::Duration};

use unfreeze::{Error, prelude::*};

fn main() -> unfreeze::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let patience = arguments.get(2).and_then(|seconds| Duration::try_from_secs_f32(seconds.parse().ok()?).ok());
    let ([data, weights, _], Some(patience)) = (arguments.as_slice(), patience) else {
        eprintln!("usage: cancel DATA WEIGHTS SECONDS");
        process::exit(2);
    };

    let weights = Weights::file(weights)?;
    let transforms = Transforms::for_weights(&weights, weights.arch().published_size());
    let data = ImageData::from_folders(data)?.transforms(transforms);
    let mut learner = Learner::pretrained(weights, data)?;

    let token = learner.cancel_token();
    thread::spawn(move || {
        thread::sleep(patience);
        token.cancel();
    });
    learner.precompute(true);
    match learner.fit(Fit::epochs(100_000).lr(1e-2)) {
        Err(Error::Cancelled) => println!("cancelled after {} epochs", learner.history().len()),
        outcome => println!("finished {} epochs before that", outcome?.len()),
    }
    Ok(())
}
