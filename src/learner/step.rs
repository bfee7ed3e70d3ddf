//! One step of training: forward, backward, optimizer, statistics. On a GPU, where a step is hundreds of launches, one
//! that finds all as the step before left it is captured as a CUDA graph, and those after it are replays. In a fit that is
//! the third: the first makes the optimizer's buffers.

use std::sync::Arc;

use super::{Objective, objective};
use crate::{
    DType, Device, Error, Precision, Result, Tensor,
    autograd::Var,
    device::{CudaDevice, cuda::Graph},
    nn::{Arch, Grouping, HeadSpec, Model, Pass},
    ops::loss::{Target, check_labels},
    optim::{Optimizer, OptimizerKind},
};

/// A batch on its way into the network.
pub enum Input {
    /// Normalised images `[N, H, W, C]`.
    Images(Tensor),
    /// A cached activation.
    Activation {
        /// So many of the backbone's units have made it.
        units: usize,
        /// Their output, `[N, h, w, C]`.
        output: Tensor,
    },
    /// Cached features `[N, F]`.
    Features(Tensor),
}

/// What the samples of a batch should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// The class of each.
    Classes(Vec<u32>),
    /// The share of each class in each sample, or the target of each output, `[N, classes]`, row after row.
    Shares(Vec<f32>),
}

impl From<Vec<u32>> for Labels {
    fn from(labels: Vec<u32>) -> Self {
        Labels::Classes(labels)
    }
}

impl Labels {
    /// Number of samples, of so many classes.
    pub(super) fn samples(&self, classes: usize) -> usize {
        match self {
            Labels::Classes(labels) => labels.len(),
            Labels::Shares(shares) => shares.len() / classes.max(1),
        }
    }

    /// The share of each class in each sample, row after row.
    pub(super) fn shares(self, classes: usize) -> Vec<f32> {
        match self {
            Labels::Classes(labels) => {
                let mut shares = vec![0.0; labels.len() * classes];
                let rows = shares.chunks_exact_mut(classes.max(1)).zip(labels);
                rows.filter_map(|(row, label)| row.get_mut(label as usize)).for_each(|share| *share = 1.0);
                shares
            }
            Labels::Shares(shares) => shares,
        }
    }

    /// As the loss takes them.
    pub(super) fn target(self, classes: usize, device: &Device) -> Result<Target> {
        match self {
            Labels::Classes(labels) => Target::labels(labels, classes, device),
            Labels::Shares(shares) => {
                let shape = [shares.len() / classes.max(1), classes];
                Ok(Target::Soft(Tensor::new(shares, shape, device)?))
            }
        }
    }

    /// Writes them where `target`, of their kind and number, lies.
    fn overwrite(&self, target: &mut Target, classes: usize) -> Result<()> {
        match (self, target) {
            (Labels::Classes(labels), Target::Labels(place)) => {
                check_labels(labels, classes)?;
                place.overwrite(labels)
            }
            (Labels::Shares(shares), Target::Soft(place)) => place.overwrite(shares),
            (_, target) => Err(Error::shape("labels", format!("are not of the kind of {target:?}"))),
        }
    }
}

impl Input {
    pub(super) fn tensor(&self) -> &Tensor {
        let (Input::Images(tensor) | Input::Activation { output: tensor, .. } | Input::Features(tensor)) = self;
        tensor
    }

    fn tensor_mut(&mut self) -> &mut Tensor {
        let (Input::Images(tensor) | Input::Activation { output: tensor, .. } | Input::Features(tensor)) = self;
        tensor
    }

    /// The backbone's units that it has behind it; `None` if that is all of them and the pool.
    pub(super) fn units(&self) -> Option<usize> {
        match self {
            Input::Images(_) => Some(0),
            Input::Activation { units, .. } => Some(*units),
            Input::Features(_) => None,
        }
    }

    /// Logits `[N, classes]` of it.
    ///
    /// # Errors
    /// [`Error::Shape`] if it does not fit `model`.
    pub fn logits(&self, model: &Model, pass: &mut Pass) -> Result<Var> {
        let input = Var::constant(self.tensor().clone());
        match self.units() {
            Some(units) => model.forward_from(pass, &input, units),
            None => model.head.classify(pass, &input),
        }
    }

    /// The same in memory of its own.
    fn duplicate(&self, cuda: &CudaDevice) -> Result<Self> {
        let mut copy = match self {
            Input::Images(images) => Input::Images(images.clone()),
            Input::Activation { units, output } => Input::Activation { units: *units, output: output.clone() },
            Input::Features(features) => Input::Features(features.clone()),
        };
        let tensor = copy.tensor_mut();
        tensor.address_mut(tensor.dtype(), cuda)?;
        Ok(copy)
    }
}

/// What a step trains, and how.
pub struct Step<'a> {
    /// The network.
    pub model: &'a mut Model,
    /// What moves its parameters.
    pub optimizer: &'a mut Optimizer,
    /// What is minimised.
    pub loss: Objective<'a>,
    /// A learning rate per layer group.
    pub lrs: &'a [f32],
    /// A weight decay per layer group.
    pub weight_decays: &'a [f32],
    /// Momentum, or AdamW's β₁.
    pub momentum: f32,
    /// Decides with `number` what is dropped.
    pub seed: u64,
    /// Number of the step.
    pub number: u64,
}

/// Makes steps, and keeps the graph of the last kind of them.
pub struct Stepper {
    graphs: bool,
    /// The last kind of step that was made launch by launch.
    met: Option<Kind>,
    recorded: Option<Recorded>,
    /// How often a graph of this kind had to give up its memory.
    evictions: usize,
    /// Steps of this kind are not captured: that failed, or would not last.
    refused: bool,
    /// Why it failed, until that is told.
    refusal: Option<Error>,
}

/// Graphs of a kind that may be captured anew, when they had to give up their memory.
const MOST_EVICTIONS: usize = 1;

/// A captured step, and what is new in each replay.
struct Recorded {
    kind: Kind,
    graph: Graph,
    input: Input,
    target: Target,
    number: Tensor,
    loss: Tensor,
}

/// What decides the launches of a step: two of one kind differ in the values at the same addresses alone.
#[derive(Clone, PartialEq)]
struct Kind {
    batch_size: usize,
    rest: Rest,
}

/// All but the size of the batch.
#[derive(Clone, PartialEq)]
struct Rest {
    /// Address of what describes it.
    device: usize,
    input: (Option<usize>, DType, Vec<usize>),
    /// Whether labels are shares.
    shares: bool,
    arch: Arch,
    head: HeadSpec,
    classes: usize,
    grouping: Grouping,
    precision: Precision,
    model: Vec<u64>,
    rule: OptimizerKind,
    optimizer: Vec<u64>,
    loss: objective::Kind,
    seed: u64,
}

impl Kind {
    fn of(step: &mut Step, input: &Input, labels: &Labels, cuda: &CudaDevice) -> Result<Self> {
        let tensor = input.tensor();
        let (batch_size, sample) = tensor.dims().split_first().unwrap_or((&0, &[]));
        let rest = Rest {
            device: std::ptr::from_ref(cuda) as usize,
            input: (input.units(), tensor.dtype(), sample.to_vec()),
            shares: matches!(labels, Labels::Shares(_)),
            arch: step.model.arch(),
            head: step.model.head.spec().clone(),
            classes: step.model.head.classes(),
            grouping: step.model.grouping(),
            precision: step.model.precision(),
            model: step.model.fingerprint(cuda)?,
            rule: step.optimizer.kind(),
            optimizer: step.optimizer.fingerprint(cuda)?,
            loss: step.loss.kind(cuda)?,
            seed: step.seed,
        };
        Ok(Self { batch_size: *batch_size, rest })
    }
}

impl Stepper {
    /// Makes steps; with `graphs` those on a GPU are captured.
    pub fn new(graphs: bool) -> Self {
        Self { graphs, met: None, recorded: None, evictions: 0, refused: false, refusal: None }
    }

    /// Whether steps are to be captured.
    pub fn graphs(&self) -> bool {
        self.graphs
    }

    /// Gives the graph up, with its memory.
    pub fn reset(&mut self) {
        *self = Self { refusal: self.refusal.take(), ..Self::new(self.graphs) };
    }

    /// Why a step could not be captured, where that failed; told once.
    pub fn take_refusal(&mut self) -> Option<Error> {
        self.refusal.take()
    }

    /// Makes `step` on `input`, whose samples have `labels`, and returns the loss, a scalar, which the next step may
    /// overwrite. A forward pass changes nothing: gradients and batch statistics are applied together at the end, and
    /// not at all if the loss is not finite; but a GPU, which has not computed the loss when this returns, applies them
    /// in any case.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`]; [`Error::Shape`] where input, labels and network do not fit,
    /// [`Error::Setting`] where rates and layer groups do not.
    pub fn step(&mut self, mut step: Step, input: &Input, labels: impl Into<Labels>) -> Result<Tensor> {
        let labels = labels.into();
        let Device::Cuda(cuda) = step.model.device().clone() else { return step.run(input, labels) };
        if !self.graphs {
            return step.run(input, labels);
        }
        let kind = Kind::of(&mut step, input, &labels, &cuda)?;
        if let Some(loss) = self.replay(&kind, &mut step, input, &labels, &cuda)? {
            return Ok(loss);
        }
        let loss = step.run(input, labels)?;
        // It has left what the next of its kind finds. The short batch at the end of an epoch leaves what is known of
        // others.
        if !self.met.as_ref().is_some_and(|met| met.rest == kind.rest && met.batch_size > kind.batch_size) {
            self.met = Some(kind);
        }
        Ok(loss)
    }

    /// Makes the step as a replay; `None` if it is to be made launch by launch.
    fn replay(
        &mut self,
        kind: &Kind,
        step: &mut Step,
        input: &Input,
        labels: &Labels,
        cuda: &Arc<CudaDevice>,
    ) -> Result<Option<Tensor>> {
        if self.met.as_ref().is_some_and(|met| met.rest != kind.rest) {
            // The memory of the graph is needed elsewhere.
            self.reset();
        }
        if self.recorded.as_ref().is_none_or(|recorded| recorded.kind != *kind) {
            if self.refused || self.met.as_ref() != Some(kind) {
                return Ok(None);
            }
            self.recorded = None;
            match Recorded::capture(kind.clone(), step, input, labels, cuda) {
                Ok(recorded) => self.recorded = Some(recorded),
                Err(error) => {
                    // Launch by launch it may do; if not, that says why.
                    (self.refused, self.refusal) = (true, Some(error));
                    return Ok(None);
                }
            }
        }
        let Some(recorded) = &mut self.recorded else { return Ok(None) };
        let loss = recorded.replay(step, input, labels, cuda)?;
        if loss.is_none() {
            // It had to give up its memory; to take it again and again would cost more than it saves.
            self.recorded = None;
            self.evictions += 1;
            if self.evictions > MOST_EVICTIONS {
                let message = "its memory is needed elsewhere again and again; a smaller batch leaves room for it";
                (self.refused, self.refusal) = (true, Some(cuda.error(message)));
            }
        }
        Ok(loss)
    }
}

impl Recorded {
    fn capture(kind: Kind, step: &mut Step, input: &Input, labels: &Labels, cuda: &Arc<CudaDevice>) -> Result<Self> {
        let device = Device::Cuda(cuda.clone());
        let input = input.duplicate(cuda)?;
        let target = labels.clone().target(step.model.head.classes(), &device)?;
        let number = Tensor::new(halves(step.number).to_vec(), [2], &device)?;
        // Beyond the graph's own memory, which it may have to give up, like all that it is fed with.
        let mut loss = Tensor::zeros([], &device)?;
        let (graph, ()) = cuda.capture(|| {
            let mut pass = Pass::captured(step.seed, number.clone());
            let of_batch = self::loss(step.model, &mut pass, &input, &target, step.loss)?;
            loss.assign(of_batch.value(), cuda)?;
            let statistics = pass.take_statistics();
            let gradients = pass.tape.backward(&of_batch)?;
            step.optimizer.apply(step.model, &gradients)?;
            step.model.update_statistics(statistics)
        })?;
        Ok(Self { kind, graph, input, target, number, loss })
    }

    /// Makes `step`; `None` if the graph had to give up its memory.
    fn replay(&mut self, step: &mut Step, input: &Input, labels: &Labels, cuda: &CudaDevice) -> Result<Option<Tensor>> {
        labels.overwrite(&mut self.target, step.model.head.classes())?;
        self.input.tensor_mut().assign(input.tensor(), cuda)?;
        self.number.overwrite(&halves(step.number))?;
        step.optimizer.prepare(step.model, step.lrs, step.weight_decays, step.momentum)?;
        let replayed = self.graph.replay();
        if !matches!(replayed, Ok(true)) {
            step.optimizer.withdraw();
        }
        Ok(replayed?.then(|| self.loss.clone()))
    }
}

/// A number as two of 32 bits, the lower first.
fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}

impl Step<'_> {
    /// Makes the step launch by launch.
    fn run(&mut self, input: &Input, labels: Labels) -> Result<Tensor> {
        let device = self.model.device().clone();
        let target = labels.target(self.model.head.classes(), &device)?;
        let mut pass = Pass::training(self.seed, self.number);
        let loss = loss(self.model, &mut pass, input, &target, self.loss)?;
        let value = loss.value().clone();
        // To ask a GPU would be to wait for it.
        if matches!(device, Device::Cpu(_)) && !value.scalar()?.is_finite() {
            return Ok(value);
        }
        let statistics = pass.take_statistics();
        let gradients = pass.tape.backward(&loss)?;
        let (lrs, weight_decays, momentum) = (self.lrs, self.weight_decays, self.momentum);
        self.optimizer.step_with(self.model, &gradients, lrs, weight_decays, momentum)?;
        self.model.update_statistics(statistics)?;
        Ok(value)
    }
}

/// The loss of a batch, a scalar.
pub(super) fn loss(
    model: &Model,
    pass: &mut Pass,
    input: &Input,
    target: &Target,
    objective: Objective,
) -> Result<Var> {
    let logits = input.logits(model, pass)?;
    objective.loss(&mut pass.tape, &logits, target)
}
