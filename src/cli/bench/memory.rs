//! What the tensors of a task are: parameters, batches, what stays from step to step, what a step makes.

use serde_json::{Value, json};
use unfreeze::Device;

use super::{cell::Work, measure::size, task::Task};

/// Bytes of tensors, by what they are for.
pub struct Memory {
    work: Work,
    /// At most at a time.
    pub peak: usize,
    weights: usize,
    /// Batches, or cached activations.
    data: usize,
    /// What is there after a step that was not before the first: packed weights, the optimizer's buffers.
    kept: usize,
    /// What comes on top within a step.
    step: usize,
    /// The two largest activations together.
    two_largest: usize,
}

/// The memory of a task before its first step.
pub struct Before {
    work: Work,
    live: usize,
    weights: usize,
    two_largest: usize,
}

impl Before {
    /// Of `task`, whose device has no other's tensors; the device's peak counts from here.
    pub fn of(task: &Task) -> Self {
        let (device, cell) = (task.device(), task.cell());
        device.reset_peak();
        let two_largest = cell.network().largest_activations().iter().sum::<f64>() as usize;
        Self { work: cell.work, live: device.memory().live, weights: task.weights(), two_largest }
    }

    /// After the last step.
    pub fn after(self, device: &Device) -> Memory {
        let Self { work, live, weights, two_largest } = self;
        let now = device.memory();
        Memory {
            work,
            peak: now.peak,
            weights,
            data: live.saturating_sub(weights),
            kept: now.live.saturating_sub(live),
            step: now.peak.saturating_sub(now.live),
            two_largest,
        }
    }
}

impl Memory {
    /// As an object.
    pub fn object(&self) -> Value {
        let Self { weights, data, kept, step, two_largest, .. } = self;
        json!({ "weights": weights, "data": data, "kept": kept, "step": step, "two_largest_activations": two_largest })
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let [peak, weights, data, kept, step] =
            [self.peak, self.weights, self.data, self.kept, self.step].map(|bytes| size(bytes as f64));
        match self.work {
            Work::Forward => {
                let share = self.step as f64 / self.two_largest as f64;
                write!(f, "{peak}: weights {weights}, packed {kept}, batches {data}, activations {step}")?;
                write!(f, " ({share:.2} of the two largest)")
            }
            _ => write!(f, "{peak}: weights {weights}, data {data}, kept from step to step {kept}, a step {step}"),
        }
    }
}
