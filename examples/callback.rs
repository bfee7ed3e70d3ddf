//! A callback of one's own: stop when the validation loss no longer falls.
//! `cargo run --release --example callback -- DATA WEIGHTS`

use unfreeze::{
    learner::{Callback, Event, Flow},
    prelude::*,
};

/// Stops a fit once its validation loss has not improved for `patience` epochs.
struct EarlyStopping {
    patience: usize,
    best: f32,
    waited: usize,
}

impl Callback for EarlyStopping {
    fn event(&mut self, event: &Event) -> Flow {
        let Event::Epoch(record) = event else { return Flow::Continue };
        println!("epoch {}: {:.4}", record.epoch, record.valid_loss);
        self.waited = if record.valid_loss < self.best { 0 } else { self.waited + 1 };
        self.best = self.best.min(record.valid_loss);
        if self.waited < self.patience { Flow::Continue } else { Flow::Stop }
    }
}

fn main() -> unfreeze::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, weights] = arguments.as_slice() else {
        eprintln!("usage: callback DATA WEIGHTS");
        std::process::exit(2);
    };

    let weights = Weights::file(weights)?;
    let transforms = Transforms::for_weights(&weights, weights.arch().published_size());
    let data = ImageData::from_folders(data)?.transforms(transforms);
    let stopping = EarlyStopping { patience: 3, best: f32::INFINITY, waited: 0 };
    let mut learner = Learner::pretrained(weights, data)?.callback(stopping);
    learner.precompute(true);
    let epochs = learner.fit(Fit::epochs(100).lr(1e-2))?.len();
    println!("stopped after {epochs} epochs");
    Ok(())
}
