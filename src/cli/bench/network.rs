//! `unfreeze bench forward` and `unfreeze bench train`.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use unfreeze::{Device, Precision, Result, nn::Arch, nn::cost::Roof};

use super::{
    cell::{CLASSES, Cell, Work},
    explain,
    measure::{Sorted, Timer, size},
    memory::{Before, Memory},
    resident,
    roof::{self, RoofFlags},
    task::Task,
};
use crate::cli::options::{Compute, Switch, count, side};

/// Settings of a measurement.
#[derive(Args)]
pub struct Options {
    /// Architecture, such as resnet34
    #[arg(long, default_value = "resnet34")]
    pub arch: Arch,
    /// Images per batch
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = count)]
    pub batch_size: usize,
    #[command(flatten)]
    pub timing: Timing,
    #[command(flatten)]
    pub roof: RoofFlags,
    #[command(flatten)]
    pub compute: Compute,
}

/// How long is measured.
#[derive(Args, Clone, Copy)]
pub struct Timing {
    /// Measured rounds
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = count)]
    pub rounds: usize,
    /// Seconds that a round takes at least
    #[arg(long, default_value_t = 0.5, value_name = "S", value_parser = time)]
    pub seconds: f64,
    /// Seconds before the first round, and three steps at least, that do not count
    #[arg(long, default_value_t = 1.0, value_name = "S", value_parser = time)]
    pub warm_up: f64,
}

/// Seconds, or minutes, of which a benchmark may take many.
pub fn time(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(time) if (0.0..=3600.0).contains(&time) => Ok(time),
        _ => Err("give a number from 0 to 3600".into()),
    }
}

/// How a GPU is told of its work.
#[derive(Args)]
pub struct Calls {
    /// On a GPU, make steps as `train` does: as CUDA graphs, those of a linear head on cached activations many to a
    /// launch
    #[arg(long, value_enum, default_value_t = Switch::On)]
    graphs: Switch,
}

impl Calls {
    pub fn graphs(&self) -> bool {
        self.graphs == Switch::On
    }
}

/// The images, and what the network computes in.
#[derive(Args)]
pub struct Images {
    /// Side of the images in pixels [default: 224, or 32 for CIFAR networks]
    #[arg(long, value_name = "N", value_parser = side)]
    pub size: Option<usize>,
    /// What activations are stored and multiplied in: f32, tf32 or bf16
    #[arg(long, default_value_t = Precision::F32, value_name = "NAME")]
    pub dtype: Precision,
}

#[derive(Args)]
pub struct Forward {
    #[command(flatten)]
    images: Images,
    #[command(flatten)]
    options: Options,
    /// Print a JSON object: images_per_second (the median), low and high (the 5th and 95th percentile), peak_memory
    /// (bytes of tensors), memory (what they are) and peak_resident (of the whole process; null if unknown), roof (flops and bytes per second,
    /// null if unknown), floor (images per second at the roof), share of it, and the settings
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Train {
    /// What is trained; what lies before runs frozen, in evaluation mode
    #[arg(long, value_enum, default_value_t = Trainable::All)]
    trainable: Trainable,
    /// Show what a step consists of instead: kernels, operations, bytes, activations kept, by the model of the cost and
    /// as counted on the device
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    calls: Calls,
    #[command(flatten)]
    images: Images,
    #[command(flatten)]
    options: Options,
    /// Print a JSON object, as `forward` does
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Trainable {
    /// The whole network
    All,
    /// layer4 and the head
    Layer4,
    /// layer3, layer4 and the head
    Layer3,
    /// The head
    Head,
}

impl Forward {
    pub fn run(self) -> Result<()> {
        let device = self.options.compute.open()?;
        let task = self.options.task(&self.images, Work::Forward, false, &device)?;
        self.options.measure(task)?.print(self.json);
        Ok(())
    }
}

impl Train {
    pub fn run(self) -> Result<()> {
        let device = self.options.compute.open()?;
        let work = match self.trainable {
            Trainable::All => Work::Full,
            Trainable::Layer4 => Work::Layer4,
            Trainable::Layer3 => Work::Layer3,
            Trainable::Head => Work::Head,
        };
        let task = self.options.task(&self.images, work, self.calls.graphs(), &device)?;
        if self.explain {
            return explain::run(task, self.json);
        }
        self.options.measure(task)?.print(self.json);
        Ok(())
    }
}

impl Options {
    /// Measures `task` beside the roof of its device.
    ///
    /// # Errors
    /// As of [`Measured::of`].
    pub fn measure(&self, task: Task) -> Result<Measured> {
        let roof = self.roof.roof(task.device(), task.cell().dtype)?;
        Measured::of(task, self.timing, roof)
    }

    fn task(&self, images: &Images, work: Work, graphs: bool, device: &Device) -> Result<Task> {
        let size = images.size.unwrap_or(self.arch.published_size());
        let cell =
            Cell { arch: self.arch, size, batch_size: self.batch_size, work, dtype: images.dtype, classes: CLASSES };
        Task::new(cell, graphs, self.compute.seed, device)
    }
}

/// What was measured of a task.
pub struct Measured {
    cell: Cell,
    device: Device,
    /// Images per second of each round.
    rates: Sorted,
    rounds: usize,
    steps: usize,
    memory: Memory,
    resident: Option<u64>,
    roof: Option<Roof>,
}

impl Measured {
    /// Measures `task`, and where that stands to `roof`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](unfreeze::Error::OutOfMemory); [`Error::Device`](unfreeze::Error::Device).
    pub fn of(mut task: Task, timing: Timing, roof: Option<Roof>) -> Result<Self> {
        let (cell, device) = (*task.cell(), task.device().clone());
        let Timing { rounds, seconds, warm_up } = timing;
        let before = Before::of(&task);
        resident::reset();
        let mut timer = Timer::new(&device, warm_up, |most| task.step(most))?;
        let (mut rates, mut steps) = (Vec::with_capacity(rounds), 0);
        for _ in 0..rounds {
            let block = timer.block(seconds)?;
            steps = block.steps;
            rates.push((cell.batch_size * block.steps) as f64 / block.seconds);
        }
        drop(timer);
        let (memory, resident) = (before.after(&device), resident::peak());
        Ok(Self { cell, device, rates: Sorted::new(rates), rounds, steps, memory, resident, roof })
    }

    /// Images per second, the median.
    pub fn rate(&self) -> f64 {
        self.rates.median()
    }

    /// Images per second that 5 % of the rounds lie below, and that 5 % lie above.
    pub fn spread(&self) -> [f64; 2] {
        [0.05, 0.95].map(|at| self.rates.quantile(at))
    }

    /// Bytes of tensors.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Images per second as a share of those at the roof, where that is known.
    pub fn share(&self) -> Option<f64> {
        self.floor().map(|floor| self.rate() / floor)
    }

    /// Images per second at the roof.
    fn floor(&self) -> Option<f64> {
        self.roof.map(|roof| self.cell.batch_size as f64 / roof.floor(&self.cell.kernels()))
    }

    /// The measurement as an object.
    pub fn object(&self) -> Value {
        let Cell { arch, size, batch_size, work, dtype, classes } = self.cell;
        let [low, high] = self.spread();
        json!({
            "bench": work.name(), "arch": arch.name(), "size": size, "batch_size": batch_size,
            "dtype": dtype.to_string(), "classes": classes, "device": self.device.to_string(),
            "product": roof::product_name(&self.device), "threads": self.device.threads(), "rounds": self.rounds,
            "steps_per_round": self.steps, "images_per_second": self.rate(), "low": low, "high": high,
            "peak_memory": self.memory.peak, "memory": self.memory.object(), "peak_resident": self.resident, "roof": roof::object(self.roof.as_ref()),
            "floor": self.floor(), "share": self.share(),
        })
    }

    /// Prints it, as an object or for people.
    pub fn print(&self, json: bool) {
        if json {
            return outln!("{}", self.object());
        }
        let [low, high] = self.spread();
        outln!(
            "{}, {}: {:.1} images/s (median of {}; 5 % below {low:.1}, 5 % above {high:.1})",
            self.cell,
            roof::product_name(&self.device),
            self.rate(),
            self.rounds,
        );
        let resident = self.resident.map(|bytes| format!("; the whole process: {}", size(bytes as f64)));
        outln!("  tensors at the peak: {}{}", self.memory, resident.unwrap_or_default());
        match (self.roof, self.floor()) {
            (Some(roof), Some(floor)) => {
                let share = self.rate() / floor;
                outln!("  {}: {floor:.1} images/s; reached {share:.3} of it", roof::describe(&self.device, &roof));
            }
            _ => outln!("  roof: unknown for this product; --roof-tflops tells"),
        }
    }
}
