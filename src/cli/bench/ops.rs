//! `unfreeze bench ops`: each operation alone, at the shapes that a network has.

use std::collections::HashMap;

use clap::Args;
use serde_json::json;
use unfreeze::{
    Device, Precision, Result, Tensor,
    autograd::{Tape, Var},
    nn::{
        Arch,
        cost::{Convolution, Network, Roof, Work},
    },
    ops::{
        batchnorm::{Affine, Fused, Moments, batchnorm},
        conv::{self, Epilogue},
        linear,
        loss::{CrossEntropy, Target, cross_entropy},
        optimizer::{self, Item, Rate, Rates, Rule, Table},
        pool::{self, Window},
    },
    random::Random,
};

use super::{
    cell::CLASSES,
    measure::{Sorted, Timer},
    network::{Options, Timing},
    roof,
};
use crate::cli::options::side;

/// Bytes of an element: operations are measured in f32.
const ELEMENT: f64 = 4.0;

#[derive(Args)]
pub struct Ops {
    /// Side of the images in pixels [default: 224, or 32 for CIFAR networks]
    #[arg(long, value_name = "N", value_parser = side)]
    size: Option<usize>,
    #[command(flatten)]
    options: Options,
    /// Print a JSON object per operation: op, shape, count (how often the network has it), seconds (the median), flops,
    /// bytes, share of the roof (null if that is unknown)
    #[arg(long)]
    json: bool,
}

/// Measures and prints, one operation after the other.
struct Bench<'a> {
    device: &'a Device,
    timing: Timing,
    roof: Option<Roof>,
    json: bool,
    seed: u64,
}

impl Ops {
    pub fn run(self) -> Result<()> {
        let Options { arch, batch_size: batch, timing, roof: flags, ref compute } = self.options;
        let device = compute.open()?;
        let size = self.size.unwrap_or(arch.published_size());
        let network = Network { arch, size, batch, classes: CLASSES, precision: Precision::F32 };
        let roof = flags.roof(&device, Precision::F32)?;
        let bench = Bench { device: &device, timing, roof, json: self.json, seed: compute.seed };
        if !self.json {
            outln!("{arch} {size} px, batch {batch}, f32, {}", roof::product_name(&device));
            roof.iter().for_each(|roof| outln!("{}", roof::describe(&device, roof)));
            outln!(
                "{:<24} {:<34} {:>5} {:>10} {:>9} {:>8} {:>6}",
                "operation",
                "shape",
                "count",
                "us",
                "TFLOP/s",
                "GB/s",
                "share"
            );
        }
        let shapes =
            distinct(network.convolutions(), |c| (c.inputs, c.outputs, c.size, c.input_side, c.geometry.stride));
        for (convolution, count) in &shapes {
            bench.convolution(convolution, *count)?;
        }
        let outputs = distinct(network.convolutions(), |c| (c.output_side, c.outputs));
        for (convolution, count) in &outputs {
            bench.batchnorm([batch, convolution.output_side, convolution.output_side, convolution.outputs], *count)?;
        }
        bench.head(arch, &network)?;
        bench.optimizer(&network)
    }
}

/// Convolutions of different shapes, in order, and how many there are of each.
fn distinct<K: std::hash::Hash + Eq>(
    convolutions: Vec<Convolution>,
    key: impl Fn(&Convolution) -> K,
) -> Vec<(Convolution, usize)> {
    let mut places: HashMap<K, usize> = HashMap::new();
    let mut found: Vec<(Convolution, usize)> = Vec::new();
    for convolution in convolutions {
        let place = *places.entry(key(&convolution)).or_insert(found.len());
        match found.get_mut(place) {
            Some((_, count)) => *count += 1,
            None => found.push((convolution, 1)),
        }
    }
    found
}

impl Bench<'_> {
    fn convolution(&self, convolution: &Convolution, count: usize) -> Result<()> {
        let Convolution { batch, input_side, output_side, inputs, outputs, size, geometry, .. } = *convolution;
        let input = self.random([batch, input_side, input_side, inputs])?;
        let weight = self.random([outputs, size, size, inputs / geometry.groups])?;
        let grad = self.random([batch, output_side, output_side, outputs])?;
        let shape = format!("{inputs}->{outputs} {size}x{size}/{} {output_side}x{output_side}", geometry.stride);
        self.measure("conv forward", &shape, count, convolution.forward(Precision::F32), || {
            conv::forward(&input, &weight, geometry, Epilogue::default()).map(drop)
        })?;
        // No gradient of images is asked for.
        if inputs != 3 {
            self.measure("conv input gradient", &shape, count, convolution.input_grad(Precision::F32), || {
                conv::input_grad(&grad, &weight, input.shape(), geometry).map(drop)
            })?;
        }
        self.measure("conv weight gradient", &shape, count, convolution.weight_grad(Precision::F32), || {
            conv::weight_grad(&grad, &input, weight.shape(), geometry).map(drop)
        })
    }

    fn batchnorm(&self, shape: [usize; 4], count: usize) -> Result<()> {
        let [n, h, w, channels] = shape;
        let bytes = (n * h * w * channels) as f64 * ELEMENT;
        let name = format!("{channels} {h}x{w}");
        let (input, grad) = (self.random(shape)?, self.random(shape)?);
        let (ones, zeros) = (Tensor::full([channels], 1.0, self.device)?, Tensor::zeros([channels], self.device)?);
        self.measure("batchnorm moments", &name, count, moved(bytes), || Moments::of(&input).map(drop))?;
        let moments = Moments::of(&input)?;
        let apply = |tape: &mut Tape, input: &Var| {
            let (scale, shift) = (tape.leaf("scale", ones.clone()), tape.leaf("shift", zeros.clone()));
            let affine = Affine { scale: &scale, shift: &shift };
            batchnorm(tape, input, affine, &moments, true, 1e-5, Fused::default())
        };
        let constant = Var::constant(input.clone());
        self.measure("batchnorm apply", &name, count, moved(2.0 * bytes), || {
            apply(&mut Tape::new(), &constant).map(drop)
        })?;
        // Applied, then two passes back: sums of the gradient, and the gradient itself.
        self.measure("batchnorm apply + grad", &name, count, moved(7.0 * bytes), || {
            let mut tape = Tape::new();
            let input = tape.leaf("input", input.clone());
            let output = apply(&mut tape, &input)?;
            tape.backward_from(&output, grad.clone()).map(drop)
        })
    }

    fn head(&self, arch: Arch, network: &Network) -> Result<()> {
        let convolutions = network.convolutions();
        let (Some(stem), Some(last)) = (convolutions.first(), convolutions.last()) else { return Ok(()) };
        let (batch, features) = (network.batch, arch.features());
        if arch.published_size() > 32 {
            let side = stem.output_side;
            let input = self.random([batch, side, side, stem.outputs])?;
            let pooled = (batch * side.div_ceil(2).pow(2) * stem.outputs) as f64;
            // Values, and the places of maxima.
            let bytes = stem.output_elements() * ELEMENT + pooled * 2.0 * ELEMENT;
            self.measure("max pool", &format!("{} {side}x{side}", stem.outputs), 1, moved(bytes), || {
                pool::max_forward(&input, Window::STEM).map(drop)
            })?;
        }
        let side = last.output_side;
        let (activation, rows) = ((batch * side * side * features) as f64, (batch * features) as f64);
        let input = self.random([batch, side, side, features])?;
        let bytes = (activation + rows) * ELEMENT;
        self.measure("average pool", &format!("{features} {side}x{side}"), 1, moved(bytes), || {
            pool::average_forward(&input).map(drop)
        })?;
        let (x, weight) = (self.random([batch, features])?, self.random([CLASSES, features])?);
        let bias = Tensor::zeros([CLASSES], self.device)?;
        let flops = 2.0 * rows * CLASSES as f64;
        let bytes = (rows + (CLASSES * (features + batch)) as f64) * ELEMENT;
        self.measure("linear", &format!("{features}->{CLASSES}"), 1, Work { flops, bytes }, || {
            linear::forward(&x, &weight, &bias).map(drop)
        })?;
        let logits = self.random([batch, CLASSES])?;
        let labels = (0..batch as u32).map(|row| row % CLASSES as u32).collect();
        let target = Target::labels(labels, CLASSES, self.device)?;
        let bytes = 2.0 * (batch * CLASSES) as f64 * ELEMENT;
        self.measure("cross entropy + grad", &format!("{CLASSES}"), 1, moved(bytes), || {
            let mut tape = Tape::new();
            let logits = tape.leaf("logits", logits.clone());
            let loss = cross_entropy(&mut tape, &logits, &target, &CrossEntropy::default())?;
            tape.backward(&loss).map(drop)
        })
    }

    fn optimizer(&self, network: &Network) -> Result<()> {
        let shapes: Vec<[usize; 4]> =
            network.convolutions().iter().map(|c| [c.outputs, c.size, c.size, c.inputs / c.geometry.groups]).collect();
        let all = || shapes.iter().map(|shape| self.random(*shape)).collect::<Result<Vec<_>>>();
        let (mut parameters, grads, momenta) = (all()?, all()?, all()?);
        let mut momenta: Vec<[Tensor; 1]> = momenta.into_iter().map(|momentum| [momentum]).collect();
        let elements: f64 = network.convolutions().iter().map(Convolution::weights).sum();
        let rule = Rule::Sgd { momentum: 0.9, nesterov: false };
        let rates = Rates::new(rule, &[Rate { lr: 1e-6, weight_decay: 1e-4 }], self.device)?;
        let mut table = Table::default();
        let name = format!("{:.1} M parameters", elements / 1e6);
        self.measure("sgd", &name, 1, moved(elements * 5.0 * ELEMENT), || {
            let tensors = parameters.iter_mut().zip(&grads).zip(&mut momenta);
            let mut items: Vec<Item> = tensors
                .map(|((parameter, grad), buffers)| Item { parameter, grad, buffers, packed: None, group: 0 })
                .collect();
            optimizer::step(&rates, &mut items, &mut table)
        })
    }

    fn measure(&self, op: &str, shape: &str, count: usize, work: Work, step: impl FnMut() -> Result<()>) -> Result<()> {
        let mut timer = Timer::new(self.device, self.timing.warm_up.min(self.timing.seconds), step)?;
        let block = |_| timer.block(self.timing.seconds).map(|block| block.seconds / block.steps as f64);
        let seconds = Sorted::new((0..self.timing.rounds).map(block).collect::<Result<_>>()?).median();
        let share = self.roof.map(|roof| roof.seconds(work) / seconds);
        let Work { flops, bytes } = work;
        if self.json {
            let object = json!({ "op": op, "shape": shape, "count": count, "seconds": seconds, "flops": flops,
                                 "bytes": bytes, "share": share });
            outln!("{object}");
        } else {
            let (micro, tera, giga) = (seconds * 1e6, flops / seconds / 1e12, bytes / seconds / 1e9);
            let share = share.map_or("-".into(), |share| format!("{share:.2}"));
            outln!("{op:<24} {shape:<34} {count:>5} {micro:>10.1} {tera:>9.3} {giga:>8.1} {share:>6}");
        }
        Ok(())
    }

    fn random<const D: usize>(&self, shape: [usize; D]) -> Result<Tensor>
    where
        unfreeze::Shape: From<[usize; D]>,
    {
        let elements: usize = shape.iter().product();
        let mut random = Random::stream(self.seed, "bench ops", &[elements as u64]);
        Tensor::new((0..elements).map(|_| random.uniform(-1.0, 1.0)).collect::<Vec<f32>>(), shape, self.device)
    }
}

fn moved(bytes: f64) -> Work {
    Work { flops: 0.0, bytes }
}
