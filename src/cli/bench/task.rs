//! A cell made ready: a network and random data on the device, and its step.

use unfreeze::{
    Device, Error, Result, Tensor,
    autograd::{Parameter, Parameters, Var},
    cache::Activations,
    checkpoint::{Checkpoint, LoadOptions, load_into},
    data::{Batch, RgbImage, Transforms, View, shuffled},
    learner::{HeadSteps, Input, Objective, Step, Stepper},
    nn::{FreezeState, Grouping, HeadSpec, Model, Pass},
    ops::loss::CrossEntropy,
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
    data: Data,
    optimizer: Optimizer,
    stepper: Stepper,
    rates: Vec<f32>,
    decays: Vec<f32>,
    steps: usize,
}

enum Data {
    Images(Vec<(Input, Vec<u32>)>),
    Cached { activations: Box<Activations>, order: Vec<u32> },
}

impl Task {
    /// The network of `cell` with random weights, and its data, made from `seed`. Steps are made as a fit makes them;
    /// with `graphs` on a GPU as graphs, and those of a linear head on cached activations many at once.
    ///
    /// # Errors
    /// [`Error::Setting`] for a cell that makes no sense; [`Error::OutOfMemory`].
    pub fn new(cell: Cell, graphs: bool, seed: u64, device: &Device) -> Result<Self> {
        cell.validate()?;
        let mut model = model(&cell, seed, device)?;
        model.set_grouping(Grouping::PerStage);
        let mut state = FreezeState::head_only(cell.arch, model.grouping());
        match (cell.work, cell.work.first_stage()) {
            (Work::Full, _) => state.unfreeze(),
            // Groups are the stem, the stages counted from 1, and the head.
            (_, Some(stage)) => state.freeze_to(stage as isize)?,
            (_, None) => {}
        }
        model.apply(&state, false);
        let data = if cell.work.is_cached() {
            cached(&cell, model.head.inputs(), cell.batch_size.max(CACHED), seed, device)?
        } else {
            Data::Images(batches(&cell, seed, device)?)
        };
        let groups = state.names().len();
        Ok(Self {
            cell,
            device: device.clone(),
            model,
            data,
            optimizer: Optimizer::new(OptimizerKind::default()),
            stepper: Stepper::new(graphs),
            rates: vec![LR; groups],
            decays: vec![WD; groups],
            steps: 0,
        })
    }

    /// As [`Task::new`], of a head on cached activations of so many samples, at least a batch.
    ///
    /// # Errors
    /// As of [`Task::new`].
    pub fn cached(cell: Cell, samples: usize, graphs: bool, seed: u64, device: &Device) -> Result<Self> {
        let mut task = Self::new(cell, graphs, seed, device)?;
        task.data = cached(&cell, task.model.head.inputs(), samples, seed, device)?;
        Ok(task)
    }

    /// What it is a task of.
    pub fn cell(&self) -> &Cell {
        &self.cell
    }

    /// Bytes of the network's parameters, with their copies for tensor cores.
    pub fn weights(&self) -> usize {
        let mut bytes = 0;
        self.model.visit(&mut |Parameter { value, packed, .. }| {
            let copies = packed.iter().flat_map(|packed| [Some(&packed.forward), packed.flipped.as_ref()]).flatten();
            let size = |tensor: &Tensor| tensor.shape().elements() * tensor.dtype().bytes();
            bytes += size(value) + copies.map(size).sum::<usize>();
        });
        bytes
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Does its work on the next batch, or on as many up to `most` as a fit takes together; returns how many. A GPU may
    /// not be done when this returns.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Device`].
    pub fn step(&mut self, most: usize) -> Result<usize> {
        let number = self.steps;
        let Self { cell, device, model, data, optimizer, stepper, rates, decays, .. } = self;
        let loss = &CrossEntropy::default();
        let together = stepper.graphs();
        let mut learn = |model: &mut Model, input: &Input, labels: Vec<u32>| {
            let (lrs, weight_decays, momentum) = (&*rates, &*decays, optimizer.kind().momentum());
            let loss = Objective::CrossEntropy(loss);
            let step = Step { model, optimizer, loss, lrs, weight_decays, momentum, seed: 0, number: number as u64 };
            stepper.step(step, input, labels).map(drop)
        };
        let made = match data {
            Data::Images(batches) => {
                let (input, labels) = &batches[number % batches.len()];
                match (cell.work, input) {
                    (Work::Forward, Input::Images(images)) => model.logits(images).map(drop)?,
                    _ => learn(model, input, labels.clone())?,
                }
                1
            }
            Data::Cached { activations, order } => {
                let size = cell.batch_size;
                let batch = |number: usize| {
                    let start = number % (order.len() / size) * size;
                    order[start..start + size].to_vec()
                };
                let possible = if together { HeadSteps::possible(model, activations, size) } else { 0 };
                if possible > 0 {
                    let batches: Vec<_> = (number..number + most.min(possible)).map(batch).collect();
                    let (lrs, momenta) = (vec![LR; batches.len()], vec![optimizer.kind().momentum(); batches.len()]);
                    HeadSteps { model, optimizer, loss, activations, weight_decay: WD }
                        .run(&batches, &lrs, &momenta)?;
                    batches.len()
                } else {
                    let (features, labels) = activations.gather(&batch(number), device)?;
                    learn(model, &Input::Features(features), labels)?;
                    1
                }
            }
        };
        self.steps += made;
        if let Some(error) = self.stepper.take_refusal() {
            errln!("note: {}: steps are launched one by one, for a graph of them was refused: {error}", self.cell);
        }
        Ok(made)
    }

    /// Bytes that a forward pass in training leaves for the backward pass, as the device counts them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Device`].
    pub fn measure_saved(&self) -> Result<usize> {
        let Data::Images(batches) = &self.data else { return Ok(0) };
        let Some((Input::Images(images), _)) = batches.first() else { return Ok(0) };
        let before = self.device.memory().live;
        let mut pass = Pass::training(0, 0);
        let logits = self.model.forward(&mut pass, &Var::constant(images.clone()))?;
        let saved = self.device.memory().live.saturating_sub(before);
        drop((pass, logits));
        Ok(saved)
    }
}

/// The network of `cell` with random weights and its head, linear but where another is trained.
fn model(cell: &Cell, seed: u64, device: &Device) -> Result<Model> {
    let head = cell.work.head_on_cache().unwrap_or(HeadSpec::Linear);
    let mut model = Model::new(cell.arch, head, cell.classes, seed, device)?;
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
fn batches(cell: &Cell, seed: u64, device: &Device) -> Result<Vec<(Input, Vec<u32>)>> {
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
            batch.push(transforms.prepare(&picture, View::Clean)?, label(&mut random, cell), index as u32);
        }
        let images = batch.upload(&transforms, device, dtype)?;
        Ok((Input::Images(images), batch.labels))
    };
    (0..BATCHES).map(batch).collect()
}

/// Random features of `samples` samples, `width` of each, as the cache of a fit keeps them.
fn cached(cell: &Cell, width: usize, samples: usize, seed: u64, device: &Device) -> Result<Data> {
    let mut random = Random::stream(seed, "bench features", &[]);
    let features: Vec<f32> = (0..samples * width).map(|_| random.uniform(0.0, 2.0)).collect();
    let labels: Vec<u32> = (0..samples).map(|_| label(&mut random, cell)).collect();
    let indices: Vec<u32> = (0..samples as u32).collect();
    let mut activations = Activations::default();
    activations.push(&Tensor::new(features, [samples, width], &Device::cpu(1)?)?, &labels, &indices)?;
    activations.keep_on(device)?;
    Ok(Data::Cached { activations: Box::new(activations), order: shuffled(samples as u32, seed, 0) })
}

fn label(random: &mut Random, cell: &Cell) -> u32 {
    random.uniform(0.0, cell.classes as f32) as u32
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
            let cell = Cell { arch: Arch::ResNet20, size: 8, batch_size: 2, work: Work::Full, dtype, classes: 5 };
            let mut task = Task::new(cell, true, 0, &device)?;
            let Data::Images(batches) = &task.data else { unreachable!("images are trained on") };
            for (input, _) in batches {
                let Input::Images(images) = input else { unreachable!("images are trained on") };
                assert_eq!((images.dims(), images.dtype()), (&[2, 8, 8, channels][..], storage));
            }
            task.step(1)?;
            let launched = driver.counters();
            assert!(launched.keys().any(|kernel| kernel.starts_with("augment")), "{launched:?}");
            assert!(!launched.keys().any(|kernel| kernel.starts_with("pack_images")), "{dtype}: {launched:?}");
        }
        Ok(())
    }

    /// Steps are made as a fit makes them: replayed, or many at once.
    #[test]
    fn steps_are_those_of_a_fit() -> Result<()> {
        let Some((device, driver)) = emulated(Settings::default()) else { return Ok(()) };
        let dtype = Precision::F32;
        let cell = |work| Cell { arch: Arch::ResNet20, size: 8, batch_size: 2, work, dtype, classes: 5 };
        for graphs in [true, false] {
            let mut task = Task::new(cell(Work::Layer3), graphs, 0, &device)?;
            for _ in 0..4 {
                assert_eq!(task.step(100)?, 1);
            }
            assert_eq!(driver.graphs().len(), usize::from(graphs));
            drop(task);
            let mut task = Task::cached(cell(Work::Cached), 8, graphs, 0, &device)?;
            let before = driver.launches();
            assert_eq!(task.step(3)?, if graphs { 3 } else { 1 });
            assert_eq!(driver.launches() - before == 1, graphs);
        }
        Ok(())
    }
}
