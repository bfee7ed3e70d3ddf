//! The recipe by hand: `cargo run --release --example train -- DATA WEIGHTS MODEL`
//!
//! DATA holds train/CLASS/* and valid/CLASS/*, WEIGHTS is a pretrained ResNet, MODEL is written.

use unfreeze::{learner::EpochRecord, prelude::*};

fn main() -> unfreeze::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, weights, model] = arguments.as_slice() else {
        eprintln!("usage: train DATA WEIGHTS MODEL");
        std::process::exit(2);
    };

    let weights = Weights::file(weights)?;
    let size = weights.arch().published_size();
    let transforms = Transforms::for_weights(&weights, size).augment(Augment::SideOn).max_zoom(1.1);
    let data = ImageData::from_folders(data)?.transforms(transforms).batch_size(32);
    let mut learner = Learner::pretrained(weights, data)?.device(Device::auto()?)?.seed(1)?;

    // The head alone, on activations that the frozen backbone computes once.
    learner.precompute(true);
    report(learner.fit(Fit::epochs(5).lr(1e-2).phase("head"))?);

    // Everything, on augmented images, with a lower rate for the earlier layers.
    learner.precompute(false);
    learner.unfreeze();
    learner.bn_freeze(true);
    report(learner.fit(Fit::cycles(2).cycle_mult(2).lr([1e-5, 1e-4, 1e-3]).phase("everything"))?);

    learner.save(model)
}

fn report(records: &[EpochRecord]) {
    for record in records {
        println!("{} {}: loss {:.4}, accuracy {:.4}", record.phase, record.epoch, record.valid_loss, record.accuracy());
    }
}
