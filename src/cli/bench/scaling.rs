//! `unfreeze bench scaling`: how the frozen network's speed depends on threads, batch and image size.

use std::collections::HashMap;

use clap::Args;
use serde_json::json;
use unfreeze::{Device, Precision, Result, nn::Arch};

use super::{
    cell::{CLASSES, Cell, Work},
    network::{Measured, Timing},
    roof::RoofFlags,
    task::Task,
};
use crate::cli::options::{count, side};

/// What stays as it is while something else changes.
const BATCH_SIZE: usize = 16;

/// The frozen network with more threads, larger batches and larger images
///
/// On the processor, in f32. Of threads, batch and size one changes at a time; the others are the most threads, batches
/// of 16, and the size that the network was published with.
#[derive(Args)]
pub struct Scaling {
    /// Architecture, such as resnet34
    #[arg(long, default_value = "resnet34")]
    arch: Arch,
    /// Worker threads [default: 1, 2, 4 … and one per core]
    #[arg(long, value_delimiter = ',', value_name = "N,N", value_parser = count)]
    threads: Vec<usize>,
    /// Images per batch
    #[arg(long, value_delimiter = ',', default_values = ["1", "4", "16", "64"], value_name = "N,N", value_parser = count)]
    batch_size: Vec<usize>,
    /// Sides of the images in pixels [default: 64, 128, 192, 224, 256 and 299; for CIFAR networks 32 and 64]
    #[arg(long, value_delimiter = ',', value_name = "N,N", value_parser = side)]
    size: Vec<usize>,
    #[command(flatten)]
    timing: Timing,
    #[command(flatten)]
    roof: RoofFlags,
    /// Decides every random choice
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Print a JSON object per line of the table, as `forward` does
    #[arg(long)]
    json: bool,
}

/// Threads, batch and size.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    threads: usize,
    batch_size: usize,
    size: usize,
}

impl Scaling {
    pub fn run(mut self) -> Result<()> {
        let (arch, cores) = (self.arch, Device::cpu(0)?.threads());
        let usual = arch.published_size();
        if self.threads.is_empty() {
            self.threads = powers_below(cores);
        }
        if self.size.is_empty() {
            self.size = if usual < 64 { vec![32, 64] } else { vec![64, 128, 192, 224, 256, 299] };
        }
        let mut roofs = HashMap::new();
        if !self.json {
            outln!("{arch}, frozen, f32");
            outln!(
                "{:>7} {:>5} {:>5} {:>10} {:>9} {:>9} {:>6}  tensors at the peak",
                "threads",
                "batch",
                "size",
                "images/s",
                "5 %",
                "95 %",
                "share"
            );
        }
        for Point { threads, batch_size, size: side } in self.points(usual) {
            let device = Device::cpu(threads)?;
            let roof = match roofs.get(&threads) {
                Some(roof) => *roof,
                None => *roofs.entry(threads).or_insert(self.roof.roof(&device, Precision::F32)?),
            };
            let (work, dtype) = (Work::Forward, Precision::F32);
            let cell = Cell { arch, size: side, batch_size, work, dtype, classes: CLASSES };
            let measured = Measured::of(Task::new(cell, false, self.seed, &device)?, self.timing, roof)?;
            if self.json {
                let mut object = measured.object();
                object["bench"] = json!("scaling");
                outln!("{object}");
                continue;
            }
            let [low, high] = measured.spread();
            let share = measured.share().map_or("-".into(), |share| format!("{share:.2}"));
            let (rate, memory) = (measured.rate(), measured.memory());
            outln!("{threads:>7} {batch_size:>5} {side:>5} {rate:>10.1} {low:>9.1} {high:>9.1} {share:>6}  {memory}");
        }
        Ok(())
    }

    /// Every line of the table, each once.
    fn points(&self, usual: usize) -> Vec<Point> {
        let most = self.threads.iter().copied().max().unwrap_or(1);
        let middle = Point { threads: most, batch_size: BATCH_SIZE, size: usual };
        let threads = self.threads.iter().map(|&threads| Point { threads, ..middle });
        let batches = self.batch_size.iter().map(|&batch_size| Point { batch_size, ..middle });
        let sizes = self.size.iter().map(|&size| Point { size, ..middle });
        let mut points = Vec::new();
        for point in threads.chain(batches).chain(sizes) {
            if !points.contains(&point) {
                points.push(point);
            }
        }
        points
    }
}

/// 1, 2, 4 … below `cores`, and `cores`.
fn powers_below(cores: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |threads| Some(2 * threads));
    powers.take_while(|threads| *threads < cores).chain([cores]).collect()
}
