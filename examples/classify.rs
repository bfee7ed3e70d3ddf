//! Classify images with a trained model: `cargo run --example classify -- RUN/model.safetensors IMAGE...`

use unfreeze::prelude::*;

fn main() -> unfreeze::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(model) = arguments.next() else {
        eprintln!("usage: classify MODEL IMAGE...");
        std::process::exit(2);
    };
    let classifier = Classifier::load(model, Device::auto()?)?;
    for image in arguments {
        match classifier.predict_file(&image) {
            Ok(prediction) => println!("{image}: {} ({:.1} %)", prediction.class, 100.0 * prediction.probability),
            Err(error) => eprintln!("{error}"),
        }
    }
    Ok(())
}
