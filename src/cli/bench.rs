//! `unfreeze bench`: how many images per second this machine does.

use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::json;
use unfreeze::{
    Device, Error, Result, Tensor,
    autograd::Var,
    nn::{Arch, FreezeState, HeadSpec, Model, Pass},
    ops::loss::{CrossEntropy, Target, cross_entropy},
    optim::{Optimizer, OptimizerKind},
    random::Random,
};

use super::options::{Compute, count, side};

/// Classes of the network measured, as ImageNet has.
const CLASSES: u32 = 1000;

/// Seconds that a measured round takes at least.
const SHORTEST_ROUND: f64 = 0.2;

/// Most memory for the images of a batch: the activations take many times as much.
const MOST_BYTES: usize = 8 << 30;

/// Measure images per second on random data
#[derive(Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The frozen network, in evaluation mode
    Forward(Options),
    /// A whole training step: forward, backward, optimizer
    Train(Train),
}

#[derive(Args)]
struct Options {
    /// Architecture, such as resnet34
    #[arg(long, default_value = "resnet34")]
    arch: Arch,
    /// Side of the images in pixels [default: 224, or 32 for CIFAR networks]
    #[arg(long, value_name = "N", value_parser = side)]
    size: Option<usize>,
    /// Images per batch
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = count)]
    batch_size: usize,
    /// Measured rounds, after two steps that are not
    #[arg(long, default_value_t = 7, value_name = "N", value_parser = count)]
    rounds: usize,
    #[command(flatten)]
    compute: Compute,
    /// Print a JSON object: images_per_second (the median), minimum, maximum, and the settings
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Train {
    /// Freeze all layer groups before this one; 0 trains everything, -1 the head alone
    #[arg(long, default_value_t = 0, allow_hyphen_values = true, value_name = "N")]
    freeze_to: isize,
    #[command(flatten)]
    options: Options,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        match self.what {
            What::Forward(options) => {
                let (model, images) = options.setup()?;
                options.measure("forward", images.device(), || model.logits(&images).map(drop))
            }
            What::Train(Train { freeze_to, options }) => {
                if options.batch_size < 2 {
                    return Err(Error::setting("--batch-size", "training needs batches of at least 2 images"));
                }
                let (mut model, images) = options.setup()?;
                let mut state = FreezeState::head_only(options.arch, model.grouping());
                state.freeze_to(freeze_to)?;
                model.apply(&state, false);
                let labels: Vec<u32> = (0..options.batch_size as u32).map(|image| image % CLASSES).collect();
                let target = Target::Labels(Tensor::new(labels, [options.batch_size], images.device())?);
                let mut optimizer = Optimizer::new(OptimizerKind::default());
                let rates = vec![1e-4; state.names().len()];
                let images = Var::constant(images);
                let device = images.value().device().clone();
                options.measure("train", &device, || {
                    let mut pass = Pass::training(0, 0);
                    let logits = model.forward(&mut pass, &images)?;
                    let loss = cross_entropy(&mut pass.tape, &logits, &target, &CrossEntropy::default())?;
                    let statistics = pass.take_statistics();
                    let gradients = pass.tape.backward(&loss)?;
                    model.update_statistics(statistics)?;
                    optimizer.step(&mut model, &gradients, &rates, &rates)
                })
            }
        }
    }
}

impl Options {
    fn setup(&self) -> Result<(Model, Tensor)> {
        let device: Device = self.compute.open()?;
        let model = Model::new(self.arch, HeadSpec::Linear, CLASSES as usize, self.compute.seed, &device)?;
        let size = self.size();
        let bytes = self.batch_size * size * size * 3 * size_of::<f32>();
        if bytes > MOST_BYTES {
            let message = format!("the images of one batch would take {} GiB; give fewer or smaller ones", bytes >> 30);
            return Err(Error::setting("--batch-size and --size", message));
        }
        let mut random = Random::stream(self.compute.seed, "bench", &[]);
        let pixels = (0..self.batch_size * size * size * 3).map(|_| random.uniform(-2.0, 2.0)).collect::<Vec<f32>>();
        Ok((model, Tensor::new(pixels, [self.batch_size, size, size, 3], &device)?))
    }

    fn size(&self) -> usize {
        self.size.unwrap_or(self.arch.published_size())
    }

    fn measure(&self, what: &str, device: &Device, mut step: impl FnMut() -> Result<()>) -> Result<()> {
        // Seconds of so many steps; a GPU is given them all before it is waited for.
        let mut time = |steps: usize| -> Result<f64> {
            device.synchronize()?;
            let start = Instant::now();
            (0..steps).try_for_each(|_| step())?;
            device.synchronize()?;
            Ok(start.elapsed().as_secs_f64())
        };
        time(1)?;
        let steps = (SHORTEST_ROUND / time(1)?).ceil().clamp(1.0, 1e4) as usize;
        let mut rates = Vec::with_capacity(self.rounds);
        for _ in 0..self.rounds {
            rates.push((self.batch_size * steps) as f64 / time(steps)?);
        }
        rates.sort_by(f64::total_cmp);
        let (low, median, high) = (rates[0], rates[rates.len() / 2], rates[rates.len() - 1]);
        let (arch, size, batch) = (self.arch, self.size(), self.batch_size);
        if self.json {
            let threads = device.threads();
            outln!(
                "{}",
                json!({ "bench": what, "arch": arch.name(), "size": size, "batch_size": batch,
                        "device": device.to_string(), "threads": threads, "steps_per_round": steps,
                        "images_per_second": median, "minimum": low, "maximum": high })
            );
        } else {
            outln!(
                "{what} {arch} {size} px, batch {batch}, {device}: {median:.1} images/s (median of {}; {low:.1} to {high:.1})",
                rates.len()
            );
        }
        Ok(())
    }
}
