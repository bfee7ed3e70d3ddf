//! A cell made ready: a network and random data on the device, and its step.

use unfreeze::{
    Device, Error, Result, Tensor,
    autograd::Var,
    cache::Activations,
    checkpoint::{Checkpoint, LoadOptions, load_into},
    data::{Batch, RgbImage, Transforms, View, shuffled},
    nn::{FreezeState, Grouping, HeadSpec, Model, Pass},
    ops::loss::{CrossEntropy, Target, cross_entropy},
    optim::{Optimizer, OptimizerKind},
    random::Random,
};

use super::cell::{CLASSES, Cell, Work};

/// Batches that take turns, so that no cache holds the one that comes next.
pub const BATCHES: usize = 4;

/// Most memory for the images of all batches: the activations of one take many times as much.
const MOST_BYTES: usize = 32 << 30;

/// Bytes of a pixel on the device at most: four channels of f32.
const PIXEL: usize = 16;

/// Samples whose activations are cached, unless a batch has more.
pub const CACHED: usize = 8192;

/// Learning rate: random labels teach nothing, and losses are to stay finite.
const LR: f32 = 1e-4;
/// Weight decay.
const WD: f32 = 1e-4;

/// A network, its data, and what its steps keep.
pub struct Task {
    cell: Cell,
    device: Device,
    model: Model,
    input: Input,
    optimizer: Optimizer,
    rates: Vec<f32>,
    decays: Vec<f32>,
    steps: usize,
}

enum Input {
    Images(Vec<(Var, Target)>),
    Cached { activations: Activations, order: Vec<u32> },
}

impl Task {
    /// The network of `cell` with random weights, and its data, made from `seed`.
    ///
    /// # Errors
    /// [`Error::Setting`] for a cell that makes no sense; [`Error::OutOfMemory`].
    pub fn new(cell: Cell, seed: u64, device: &Device) -> Result<Self> {
        cell.validate()?;
        let mut model = model(&cell, seed, device)?;
        model.set_grouping(Grouping::PerStage);
        let mut state = FreezeState::head_only(cell.arch, model.grouping());
        match (cell.work, cell.work.first_stage()) {
            (Work::Full, _) => state.unfreeze(),
            // Groups are the stem, the stages counted from 1, and the head.
            (_, Some(stage)) => state.freeze_to(stage as isize)?,
            (Work::Forward | Work::Head | Work::Cached | Work::Layer3 | Work::Layer4, None) => {}
        }
        model.apply(&state, false);
        let input = if cell.work == Work::Cached {
            cached(&cell, cell.batch_size.max(CACHED), seed, device)?
        } else {
            Input::Images(batches(&cell, seed, device)?)
        };
        let groups = state.names().len();
        Ok(Self {
            cell,
            device: device.clone(),
            model,
            input,
            optimizer: Optimizer::new(OptimizerKind::default()),
            rates: vec![LR; groups],
            decays: vec![WD; groups],
            steps: 0,
        })
    }

    /// As [`Task::new`], of a cell of [`Work::Cached`] over so many samples, at least a batch.
    ///
    /// # Errors
    /// As of [`Task::new`].
    pub fn cached(cell: Cell, samples: usize, seed: u64, device: &Device) -> Result<Self> {
        let mut task = Self::new(cell, seed, device)?;
        task.input = cached(&cell, samples, seed, device)?;
        Ok(task)
    }

    /// What it is a task of.
    pub fn cell(&self) -> &Cell {
        &self.cell
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Does its work on the next batch. A GPU may not be done when this returns.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Device`].
    pub fn step(&mut self) -> Result<()> {
        let number = self.steps;
        self.steps += 1;
        match &self.input {
            Input::Images(batches) if self.cell.work == Work::Forward => {
                let (images, _) = &batches[number % batches.len()];
                self.model.forward(&mut Pass::evaluation(), images).map(drop)
            }
            Input::Images(batches) => {
                let (images, target) = &batches[number % batches.len()];
                let mut pass = Pass::training(0, number as u64);
                let logits = self.model.forward(&mut pass, images)?;
                let target = target.clone();
                self.learn(pass, &logits, &target)
            }
            Input::Cached { activations, order } => {
                let size = self.cell.batch_size;
                let start = number % (order.len() / size) * size;
                let (features, labels) = activations.gather(&order[start..start + size], &self.device)?;
                let target = Target::labels(labels, CLASSES, &self.device)?;
                let mut pass = Pass::training(0, number as u64);
                let logits = self.model.head.classify(&mut pass, &Var::constant(features))?;
                self.learn(pass, &logits, &target)
            }
        }
    }

    /// Bytes that a forward pass in training leaves for the backward pass, as the device counts them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Device`].
    pub fn measure_saved(&self) -> Result<usize> {
        let Input::Images(batches) = &self.input else { return Ok(0) };
        let before = self.device.memory().live;
        let mut pass = Pass::training(0, 0);
        let logits = self.model.forward(&mut pass, &batches[0].0)?;
        let saved = self.device.memory().live.saturating_sub(before);
        drop((pass, logits));
        Ok(saved)
    }

    fn learn(&mut self, mut pass: Pass, logits: &Var, target: &Target) -> Result<()> {
        let loss = cross_entropy(&mut pass.tape, logits, target, &CrossEntropy::default())?;
        let statistics = pass.take_statistics();
        let gradients = pass.tape.backward(&loss)?;
        self.optimizer.step(&mut self.model, &gradients, &self.rates, &self.decays)?;
        self.model.update_statistics(statistics)
    }
}

/// The network of `cell` with random weights and a linear head.
fn model(cell: &Cell, seed: u64, device: &Device) -> Result<Model> {
    let mut model = Model::new(cell.arch, HeadSpec::Linear, CLASSES, seed, device)?;
    model.set_precision(cell.dtype)?;
    Ok(model)
}

/// Logits of `images` `[N, H, W, 3]` by the network of `cell` with the weights of `checkpoint`.
///
/// # Errors
/// [`Error::Checkpoint`] if they do not fit; [`Error::Shape`] if the images do not.
pub fn logits(cell: &Cell, checkpoint: &Checkpoint, images: &Tensor) -> Result<Vec<f32>> {
    let mut model = Model::new(cell.arch, HeadSpec::Linear, CLASSES, 0, images.device())?;
    load_into(&mut model, checkpoint, &LoadOptions::default())?;
    model.set_precision(cell.dtype)?;
    model.logits(images)?.to_vec()
}

/// Batches of random pictures and labels, which the device holds: uploaded as a fit uploads them, and so in the layout
/// and the type that the network takes.
fn batches(cell: &Cell, seed: u64, device: &Device) -> Result<Vec<(Var, Target)>> {
    let Cell { size, batch_size, dtype, .. } = *cell;
    let bytes = BATCHES * batch_size * size * size * PIXEL;
    if bytes > MOST_BYTES {
        let message = format!("{BATCHES} batches of images would take {} GiB; give fewer or smaller ones", bytes >> 30);
        return Err(Error::setting("--batch-size and --size", message));
    }
    let transforms = Transforms::new(size);
    let batch = |number: usize| {
        let mut random = Random::stream(seed, "bench", &[number as u64]);
        let mut batch = Batch::default();
        for index in 0..batch_size {
            let mut picture = RgbImage::new(size as u32, size as u32);
            picture.iter_mut().for_each(|byte| *byte = random.uniform(0.0, 256.0) as u8);
            batch.push(transforms.prepare(&picture, View::Clean)?, label(&mut random), index as u32);
        }
        let images = batch.upload(&transforms, device, dtype)?;
        Ok((Var::constant(images), Target::labels(batch.labels, CLASSES, device)?))
    };
    (0..BATCHES).map(batch).collect()
}

/// Random activations of so many samples, as the cache of a fit keeps them.
fn cached(cell: &Cell, samples: usize, seed: u64, device: &Device) -> Result<Input> {
    let width = cell.arch.features();
    let mut random = Random::stream(seed, "bench features", &[]);
    let features: Vec<f32> = (0..samples * width).map(|_| random.uniform(0.0, 2.0)).collect();
    let labels: Vec<u32> = (0..samples).map(|_| label(&mut random)).collect();
    let indices: Vec<u32> = (0..samples as u32).collect();
    let mut activations = Activations::default();
    activations.push(&Tensor::new(features, [samples, width], &Device::cpu(1)?)?, &labels, &indices)?;
    activations.keep_on(device)?;
    Ok(Input::Cached { activations, order: shuffled(samples as u32, seed, 0) })
}

fn label(random: &mut Random) -> u32 {
    random.uniform(0.0, CLASSES as f32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::emulator::{Settings, emulated};
    use unfreeze::{DType, Precision, nn::Arch};

    /// What is timed is what a fit runs: images come as the network takes them, and no step converts them.
    #[test]
    fn images_are_those_of_a_fit() -> Result<()> {
        for (dtype, channels, storage) in
            [(Precision::F32, 3, DType::F32), (Precision::Tf32, 4, DType::F32), (Precision::Bf16, 4, DType::BF16)]
        {
            let Some((device, driver)) = emulated(Settings::default()) else { return Ok(()) };
            let cell = Cell { arch: Arch::ResNet20, size: 8, batch_size: 2, work: Work::Full, dtype };
            let mut task = Task::new(cell, 0, &device)?;
            let Input::Images(batches) = &task.input else { unreachable!("images are trained on") };
            for (images, _) in batches {
                assert_eq!((images.value().dims(), images.value().dtype()), (&[2, 8, 8, channels][..], storage));
            }
            task.step()?;
            let launched = driver.counters();
            assert!(launched.keys().any(|kernel| kernel.starts_with("augment")), "{launched:?}");
            assert!(!launched.keys().any(|kernel| kernel.starts_with("pack_images")), "{dtype}: {launched:?}");
        }
        Ok(())
    }
}
