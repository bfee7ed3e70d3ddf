//! Pools, the head and the optimizer, in any precision.

use unfreeze::{
    Device, Precision, Result, Tensor,
    autograd::{Packed, Tape},
    nn::cost::{Convolution, Work},
    ops::{
        conv::mma,
        head_trainer::{self, Head, Samples, Steps},
        linear,
        loss::{CrossEntropy, Target, cross_entropy},
        optimizer::{self, Item, Rate, Rates, Rule, Table},
        pool::{self, Window},
    },
};

use super::{Bench, moved};
use crate::cli::bench::cell::CLASSES;

/// Bytes of an element of what is f32, or a position of 32 bits, whatever the precision.
const WORD: f64 = 4.0;

/// What moves weights, too slowly to matter.
const RULE: Rule = Rule::Sgd { momentum: 0.9, nesterov: false, decoupled: false };
const LR: f32 = 1e-6;
const WD: f32 = 1e-4;

/// Steps of the head in one launch.
const STEPS: usize = 32;

impl Bench<'_> {
    pub(super) fn rest(&self, convolutions: &[Convolution]) -> Result<()> {
        self.pools(convolutions)?;
        self.head()?;
        if let Device::Cuda(_) = self.device {
            self.head_trainer()?;
        }
        self.optimizer(convolutions)
    }

    pub(super) fn pools(&self, convolutions: &[Convolution]) -> Result<()> {
        let (Some(stem), Some(last)) = (convolutions.first(), convolutions.last()) else { return Ok(()) };
        if self.is_pooled() {
            let (side, channels) = (stem.output_side, stem.outputs);
            let input = self.map(side, channels)?;
            let name = format!("{channels} {side}x{side}");
            let (from, to) = (stem.output_elements() * self.element(), self.elements(side.div_ceil(2), channels));
            // A GPU's kernel always writes the places of maxima, which training needs.
            if let Device::Cpu(_) = self.device {
                self.measure("max pool, evaluation", &name, 1, moved(from + to * self.element()), || {
                    pool::max_values(&input, Window::STEM).map(drop)
                })?;
            }
            self.measure("max pool", &name, 1, moved(from + to * (self.element() + WORD)), || {
                pool::max_forward(&input, Window::STEM).map(drop)
            })?;
        }
        let (side, channels) = (last.output_side, last.outputs);
        let name = format!("{channels} {side}x{side}");
        let bytes = self.elements(side, channels) * self.element() + self.elements(1, channels) * WORD;
        let input = self.map(side, channels)?;
        self.measure("average pool", &name, 1, moved(bytes), || pool::average_forward(&input).map(drop))?;
        let grad = self.random([self.network.batch, channels])?;
        self.measure("average pool + grad", &name, 1, moved(2.0 * bytes), || {
            let mut tape = Tape::new();
            let input = tape.leaf("input", input.clone());
            let output = pool::average_pool(&mut tape, &input)?;
            tape.backward_from(&output, grad.clone()).map(drop)
        })
    }

    /// Whether the stem ends in a maximum pool.
    pub(super) fn is_pooled(&self) -> bool {
        self.network.arch.published_size() > 32
    }

    fn head(&self) -> Result<()> {
        let (batch, features) = (self.network.batch, self.network.arch.features());
        let (x, weight) = (self.random([batch, features])?, self.random([CLASSES, features])?);
        let bias = Tensor::zeros([CLASSES], self.device)?;
        let flops = 2.0 * (batch * features * CLASSES) as f64;
        let bytes = (batch * features + CLASSES * (features + batch)) as f64 * WORD;
        self.measure("linear", &format!("{features}->{CLASSES}"), 1, Work { flops, bytes }, || {
            linear::forward(&x, &weight, &bias).map(drop)
        })?;
        let logits = self.random([batch, CLASSES])?;
        let labels = (0..batch as u32).map(|row| row % CLASSES as u32).collect();
        let target = Target::labels(labels, CLASSES, self.device)?;
        let bytes = 2.0 * (batch * CLASSES) as f64 * WORD;
        self.measure("cross entropy + grad", &format!("{CLASSES}"), 1, moved(bytes), || {
            let mut tape = Tape::new();
            let logits = tape.leaf("logits", logits.clone());
            let loss = cross_entropy(&mut tape, &logits, &target, &CrossEntropy::default())?;
            tape.backward(&loss).map(drop)
        })
    }

    /// Steps of a linear head on cached features, all in one launch.
    fn head_trainer(&self) -> Result<()> {
        let (batch, width) = (self.network.batch, self.network.arch.features());
        let samples = STEPS * batch;
        let features = self.random([samples, width])?;
        let labels = Tensor::new((0..samples).map(|row| (row % CLASSES) as u32).collect(), [samples], self.device)?;
        let rows: Vec<u32> = (0..samples as u32).collect();
        let batches: Vec<Vec<u32>> = rows.chunks(batch).map(<[u32]>::to_vec).collect();
        let (mut weight, mut bias) = (self.random([CLASSES, width])?, self.random([CLASSES])?);
        let mut weight_buffers = [Tensor::zeros(weight.shape(), self.device)?];
        let mut bias_buffers = [Tensor::zeros(bias.shape(), self.device)?];
        let products = (samples * width * CLASSES) as f64;
        // Features for both products, weights and momenta read and written in each step.
        let bytes = (2 * samples * width + 4 * STEPS * width * CLASSES) as f64 * WORD;
        let (name, work) = (format!("{width}->{CLASSES}, {STEPS} steps"), Work { flops: 4.0 * products, bytes });
        self.measure("head, one launch", &name, 1, work, || {
            let mut head = Head {
                weight: &mut weight,
                bias: &mut bias,
                weight_buffers: &mut weight_buffers,
                bias_buffers: &mut bias_buffers,
            };
            let samples = Samples { features: &features, labels: &labels };
            let steps = Steps { batches: &batches, lrs: &[LR; STEPS], weight_decays: [WD; 2], rules: &[RULE; STEPS] };
            head_trainer::train(&mut head, samples, steps, &CrossEntropy::default()).map(drop)
        })
    }

    /// A step of all convolutions' weights, and of the copies that tensor cores read.
    fn optimizer(&self, convolutions: &[Convolution]) -> Result<()> {
        let weight = |c: &Convolution| self.random([c.outputs, c.size, c.size, c.inputs / c.geometry.groups]);
        let all = || convolutions.iter().map(weight).collect::<Result<Vec<_>>>();
        let (mut parameters, grads, momenta) = (all()?, all()?, all()?);
        let mut momenta: Vec<[Tensor; 1]> = momenta.into_iter().map(|momentum| [momentum]).collect();
        let packed = parameters.iter().zip(convolutions).map(|(weight, convolution)| self.packed(weight, convolution));
        let mut packed = packed.collect::<Result<Vec<_>>>()?;
        let copies = packed.iter().flatten().flat_map(|packed| [Some(&packed.forward), packed.flipped.as_ref()]);
        let copied: usize = copies.flatten().map(|copy| copy.shape().elements()).sum();
        let elements: f64 = convolutions.iter().map(Convolution::weights).sum();
        let rates = Rates::new(RULE, &[Rate { lr: LR, weight_decay: WD }], self.device)?;
        let mut table = Table::default();
        let work = moved(elements * 5.0 * WORD + copied as f64 * self.element());
        self.measure("sgd", &format!("{:.1} M parameters", elements / 1e6), 1, work, || {
            let tensors = parameters.iter_mut().zip(&grads).zip(&mut momenta).zip(&mut packed);
            let mut items: Vec<Item> = tensors
                .map(|(((parameter, grad), buffers), packed)| Item {
                    parameter,
                    grad,
                    buffers,
                    packed: packed.as_mut(),
                    group: 0,
                })
                .collect();
            optimizer::step(&rates, &mut items, &mut table)
        })
    }

    /// The copies of a weight that the network keeps in its precision.
    pub(super) fn packed(&self, weight: &Tensor, convolution: &Convolution) -> Result<Option<Packed>> {
        let (groups, precision) = (convolution.geometry.groups, self.network.precision);
        match precision {
            Precision::F32 => Ok(None),
            // No gradient of images is asked for.
            _ => mma::pack(weight, groups, precision, convolution.inputs != 3).map(Some),
        }
    }
}
