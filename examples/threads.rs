//! Many threads share one classifier, without copies or locks: `cargo run --example threads -- MODEL IMAGE...`

use std::{process, thread};

use unfreeze::prelude::*;

fn main() -> unfreeze::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(model) = arguments.next() else {
        eprintln!("usage: threads MODEL IMAGE...");
        process::exit(2);
    };
    // The threads below are the parallelism, as the requests of a server would be; the network itself gets one thread.
    let classifier = Classifier::load(model, Device::cpu(1)?)?;
    let answers: Vec<_> = thread::scope(|scope| {
        let ask = |image: String| {
            let classifier = &classifier;
            scope.spawn(move || (classifier.predict_file(&image), image))
        };
        let threads: Vec<_> = arguments.map(ask).collect();
        threads.into_iter().map(|thread| thread.join().expect("the classifier does not panic")).collect()
    });
    for (prediction, image) in answers {
        println!("{image}: {}", prediction.map_or_else(|error| error.to_string(), |prediction| prediction.class));
    }
    Ok(())
}
