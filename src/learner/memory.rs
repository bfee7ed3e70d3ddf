//! Whether a batch fits into memory, asked before the first step: where memory is overcommitted, a process that takes
//! too much is not refused but killed.

use super::Learner;
use crate::{
    Device, Error, Result, Tensor,
    autograd::Var,
    nn::{Model, Pass},
    ops::loss::{CrossEntropy, Target, cross_entropy},
};

/// A pass that asks for less than this share of what is available is not measured …
const NEGLIGIBLE: u64 = 10;
/// … where a network's activations take at most so many times the bytes of its input (ResNet-152 in training).
const MOST_PER_INPUT: u64 = 1000;
/// Share of what is measured to be added for what is not: packed weights, the allocator's gaps.
const MARGIN: f64 = 1.1;

/// What a pass takes: `fixed` bytes and `per_image` for each image.
struct Need {
    fixed: f64,
    per_image: f64,
}

impl Learner {
    /// Checks that a pass of `images` images fits, once for each kind of pass.
    ///
    /// # Errors
    /// [`Error::Setting`] with the bytes asked for and a batch size that would fit.
    pub(super) fn check_memory(&mut self, images: usize, training: bool) -> Result<()> {
        let size = self.transforms().size;
        // Trainable layers decide what is kept; their number stands for which they are.
        let kind = (images, size, training.then(|| self.model.parameter_count().1));
        if self.fitting.contains(&kind) {
            return Ok(());
        }
        if let Some(available) = self.device.available() {
            let input = (images * size * size * 3 * size_of::<f32>()) as u64;
            if input.saturating_mul(MOST_PER_INPUT) > available / NEGLIGIBLE {
                let need = Need::measure(&self.model, size, training, &self.device)?;
                need.check(images, size, training, available)?;
            }
        }
        self.fitting.insert(kind);
        Ok(())
    }

    /// `error`; where the device ran out of memory although the pass had been found to fit (others use it too), an
    /// error that says which batch size would fit now.
    pub(super) fn explained(&mut self, error: Error, images: usize, training: bool) -> Error {
        if !matches!(error, Error::OutOfMemory { .. }) {
            return error;
        }
        self.fitting.clear();
        match self.check_memory(images, training) {
            Err(Error::Setting { setting, message }) => {
                Error::Setting { setting, message: format!("{message} ({error})") }
            }
            _ => error,
        }
    }
}

impl Need {
    /// Runs the pass on two and on three images, after one that leaves behind what is kept for others: packed weights.
    fn measure(model: &Model, size: usize, training: bool, device: &Device) -> Result<Self> {
        let before = device.memory().live;
        run(model, 2, size, training, device)?;
        let kept = device.memory().live.saturating_sub(before) as f64;
        let peak = |images: usize| -> Result<f64> {
            device.reset_peak();
            let before = device.memory().live;
            run(model, images, size, training, device)?;
            Ok(device.memory().peak.saturating_sub(before) as f64)
        };
        let (two, three) = (peak(2)?, peak(3)?);
        let per_image = (three - two).max(1.0);
        // Bytes of images that are decoded ahead, three batches of them.
        let ahead = (3 * size * size * 3) as f64;
        let fixed = kept + (two - 2.0 * per_image).max(0.0);
        Ok(Self { fixed: MARGIN * fixed, per_image: MARGIN * per_image + ahead })
    }

    fn check(&self, images: usize, size: usize, training: bool, available: u64) -> Result<()> {
        let total = self.fixed + images as f64 * self.per_image;
        if total <= available as f64 {
            return Ok(());
        }
        let fitting = ((available as f64 - self.fixed) / self.per_image).max(0.0) as usize;
        let remedy = match fitting {
            0 | 1 => "not even 2 would fit; use smaller images or a smaller network".to_string(),
            // A size that people choose.
            _ => format!("{} would fit", if fitting < 8 { fitting } else { 1 << fitting.ilog2() }),
        };
        let pass = if training { "a training step" } else { "a pass" };
        Err(Error::setting(
            "batch_size",
            format!(
                "{pass} of {images} images of {size} × {size} pixels needs about {}, and {} are available; {remedy}",
                gib(total),
                gib(available as f64)
            ),
        ))
    }
}

fn run(model: &Model, images: usize, size: usize, training: bool, device: &Device) -> Result<()> {
    let input = Var::constant(Tensor::zeros([images, size, size, 3], device)?);
    if !training {
        return model.forward(&mut Pass::evaluation(), &input).map(drop);
    }
    let mut pass = Pass::training(0, 0);
    let logits = model.forward(&mut pass, &input)?;
    let target = Target::Labels(Tensor::new(vec![0u32; images], [images], device)?);
    let loss = cross_entropy(&mut pass.tape, &logits, &target, &CrossEntropy::default())?;
    pass.tape.backward(&loss).map(drop)
}

fn gib(bytes: f64) -> String {
    format!("{:.1} GiB", bytes / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Arch, HeadSpec};

    #[test]
    fn the_need_of_a_batch_is_extrapolated() {
        let device = Device::cpu(1).unwrap();
        let model = || Model::new(Arch::ResNet20, HeadSpec::default(), 3, 0, &device).unwrap();
        for training in [false, true] {
            let need = Need::measure(&model(), 24, training, &device).unwrap();
            let model = model();
            device.reset_peak();
            let before = device.memory().live;
            // The second pass has the packed weights of all layers beside its largest activations.
            (0..2).for_each(|_| run(&model, 40, 24, training, &device).unwrap());
            let measured = (device.memory().peak - before) as f64;
            let told = (need.fixed + 40.0 * need.per_image) / measured;
            assert!((1.0..1.25).contains(&told), "training {training}: {told} of {measured}");
        }
        assert_eq!(device.memory().live, 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let need = Need { fixed: 1e6, per_image: 1e6 };
        assert!(need.check(63, 224, true, 64_000_000).is_ok());
        let message = need.check(64, 224, true, 64_000_000).unwrap_err().to_string();
        assert!(message.contains("batch_size") && message.contains("32 would fit"), "{message}");
        let message = need.check(64, 224, true, 2_500_000).unwrap_err().to_string();
        assert!(message.contains("not even 2"), "{message}");
    }
}
