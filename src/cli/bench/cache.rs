//! `unfreeze bench cache`: epochs of a head on cached activations.

use clap::{Args, ValueEnum};
use serde_json::json;
use unfreeze::{Error, Precision, Result};

use super::{
    cell::{CLASSES, Cell, Work},
    network::{Calls, Options},
    task::{CACHED, Task},
};
use crate::cli::options::count;

#[derive(Args)]
pub struct Cache {
    /// The head: linear, or fastai's with a hidden layer of 512 units
    #[arg(long, value_enum, default_value_t = Head::Linear)]
    head: Head,
    /// Classes of the head
    #[arg(long, default_value_t = CLASSES, value_name = "N", value_parser = count)]
    classes: usize,
    /// Samples of the data set
    #[arg(long, default_value_t = CACHED, value_name = "N", value_parser = samples)]
    samples: usize,
    #[command(flatten)]
    calls: Calls,
    #[command(flatten)]
    options: Options,
    /// Print a JSON object: seconds of an epoch, samples, and what `forward` prints
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Head {
    Linear,
    Fastai,
}

fn samples(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (2..=1 << 22).contains(&number) => Ok(number),
        _ => Err("give a whole number from 2 to 4194304".into()),
    }
}

impl Cache {
    pub fn run(self) -> Result<()> {
        let Options { arch, batch_size, ref compute, .. } = self.options;
        if batch_size > self.samples {
            let message = format!("{batch_size} are more than the {} samples", self.samples);
            return Err(Error::setting("--batch-size", message));
        }
        // Features are f32 whatever the backbone computes in.
        let (size, dtype) = (arch.published_size(), Precision::F32);
        let work = match self.head {
            Head::Linear => Work::Cached,
            Head::Fastai => Work::CachedFastai,
        };
        let cell = Cell { arch, size, batch_size, work, dtype, classes: self.classes };
        let task = Task::cached(cell, self.samples, self.calls.graphs(), compute.seed, &compute.open()?)?;
        let measured = self.options.measure(task)?;
        let seconds = self.samples as f64 / measured.rate();
        if self.json {
            let mut object = measured.object();
            object["samples"] = json!(self.samples);
            object["seconds"] = json!(seconds);
            outln!("{object}");
        } else {
            measured.print(false);
            outln!("  an epoch of {} samples: {seconds:.3} s", self.samples);
        }
        Ok(())
    }
}
