//! `unfreeze bench serve`: this engine's side of a comparison, as `protocol` has it.

use std::io::{BufRead, stdin};

use clap::Args;
use serde_json::{Value, json};
use unfreeze::{Device, Error, Result, Tensor, checkpoint::Checkpoint};

use super::{
    measure::Timer,
    protocol::{Done, Failed, Hello, Logits, Peak, Ready, Request},
    resident,
    roof::product_name,
    task::{self, Task},
};
use crate::cli::options::Compute;

/// The one way in which this engine works.
const VARIANT: &str = "default";

#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    compute: Compute,
}

impl Serve {
    pub fn run(self) -> Result<()> {
        let device = self.compute.open()?;
        let mut lines = Lines { next: None };
        while let Some(request) = lines.take()? {
            match request {
                Request::Prepare { cell, variant, warm_up } if variant == VARIANT => {
                    device.reset_peak();
                    resident::reset();
                    // Cached features lie in the host's memory, where nobody counts them.
                    let is_counted = !(cell.work.is_cached() && matches!(device, Device::Cpu(_)));
                    let outcome = Task::new(cell, true, self.compute.seed, &device)
                        .and_then(|mut task| measure(&device, warm_up, is_counted, &mut lines, |most| task.step(most)));
                    if let Err(error) = outcome {
                        answer(&failed(&error));
                    }
                    // The other side is to have it, too.
                    device.trim();
                }
                other => answer(&self.simple(other, &device)),
            }
        }
        Ok(())
    }

    /// The answer to a request for which no cell need be ready.
    fn simple(&self, request: Request, device: &Device) -> Value {
        let outcome = match request {
            Request::Hello => Ok(json!(Hello {
                device: product_name(device),
                software: format!("unfreeze {}{}", env!("CARGO_PKG_VERSION"), driver(device)),
                variants: vec![VARIANT.into()],
            })),
            Request::Logits { cell, weights, images } => Checkpoint::read(weights)
                .and_then(|checkpoint| task::logits(&cell, &checkpoint, &pixels(images, cell.size, device)?))
                .map(|logits| json!(Logits { logits })),
            Request::Prepare { variant, .. } => Err(Error::setting("variant", format!("'{variant}' is unknown"))),
            Request::Block { .. } | Request::Finish => Err(Error::setting("request", "no cell is ready")),
        };
        outcome.unwrap_or_else(|error| failed(&error))
    }
}

/// Measures blocks of `step` until told to finish, or nobody asks any more; and its tensors if they are counted.
fn measure(
    device: &Device,
    warm_up: f64,
    is_counted: bool,
    lines: &mut Lines,
    step: impl FnMut(usize) -> Result<usize>,
) -> Result<()> {
    let mut timer = Timer::new(device, warm_up, step)?;
    answer(&json!(Ready { ready: true }));
    while let Some(request) = lines.take()? {
        match request {
            Request::Block { seconds } => {
                let block = timer.block(seconds)?;
                answer(&json!(Done { steps: block.steps, seconds: block.seconds }));
            }
            Request::Finish => {
                let peak_memory = is_counted.then(|| device.memory().peak as u64);
                answer(&json!(Peak { peak_memory, peak_resident: resident::peak() }));
                return Ok(());
            }
            other => {
                lines.next = Some(other);
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Requests from standard input.
struct Lines {
    /// One that was read and is still to be answered.
    next: Option<Request>,
}

impl Lines {
    /// The next request; `None` at the end. Lines that are none are answered here.
    fn take(&mut self) -> Result<Option<Request>> {
        if let Some(request) = self.next.take() {
            return Ok(Some(request));
        }
        let mut line = String::new();
        loop {
            line.clear();
            if stdin().lock().read_line(&mut line).map_err(|error| Error::io("standard input", error))? == 0 {
                return Ok(None);
            }
            match serde_json::from_str(&line) {
                Ok(request) => return Ok(Some(request)),
                Err(error) => answer(&json!(Failed { error: format!("no request: {error}") })),
            }
        }
    }
}

fn answer(value: &Value) {
    outln!("{value}");
}

fn failed(error: &Error) -> Value {
    json!(Failed { error: error.to_string() })
}

/// Images as [`Request::Logits`] defines them.
fn pixels(images: usize, size: usize, device: &Device) -> Result<Tensor> {
    let pixels: Vec<f32> = (0..images * size * size * 3).map(|i| (0.7 * i as f64).sin() as f32).collect();
    Tensor::new(pixels, [images, size, size, 3], device)
}

fn driver(device: &Device) -> String {
    match device {
        Device::Cuda(cuda) => {
            format!(", driver of CUDA {}", unfreeze::device::cuda::version(cuda.properties().driver_version))
        }
        _ => String::new(),
    }
}
