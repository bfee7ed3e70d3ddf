//! How far pixels alone carry: multinomial logistic regression, trained by the engine's own operations.

use unfreeze::{
    Device, Error, Precision, Result, Shape, Tensor,
    autograd::{Parameter, ParameterGradients, Role, Tape, Var},
    data::{ImageData, LoaderOptions, Split},
    ops::{
        linear,
        loss::{CrossEntropy, Target, correct, cross_entropy},
        optimizer::{self, Item, Rate, Rates, Rule, Table},
    },
};

/// The L2 penalties tried.
const WEIGHT_DECAYS: [f32; 4] = [0.0, 0.03, 0.3, 3.0];
/// Steps on the whole training set. Neighbouring pixels are so alike that a higher rate would diverge.
const STEPS: usize = 500;
const LR: f32 = 5e-4;
const RULE: Rule = Rule::Sgd { momentum: 0.9, nesterov: false, decoupled: false };
/// Steps between two looks at the validation set.
const INTERVAL: usize = 10;

/// The best accuracy that a linear classifier of normalised pixels has on the validation set, at any time and with any
/// of the weight decays. Choosing by the set that is reported flatters this one method, which can only make the demo's
/// claim harder.
pub fn best_accuracy(data: &ImageData, device: &Device) -> Result<f32> {
    let (train, valid) = (Pixels::read(data, Split::Train, device)?, Pixels::read(data, Split::Valid, device)?);
    WEIGHT_DECAYS.iter().try_fold(0.0, |best, &decay| {
        let accuracy = fit(&train, &valid, data.classes().len(), decay, device)?;
        Ok(f32::max(best, accuracy))
    })
}

/// A split as one batch.
struct Pixels {
    /// `[images, size · size · 3]`.
    values: Tensor,
    labels: Tensor,
}

impl Pixels {
    fn read(data: &ImageData, split: Split, device: &Device) -> Result<Self> {
        let count = data.items(split).len();
        let mut loader = data.clone().batch_size(count).loader(split, &LoaderOptions::evaluation().on(device))?;
        let batch = loader.next().ok_or_else(|| Error::data(data.root(), "holds no pictures"))??;
        let (size, images) = (data.transforms.size, batch.len());
        let values = batch.upload(&data.transforms, device, Precision::F32)?;
        let labels = Tensor::new(batch.labels, [images], device)?;
        Ok(Self { values: values.reshape([images, size * size * 3])?, labels })
    }

    fn accuracy(&self, weight: &Tensor, bias: &Tensor) -> Result<f32> {
        let logits = linear::forward(&self.values, weight, bias)?;
        let correct = correct(&logits, &self.labels)?.to_vec::<u32>()?;
        Ok(correct[0] as f32 / self.labels.dims()[0] as f32)
    }
}

/// A weight or a bias, with its momentum.
struct Learned {
    parameter: Parameter,
    momentum: Tensor,
}

impl Learned {
    fn zeros(name: &str, role: Role, shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let zeros = Tensor::zeros(shape, device)?;
        Ok(Self { momentum: zeros.clone(), parameter: Parameter::new(name, role, zeros) })
    }

    fn item<'a>(&'a mut self, gradients: &'a ParameterGradients, group: usize) -> Option<Item<'a>> {
        let grad = gradients.get(self.parameter.name())?;
        let buffers = std::slice::from_mut(&mut self.momentum);
        Some(Item { parameter: &mut self.parameter.value, grad, buffers, packed: None, group })
    }
}

/// Trains with one weight decay, and returns the best accuracy on the way. The loss is convex: zeros are as good a
/// start as any.
fn fit(train: &Pixels, valid: &Pixels, classes: usize, weight_decay: f32, device: &Device) -> Result<f32> {
    let inputs = train.values.dims()[1];
    let mut weight = Learned::zeros("weight", Role::LinearWeight, [classes, inputs], device)?;
    let mut bias = Learned::zeros("bias", Role::LinearBias, [classes], device)?;
    let input = Var::constant(train.values.clone());
    let target = Target::Labels(train.labels.clone());
    let rates = [weight_decay, 0.0].map(|weight_decay| Rate { lr: LR, weight_decay });
    let rates = Rates::new(RULE, &rates, device)?;
    let (mut best, mut table) = (0.0, Table::default());
    for step in 1..=STEPS {
        let mut tape = Tape::new();
        let (w, b) = (tape.parameter(&weight.parameter), tape.parameter(&bias.parameter));
        let logits = linear::linear(&mut tape, &input, &w, &b)?;
        let loss = cross_entropy(&mut tape, &logits, &target, &CrossEntropy::default())?;
        let gradients = tape.backward(&loss)?;
        let items = [weight.item(&gradients, 0), bias.item(&gradients, 1)];
        optimizer::step(&rates, &mut items.into_iter().flatten().collect::<Vec<_>>(), &mut table)?;
        if step % INTERVAL == 0 {
            best = f32::max(best, valid.accuracy(&weight.parameter.value, &bias.parameter.value)?);
        }
    }
    Ok(best)
}
