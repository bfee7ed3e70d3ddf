//! `unfreeze bench ops`: each operation alone, at the shapes that a network has.

mod plain;
mod rest;
mod tensor_cores;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, hash::Hash};

use clap::Args;
use serde_json::json;
use unfreeze::{
    Device, Precision, Result, Shape, Tensor,
    nn::cost::{Convolution, Network, Roof, Work},
    random::Random,
};

use super::{
    cell::CLASSES,
    explain::launches,
    measure::{Sorted, Timer},
    network::{Images, Options, Timing},
    roof,
};

#[derive(Args)]
pub struct Ops {
    #[command(flatten)]
    images: Images,
    #[command(flatten)]
    options: Options,
    /// Print a JSON object per operation: op, shape, count (how often the network has it), seconds (the median), flops,
    /// bytes, share of the roof (null if that is unknown), kernels (that a GPU launches for it)
    #[arg(long)]
    json: bool,
}

/// Measures one operation after the other, and shows what came of each.
struct Bench<'a> {
    device: &'a Device,
    network: Network,
    timing: Timing,
    roof: Option<Roof>,
    seed: u64,
    show: &'a dyn Fn(Row),
}

/// An operation, measured.
struct Row {
    op: &'static str,
    shape: String,
    /// How often the network has it.
    count: usize,
    /// The median.
    seconds: f64,
    work: Work,
    share: Option<f64>,
    /// Kernels that a GPU launches for it, by name.
    kernels: Vec<&'static str>,
}

impl Ops {
    pub fn run(self) -> Result<()> {
        let Options { arch, batch_size: batch, timing, roof: flags, ref compute } = self.options;
        let (device, precision) = (compute.open()?, self.images.dtype);
        precision.check(&device)?;
        let size = self.images.size.unwrap_or(arch.published_size());
        let network = Network { arch, size, batch, classes: CLASSES, precision };
        let roof = flags.roof(&device, precision)?;
        if !self.json {
            outln!("{arch} {size} px, batch {batch}, {precision}, {}", roof::product_name(&device));
            roof.iter().for_each(|roof| outln!("{}", roof::describe(&device, roof)));
            outln!(
                "{:<28} {:<30} {:>5} {:>10} {:>9} {:>8} {:>6}  kernels",
                "operation",
                "shape",
                "count",
                "us",
                "TFLOP/s",
                "GB/s",
                "share"
            );
        }
        let show = &|row: Row| row.print(self.json);
        let bench = Bench { device: &device, network, timing, roof, seed: compute.seed, show };
        bench.all(&network.convolutions())
    }
}

/// What differs by `key`, in order, and how many there are of each.
fn distinct<T, K: Hash + Eq>(all: impl IntoIterator<Item = T>, key: impl Fn(&T) -> K) -> Vec<(T, usize)> {
    let mut places: HashMap<K, usize> = HashMap::new();
    let mut found: Vec<(T, usize)> = Vec::new();
    for one in all {
        let place = *places.entry(key(&one)).or_insert(found.len());
        match found.get_mut(place) {
            Some((_, count)) => *count += 1,
            None => found.push((one, 1)),
        }
    }
    found
}

/// Convolutions of different shapes.
fn shapes(all: &[Convolution]) -> Vec<(&Convolution, usize)> {
    distinct(all, |c| (c.inputs, c.outputs, c.size, c.input_side, c.geometry.stride))
}

/// The shape of a convolution for people to read.
fn shape(c: &Convolution) -> String {
    format!(
        "{}->{} {}x{}/{} {side}x{side}",
        c.inputs,
        c.outputs,
        c.size,
        c.size,
        c.geometry.stride,
        side = c.output_side
    )
}

impl Bench<'_> {
    /// Every operation of a network that has these convolutions.
    fn all(&self, convolutions: &[Convolution]) -> Result<()> {
        match self.network.precision {
            Precision::F32 => self.plain(convolutions)?,
            _ => self.tensor_cores(convolutions)?,
        }
        self.rest(convolutions)
    }

    fn measure(
        &self,
        op: &'static str,
        shape: &str,
        count: usize,
        work: Work,
        mut step: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let before = launches(self.device).unwrap_or_default();
        let mut timer = Timer::new(self.device, self.timing.warm_up.min(self.timing.seconds), |_| step().map(|()| 1))?;
        let launched = launches(self.device).unwrap_or_default();
        let kernels = launched.into_iter().filter(|(name, count)| before.get(name) != Some(count));
        let block = |_| timer.block(self.timing.seconds).map(|block| block.seconds / block.steps as f64);
        let seconds = Sorted::new((0..self.timing.rounds).map(block).collect::<Result<_>>()?).median();
        (self.show)(Row {
            op,
            shape: shape.into(),
            count,
            seconds,
            work,
            share: self.roof.map(|roof| roof.seconds(work) / seconds),
            kernels: kernels.map(|(name, _)| name).collect(),
        });
        Ok(())
    }

    /// An activation of the batch, stored as the network does.
    fn map(&self, side: usize, channels: usize) -> Result<Tensor> {
        self.random([self.network.batch, side, side, channels])?.cast(self.network.precision.storage())
    }

    /// Elements of such an activation.
    fn elements(&self, side: usize, channels: usize) -> f64 {
        (self.network.batch * side * side * channels) as f64
    }

    /// Bytes of an element of it.
    fn element(&self) -> f64 {
        self.network.precision.storage().bytes() as f64
    }

    fn random(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let mut random = Random::stream(self.seed, "bench ops", &[shape.elements() as u64]);
        Tensor::new((0..shape.elements()).map(|_| random.uniform(-1.0, 1.0)).collect::<Vec<f32>>(), shape, self.device)
    }
}

impl Row {
    fn print(&self, json: bool) {
        let Row { op, shape, count, seconds, work: Work { flops, bytes }, share, kernels } = self;
        if json {
            let object = json!({ "op": op, "shape": shape, "count": count, "seconds": seconds, "flops": flops,
                                 "bytes": bytes, "share": share, "kernels": kernels });
            return outln!("{object}");
        }
        let (micro, tera, giga) = (seconds * 1e6, flops / seconds / 1e12, bytes / seconds / 1e9);
        let (share, kernels) = (share.map_or("-".into(), |share| format!("{share:.2}")), kernels.join(", "));
        outln!("{op:<28} {shape:<30} {count:>5} {micro:>10.1} {tera:>9.3} {giga:>8.1} {share:>6}  {kernels}");
    }
}

/// Work that is nothing but `bytes` moved.
fn moved(bytes: f64) -> Work {
    Work { flops: 0.0, bytes }
}
