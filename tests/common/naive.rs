//! Training by hand: what the learner's steps are compared with.

use std::{collections::BTreeMap, fs};

use unfreeze::{
    Device, Precision, Tensor,
    autograd::{Parameters, Role, Var},
    data::{Batch, ImageData, LoaderOptions, Split, Transforms},
    learner::{Mixing, StepOptions},
    nn::{Model, Pass},
    ops::{
        loss::{CrossEntropy, Target, cross_entropy},
        mix::Mix,
    },
};

use super::learning::{Told, data, folders};

/// SGD in f64 on the gradients of the tape, with the learner's batches, views and dropout (of seed 1).
pub struct Naive {
    pub lr: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub wd_bn_bias: bool,
    pub decoupled: bool,
    pub clip: f64,
    pub accumulate: usize,
    pub mixing: StepOptions,
    pub loss: CrossEntropy,
}

impl Default for Naive {
    fn default() -> Self {
        Self {
            lr: 0.01,
            momentum: 0.9,
            weight_decay: 0.0,
            wd_bn_bias: true,
            decoupled: false,
            clip: f64::INFINITY,
            accumulate: 1,
            mixing: StepOptions::default(),
            loss: CrossEntropy::default(),
        }
    }
}

pub type Values = BTreeMap<String, Vec<f64>>;

pub fn values(model: &Model) -> Values {
    let mut values = Values::new();
    model.visit(&mut |parameter| {
        let all = parameter.value.to_vec::<f32>().unwrap();
        values.insert(parameter.name().to_string(), all.into_iter().map(f64::from).collect());
    });
    values
}

impl Naive {
    /// Loss and gradients of a batch; batchnorm statistics move.
    fn pass(&self, model: &mut Model, data: &ImageData, batch: &Batch, number: u64) -> (f64, Values) {
        let device = Device::cpu(2).unwrap();
        let images = batch.upload(&data.transforms, &device, Precision::F32).unwrap();
        let (images, target) = self.mixed(images, &batch.labels, data.classes().len(), number);
        let mut pass = Pass::training(1, number);
        let logits = model.forward(&mut pass, &Var::constant(images)).unwrap();
        let loss = cross_entropy(&mut pass.tape, &logits, &target, &self.loss).unwrap();
        let statistics = pass.take_statistics();
        let value = f64::from(loss.value().scalar().unwrap());
        let gradients = pass.tape.backward(&loss).unwrap();
        model.update_statistics(statistics).unwrap();
        let wide = |tensor: &Tensor| tensor.to_vec::<f32>().unwrap().into_iter().map(f64::from).collect();
        (value, gradients.iter().map(|(name, gradient)| (name.to_string(), wide(gradient))).collect())
    }

    /// A batch of f32 images and its targets, mixed by plain loops.
    fn mixed(&self, images: Tensor, labels: &[u32], classes: usize, number: u64) -> (Tensor, Target) {
        let (device, &[n, h, w, c]) = (images.device().clone(), images.dims()) else { panic!("no images") };
        let Some(mixing) = Mixing::draw(&self.mixing, 1, number, n, Some([h, w])) else {
            return (images, Target::labels(labels.to_vec(), classes, &device).unwrap());
        };
        let values = images.to_vec::<f32>().unwrap();
        let (mut mixed, mut targets) = (values.clone(), vec![0.0; n * classes]);
        for (at, value) in mixed.iter_mut().enumerate() {
            let (sample, pixel) = (at / (h * w * c), at % (h * w * c) / c);
            let other = values[mixing.partners[sample] as usize * h * w * c + at % (h * w * c)];
            match &mixing.mix {
                Mix::Shares(shares) => *value = shares[sample] * *value + (1.0 - shares[sample]) * other,
                Mix::Box([rows, columns]) if rows.contains(&(pixel / w)) && columns.contains(&(pixel % w)) => {
                    *value = other;
                }
                Mix::Box(_) => {}
            }
        }
        for (sample, share) in mixing.shares.iter().enumerate() {
            targets[sample * classes + labels[sample] as usize] += share;
            targets[sample * classes + labels[mixing.partners[sample] as usize] as usize] += 1.0 - share;
        }
        let target = Tensor::new(targets, [n, classes], &device).unwrap();
        (Tensor::new(mixed, [n, h, w, c], &device).unwrap(), Target::Soft(target))
    }

    /// The losses of so many epochs; `each` sees the network after each step, and whether that ends an epoch.
    pub fn fit(
        &self,
        model: &mut Model,
        data: &ImageData,
        epochs: u64,
        each: &mut dyn FnMut(&Model, bool),
    ) -> Vec<f64> {
        let (mut losses, mut velocities) = (Vec::new(), Values::new());
        for epoch in 0..epochs {
            let loader = data.loader(Split::Train, &LoaderOptions::training(1, epoch)).unwrap();
            let batches: Vec<Batch> = loader.map(Result::unwrap).collect();
            let steps = batches.len().div_ceil(self.accumulate);
            for (step, together) in batches.chunks(self.accumulate).enumerate() {
                let samples = together.iter().map(Batch::len).sum::<usize>() as f64;
                let (mut loss, mut gradients) = (0.0, Values::new());
                for (part, batch) in together.iter().enumerate() {
                    let share = batch.len() as f64 / samples;
                    let number = losses.len() as u64 + ((part as u64) << 48);
                    let (of_batch, own) = self.pass(model, data, batch, number);
                    loss += share * of_batch;
                    for (name, own) in own {
                        let sums = gradients.entry(name).or_insert(vec![0.0; own.len()]);
                        sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += share * own);
                    }
                }
                losses.push(loss);
                self.step(model, &gradients, &mut velocities);
                each(model, step + 1 == steps);
            }
        }
        losses
    }

    fn step(&self, model: &mut Model, gradients: &Values, velocities: &mut Values) {
        let norm = gradients.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let scale = (self.clip / (norm + 1e-6)).min(1.0);
        model.visit_mut(&mut |parameter| {
            let Some(gradient) = gradients.get(&**parameter.name()) else { return };
            let vector = !matches!(parameter.role(), Role::ConvWeight | Role::LinearWeight);
            let decay = if vector && !self.wd_bn_bias { 0.0 } else { self.weight_decay };
            let velocity = velocities.entry(parameter.name().to_string()).or_insert(vec![0.0; gradient.len()]);
            let mut moved = Vec::new();
            for ((p, g), v) in parameter.value.to_vec::<f32>().unwrap().iter().zip(gradient).zip(velocity) {
                let (mut p, g) = (f64::from(*p), scale * g);
                if self.decoupled {
                    p -= self.lr * decay * p;
                    *v = self.momentum * *v + g;
                } else {
                    *v = self.momentum * *v + (g + decay * p);
                }
                moved.push((p - self.lr * *v) as f32);
            }
            parameter.set_value(Tensor::new(moved, parameter.value.shape(), parameter.value.device()).unwrap());
        });
    }
}

/// So many images of two classes, in batches of `batch_size`.
pub fn uneven(counts: [usize; 2], batch_size: usize) -> (tempfile::TempDir, ImageData) {
    let root = folders(&["cat", "dog"], counts[0].max(counts[1]), 2, 0);
    for (class, count) in ["cat", "dog"].into_iter().zip(counts) {
        for n in count..counts[0].max(counts[1]) {
            fs::remove_file(root.path().join(format!("train/{class}/{n}.png"))).unwrap();
        }
    }
    let images = data(&root).transforms(Transforms::new(16)).batch_size(batch_size);
    (root, images)
}

/// The loss of each step.
pub fn losses(told: &[Told]) -> Vec<f64> {
    let loss = |told: &Told| match told {
        Told::Step { loss, .. } => Some(f64::from(*loss)),
        _ => None,
    };
    told.iter().filter_map(loss).collect()
}

/// Each tensor within a thousandth of its norm: rounding grows from step to step, by the variances of few values.
#[track_caller]
pub fn assert_close(found: &Values, expected: &Values) {
    assert!(found.keys().eq(expected.keys()));
    for (name, expected) in expected {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let apart = norm(&mut found[name].iter().zip(expected).map(|(a, b)| a - b));
        let whole = norm(&mut expected.iter().copied());
        assert!(apart <= 1e-3 * whole.max(1e-2), "{name}: {apart:e} of {whole:e}");
    }
}

/// Moves `mean` by `share` of the way to `values`.
pub fn approach(mean: &mut Values, values: &Values, share: f64) {
    for (name, mean) in mean {
        mean.iter_mut().zip(&values[name]).for_each(|(mean, value)| *mean += share * (value - *mean));
    }
}
