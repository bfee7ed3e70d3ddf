//! The kernels of a training step, and what its forward pass keeps for its backward pass.

use super::{Convolution, F32, Family, Kernel, Network, Stem, Unit, Work, kernel, moved};
use crate::Precision;

/// Bytes per element of a mask of positive values, one bit each.
const BIT: f64 = 0.125;

impl Network {
    /// The kernels of a step of stochastic gradient descent with momentum, whose first `frozen` units are not trained:
    /// they run as in [`Network::forward`]. If only the head is left, its backward pass ends at its weight.
    pub fn training_step(&self, frozen: usize) -> Vec<Kernel> {
        let blocks = self.blocks();
        let frozen = frozen.min(blocks.len() + 1);
        let trained = &blocks[frozen.saturating_sub(1)..];
        let mut kernels = self.frozen(frozen, true);
        if frozen == 0 {
            kernels.extend(self.stem_forward());
        }
        kernels.extend(trained.iter().flat_map(|unit| self.unit_forward(unit)));
        kernels.extend(self.head());
        kernels.extend(self.head_backward(trained.last()));
        for (index, unit) in trained.iter().enumerate().rev() {
            let before = match index.checked_sub(1) {
                Some(before) => Before::Unit(&trained[before], unit),
                None if frozen == 0 => Before::Stem(unit),
                None => Before::Frozen,
            };
            kernels.extend(self.unit_backward(unit, before));
        }
        if frozen == 0 {
            kernels.extend(self.stem_backward());
        }
        kernels.push(self.optimizer(trained, frozen == 0));
        kernels
    }

    /// The kernels of a step of the head on cached features, which are looked up by their rows.
    pub fn cached_step(&self) -> Vec<Kernel> {
        let gather = kernel("gather", Family::Head, moved(2.0 * self.features() * F32));
        let [_, linear] = self.head();
        let mut kernels = vec![gather, linear];
        kernels.extend(self.head_backward(None));
        kernels.push(self.optimizer(&[], false));
        kernels
    }

    /// As [`Network::cached_step`], of fastai's head with one hidden layer of so many units, on the maxima and the averages
    /// of the features. Batchnorm and dropout are one pass.
    pub fn cached_fastai_step(&self, hidden: usize) -> Vec<Kernel> {
        let (batch, inputs) = (self.batch as f64, 2 * self.arch.features());
        let head = |name: &str, work: Work| kernel(name, Family::Head, work);
        let mut kernels = vec![head("gather", moved(2.0 * batch * inputs as f64 * F32))];
        let mut parameters = 0.0;
        for (layer, (inputs, outputs)) in [(inputs, hidden), (hidden, self.classes)].into_iter().enumerate() {
            let (product, elements) = (self.product(inputs, outputs), batch * inputs as f64);
            kernels.push(kernel("batchnorm, dropout", Family::Norm, moved(2.0 * elements * F32)));
            kernels
                .extend(["linear", "linear weight gradient", "linear input gradient"].map(|name| head(name, product)));
            // The features themselves have no gradient.
            let tensors = if layer == 0 { 2.0 } else { 3.0 };
            kernels.push(kernel("batchnorm gradient", Family::NormGrad, moved(tensors * elements * F32)));
            parameters += (inputs * outputs + outputs + 2 * inputs) as f64;
        }
        kernels.push(head("cross entropy", moved(2.0 * (self.batch * self.classes) as f64 * F32)));
        kernels.push(kernel("sgd", Family::Optimizer, moved(parameters * 5.0 * F32)));
        kernels
    }

    /// Bytes that the forward pass of [`Network::training_step`] keeps for the backward pass: of every trained
    /// convolution its input and its output, a bit per element where a block ends, and the places of maxima. The images
    /// do not count.
    pub fn saved(&self, frozen: usize) -> f64 {
        self.saved_by_unit(frozen).iter().sum()
    }

    /// As [`Network::saved`], for each unit: the stem, each block, the head.
    pub fn saved_by_unit(&self, frozen: usize) -> Vec<f64> {
        let (blocks, bytes) = (self.blocks(), self.activation());
        let Stem { convolution: stem, pooled } = self.stem();
        let (output, places) = (stem.output_elements(), pooled.map(|side| self.elements(side, stem.outputs)));
        // The images are there in any case. Where nothing is pooled, the sign of what is stored is the mask.
        let stem = output * bytes + places.unwrap_or(output * BIT);
        let block = |unit: &Unit| {
            let outputs: f64 = unit.all().map(Convolution::output_elements).sum();
            // A projecting shortcut reads what the first convolution does.
            let inputs: f64 = unit.convolutions.iter().map(|convolution| convolution.read(self.precision)).sum();
            (inputs + outputs) * bytes + unit.last().output_elements() * BIT
        };
        let head = (self.features() + (self.batch * self.classes) as f64) * F32;
        let units = std::iter::once(stem).chain(blocks.iter().map(block)).chain([head]);
        units.enumerate().map(|(unit, bytes)| if unit < frozen { 0.0 } else { bytes }).collect()
    }

    fn stem_forward(&self) -> [Kernel; 2] {
        let Stem { convolution, pooled } = self.stem();
        let (output, bytes) = (convolution.output_elements(), self.activation());
        let pass = match pooled.map(|side| self.elements(side, convolution.outputs)) {
            // The pooled activation, and a byte for the place of each maximum.
            Some(pooled) => kernel("bn1, max pool", Family::Norm, moved((output + pooled) * bytes + pooled)),
            None => kernel("bn1", Family::Norm, moved(2.0 * output * bytes)),
        };
        [kernel("conv1", Family::Forward, convolution.forward(self.precision)), pass]
    }

    fn stem_backward(&self) -> Vec<Kernel> {
        let Stem { convolution, pooled } = self.stem();
        let (output, bytes) = (convolution.output_elements(), self.activation());
        let mut kernels = Vec::new();
        match pooled.map(|side| self.elements(side, convolution.outputs)) {
            Some(pooled) => {
                let grad = pooled * bytes + pooled;
                let sums = moved(grad + output * bytes);
                kernels.push(kernel("bn1 sums", Family::NormGrad, sums));
                kernels.push(kernel("bn1 gradient", Family::NormGrad, moved(grad + 2.0 * output * bytes)));
            }
            None => kernels.push(self.norm_grad("bn1", output)),
        }
        kernels.push(self.weight_grad(&convolution));
        kernels
    }

    fn unit_forward(&self, unit: &Unit) -> Vec<Kernel> {
        let bytes = self.activation();
        let last = unit.last();
        let mut kernels: Vec<_> = unit
            .all()
            .map(|convolution| kernel(&convolution.name, Family::Forward, convolution.forward(self.precision)))
            .collect();
        for convolution in &unit.convolutions {
            let output = convolution.output_elements();
            let pass = if convolution.name == last.name {
                (2.0 * output + unit.shortcut) * bytes + output * BIT
            } else {
                2.0 * output * bytes
            };
            kernels.push(kernel(&norm(&convolution.name), Family::Norm, moved(pass)));
        }
        kernels
    }

    /// From the masked gradient of the unit's output to that of its input.
    fn unit_backward(&self, unit: &Unit, before: Before) -> Vec<Kernel> {
        let mut kernels = Vec::new();
        let ends = 1.0 + unit.projection.iter().count() as f64;
        let output = unit.last().output_elements();
        // Both branches read the one gradient; each reads what it normalised and writes its own.
        let pass = 3.0 * ends * output * self.activation();
        kernels.push(kernel(&format!("{} gradient", norm(&unit.last().name)), Family::NormGrad, moved(pass)));
        for (index, convolution) in unit.convolutions.iter().enumerate().rev() {
            kernels.push(self.weight_grad(convolution));
            if let Some(inner) = index.checked_sub(1).map(|before| &unit.convolutions[before]) {
                // Masks and takes sums by what the batchnorm before normalised.
                kernels.push(self.input_grad(convolution, inner.output_elements() * self.activation()));
                kernels.push(self.norm_grad(&norm(&inner.name), inner.output_elements()));
            } else {
                let projection = unit.projection.as_ref();
                kernels.extend(projection.map(|projection| self.weight_grad(projection)));
                if let Some(extra) = self.joined(before) {
                    kernels.extend(projection.map(|projection| self.input_grad(projection, 0.0)));
                    kernels.push(self.input_grad(convolution, extra));
                }
            }
        }
        kernels
    }

    /// Bytes that an input gradient reads beside its operands to finish the gradient of what lies before: the
    /// shortcut's part, the mask, and what the batchnorms there normalised. `None` if nothing before is trained.
    fn joined(&self, before: Before) -> Option<f64> {
        let bytes = self.activation();
        match before {
            Before::Frozen => None,
            Before::Unit(before, unit) => {
                let output = before.last().output_elements();
                let normalised = (1.0 + before.projection.iter().count() as f64) * output;
                Some((unit.shortcut_grad + normalised) * bytes + output * BIT)
            }
            Before::Stem(unit) => {
                let Stem { convolution, pooled } = self.stem();
                // The pool's gradient takes the sums where there is one.
                let output = if pooled.is_some() { 0.0 } else { convolution.output_elements() };
                Some((unit.shortcut_grad + output) * bytes + output * BIT)
            }
        }
    }

    /// Loss, and the linear layer's gradients. That of its input goes through the average pool to the masked gradient
    /// of the last block, where that is trained.
    fn head_backward(&self, last: Option<&Unit>) -> Vec<Kernel> {
        let logits = (self.batch * self.classes) as f64;
        let mut kernels = vec![kernel("cross entropy", Family::Head, moved(2.0 * logits * F32))];
        if let Some(last) = last {
            let output = last.last().output_elements();
            let reads = 1.0 + last.projection.iter().count() as f64;
            let extra = (1.0 + reads) * output * self.activation() + output * BIT;
            let work = self.linear();
            let work = Work { bytes: work.bytes + extra, ..work };
            kernels.push(kernel("linear input gradient, average pool", Family::Head, work));
        }
        kernels.push(kernel("linear weight gradient", Family::Head, self.linear()));
        kernels
    }

    fn input_grad(&self, convolution: &Convolution, extra: f64) -> Kernel {
        let work = convolution.input_grad(self.precision);
        let work = Work { bytes: work.bytes + extra, ..work };
        kernel(&format!("{} input gradient", convolution.name), Family::InputGrad, work)
    }

    fn weight_grad(&self, convolution: &Convolution) -> Kernel {
        let name = format!("{} weight gradient", convolution.name);
        kernel(&name, Family::WeightGrad, convolution.weight_grad(self.precision))
    }

    /// `a·g + b·y + c` over an activation of so many elements.
    fn norm_grad(&self, norm: &str, elements: f64) -> Kernel {
        kernel(&format!("{norm} gradient"), Family::NormGrad, moved(3.0 * elements * self.activation()))
    }

    /// Reads gradients, parameters and momenta, and writes the latter two, f32; and the copies that convolutions read.
    fn optimizer(&self, trained: &[Unit], stem: bool) -> Kernel {
        let head = (self.arch.features() + 1) * self.classes;
        let parameters = |convolution: &Convolution| convolution.weights() + 2.0 * convolution.outputs as f64;
        let stem = if stem { parameters(&self.stem().convolution) } else { 0.0 };
        let body: f64 = trained.iter().flat_map(Unit::all).map(parameters).sum();
        let copy = match self.precision {
            Precision::F32 => 0.0,
            Precision::Tf32 | Precision::Bf16 => self.activation(),
        };
        let bytes = (head as f64 + stem + body) * (5.0 * F32 + copy);
        kernel("sgd", Family::Optimizer, moved(bytes))
    }
}

/// What lies before a unit on the way back.
#[derive(Clone, Copy)]
enum Before<'a> {
    /// Nothing that is trained.
    Frozen,
    /// The stem, before this first block.
    Stem(&'a Unit),
    /// Another block, before this one.
    Unit(&'a Unit, &'a Unit),
}

/// The batchnorm after a convolution.
fn norm(convolution: &str) -> String {
    convolution.replace("conv", "bn")
}
