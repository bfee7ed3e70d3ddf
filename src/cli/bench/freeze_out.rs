//! `unfreeze bench freeze-out`: what freezing layers one after the other saves, and what it costs.

use clap::Args;
use serde_json::json;
use unfreeze::{
    Error, Precision, Result,
    checkpoint::Weights,
    data::{Augment, Split, Transforms},
    learner::{EpochRecord, Fit, Learner},
    nn::{
        Arch, Grouping,
        cost::{Kernel, Network},
    },
    optim::FreezeOut,
};

use super::super::{
    demo::{Counts, SIDE, pictures},
    options::{Compute, count},
};

const ARCH: Arch = Arch::ResNet20;
const BATCH_SIZE: usize = 16;
const LR: f32 = 0.02;
const COUNTS: Counts = Counts { train: 30, valid: 50 };

#[derive(Args)]
pub struct Frozen {
    /// Epochs of each of the two trainings
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = count)]
    epochs: usize,
    /// How layers are frozen: linear, quadratic or cubic, then :T0 (0.8) and :unscaled
    #[arg(long, default_value_t, value_name = "NAME")]
    freeze_out: FreezeOut,
    #[command(flatten)]
    compute: Compute,
    /// Print a JSON object: seconds and accuracy of both trainings, and the share of time saved: measured, predicted by
    /// the paper's formula, and by the operations of this engine's kernels
    #[arg(long)]
    json: bool,
}

/// How a training went.
struct Outcome {
    /// Seconds of its steps, without validation.
    seconds: f64,
    accuracy: f32,
}

impl Frozen {
    pub fn run(self) -> Result<()> {
        // A network whose layers all fall along half a cosine to the end is what freezing is compared with.
        let whole = FreezeOut { t0: 1.0, ..self.freeze_out };
        let (all, frozen) = (self.train(whole)?, self.train(self.freeze_out)?);
        let measured = 1.0 - frozen.seconds / all.seconds;
        let (formula, kernels) = self.predicted();
        if self.json {
            let object = |outcome: &Outcome| json!({ "seconds": outcome.seconds, "accuracy": outcome.accuracy });
            let saved = json!({ "measured": measured, "formula": formula, "kernels": kernels });
            outln!("{}", json!({ "all": object(&all), "frozen": object(&frozen), "saved": saved }));
            return Ok(());
        }
        outln!("{:<44} training s  accuracy", format!("{ARCH} from random weights, {} epochs", self.epochs));
        for (name, outcome) in [("all layers to the end".into(), &all), (format!("{}", self.freeze_out), &frozen)] {
            outln!("  {name:<42} {:>10.2} {:>9.3}", outcome.seconds, outcome.accuracy);
        }
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        outln!("time saved: {}", percent(measured));
        outln!("  by the paper's formula, a backward pass costing a forward pass: {}", percent(formula));
        outln!("  by the operations of this engine's kernels:                     {}", percent(kernels));
        outln!(
            "  in the paper, on CIFAR: 20 % of a ResNet's at no loss, up to 20 % of a DenseNet's for an error 3 % higher"
        );
        Ok(())
    }

    /// Trains on the demo's pictures.
    fn train(&self, options: FreezeOut) -> Result<Outcome> {
        let folder = tempfile::tempdir().map_err(|error| Error::io(std::env::temp_dir(), error))?;
        let data = pictures::write(folder.path(), COUNTS, self.compute.seed)?;
        let data = data.transforms(Transforms::new(SIDE as usize).augment(Augment::SideOn)).batch_size(BATCH_SIZE);
        let images = data.items(Split::Train).len() as f64;
        let learner = Learner::pretrained(Weights::random(ARCH), data)?.device(self.compute.open()?)?;
        let mut learner = learner.seed(self.compute.seed)?.grouping(Grouping::PerBlock);
        learner.unfreeze();
        let epochs = learner.fit(Fit::epochs(self.epochs).lr(LR).freeze_out(options))?;
        let seconds = epochs.iter().map(|epoch| images / epoch.images_per_second).sum();
        Ok(Outcome { seconds, accuracy: epochs.last().map_or(f32::NAN, EpochRecord::accuracy) })
    }

    /// The share of time that the paper's formula and this engine's kernels let expect.
    fn predicted(&self) -> (f64, f64) {
        let network =
            Network { arch: ARCH, size: SIDE as usize, batch: BATCH_SIZE, classes: 8, precision: Precision::F32 };
        let costs = network.forward_by_unit();
        let flops = |kernels: Vec<Kernel>| kernels.iter().map(|kernel| kernel.work.flops).sum::<f64>();
        let mut ends = self.freeze_out.ends(costs.len());
        ends.insert(0, 0.0);
        // Between two ends so many units are frozen.
        let spans = ends.windows(2).enumerate();
        let average: f64 = spans.map(|(frozen, span)| (span[1] - span[0]) * flops(network.training_step(frozen))).sum();
        (self.freeze_out.predicted_saving(&costs), 1.0 - average / flops(network.training_step(0)))
    }
}
