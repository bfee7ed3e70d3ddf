//! Timing: blocks of steps, each between two waits for the device, and what is made of them.

use std::time::Instant;

use unfreeze::{Device, Result};

/// Steps of a block at most.
const MOST_STEPS: f64 = 1e6;

/// Steps before the first that counts, at least.
const WARM_UP: usize = 3;

/// A step that is timed in blocks.
pub struct Timer<'a> {
    device: &'a Device,
    step: Box<dyn FnMut(usize) -> Result<usize> + 'a>,
    /// Seconds of a step, as last measured.
    estimate: f64,
}

/// Some steps, and the seconds that they took together.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pub steps: usize,
    pub seconds: f64,
}

impl<'a> Timer<'a> {
    /// Times `step`, which makes up to so many steps and says how many, on `device`, after `warm_up` seconds or three
    /// steps, whatever is longer, that do not count.
    ///
    /// # Errors
    /// Those of `step`.
    pub fn new(device: &'a Device, warm_up: f64, step: impl FnMut(usize) -> Result<usize> + 'a) -> Result<Self> {
        let mut timer = Self { device, step: Box::new(step), estimate: 0.0 };
        // Kernels are compiled, buffers made, the step captured.
        (0..WARM_UP).try_for_each(|_| timer.run(1).map(drop))?;
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < warm_up {
            timer.block((warm_up / 4.0).max(timer.estimate))?;
        }
        Ok(timer)
    }

    /// As many steps as take about so many seconds, at least one.
    ///
    /// # Errors
    /// Those of the step.
    pub fn block(&mut self, seconds: f64) -> Result<Block> {
        self.run((seconds / self.estimate).ceil().clamp(1.0, MOST_STEPS) as usize)
    }

    /// A GPU is given all steps before it is waited for.
    fn run(&mut self, steps: usize) -> Result<Block> {
        self.device.synchronize()?;
        let start = Instant::now();
        let mut made = 0;
        while made < steps {
            made += (self.step)(steps - made)?;
        }
        self.device.synchronize()?;
        // A clock may not have moved.
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        self.estimate = seconds / steps as f64;
        Ok(Block { steps, seconds })
    }
}

/// Values in order of size.
pub struct Sorted(Vec<f64>);

impl Sorted {
    /// Sorts `values`, at least one.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value that a share `at` lies below, between neighbours as far as that asks.
    pub fn quantile(&self, at: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return f64::NAN };
        let place = at.clamp(0.0, 1.0) * last as f64;
        let (low, high) = (self.0[place.floor() as usize], self.0[place.ceil() as usize]);
        low + (high - low) * place.fract()
    }
}

/// `bytes` for people to read.
pub fn size(bytes: f64) -> String {
    match bytes {
        large if large >= 1e9 => format!("{:.2} GB", large / 1e9),
        small => format!("{:.1} MB", small / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let sorted = Sorted::new(vec![4.0, 1.0, 3.0, 2.0]);
        let found = [0.0, 0.05, 0.5, 1.0].map(|at| sorted.quantile(at));
        assert_eq!(found, [1.0, 1.15, 2.5, 4.0]);
        assert_eq!(Sorted::new(vec![7.0]).median(), 7.0);
    }

    #[test]
    fn a_block_takes_about_the_time_asked_for() {
        let device = Device::cpu(1).unwrap();
        let mut count = 0;
        let mut timer = Timer::new(&device, 0.0, |most| {
            count += most.min(2);
            std::thread::sleep(std::time::Duration::from_millis(5) * most.min(2) as u32);
            Ok(most.min(2))
        })
        .unwrap();
        let block = timer.block(0.1).unwrap();
        assert!((5..=20).contains(&block.steps) && block.seconds > 0.02, "{block:?}");
        drop(timer);
        assert_eq!(count, WARM_UP + block.steps);
    }
}
