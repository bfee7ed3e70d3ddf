//! `unfreeze bench compare`: this engine beside PyTorch. Two resident processes take turns in blocks, so that whatever
//! slows the machine down meets both; every cell is written down at once, and found again after an interruption.

mod check;
mod grid;
mod record;
mod table;
mod worker;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use clap::Args;
use unfreeze::{Error, Result, nn::cost::Roof};

use super::{
    cell::Cell,
    network::time,
    protocol::{Done, Hello, Peak, Ready, Request},
    roof::RoofFlags,
};
use crate::cli::options::{Compute, count};
use check::Check;
use grid::Grid;
use record::{Log, Outcome, Record, Side};
use worker::Worker;

/// Seconds of the block by which a variant is chosen.
const TRIAL: f64 = 0.5;

/// Variants tried unless others are named: those that take minutes to compile are left out.
const DEFAULT: [&str; 5] = ["eager", "graph", "reduce-overhead", "folded-graph", "folded-reduce-overhead"];

#[derive(Args)]
pub struct Compare {
    /// Python with torch and torchvision
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    python: PathBuf,
    /// The other side: benches/torch_baseline.py, or whatever speaks its protocol
    #[arg(long, value_name = "FILE")]
    script: PathBuf,
    /// Where measurements are written, a JSON object to a line; cells that it holds are not measured again
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    grid: Grid,
    /// Ways of the other side that are tried before the fastest is measured [default: eager, graph and reduce-overhead;
    /// of forward also the folded ones]; all for all that it knows
    #[arg(long, value_delimiter = ',', value_name = "NAME,NAME|all")]
    variants: Option<Vec<String>>,
    /// Blocks of each side
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = count)]
    blocks: usize,
    /// Seconds of a block
    #[arg(long, default_value_t = 0.5, value_name = "S", value_parser = time)]
    seconds: f64,
    /// Seconds before the first block of each side
    #[arg(long, default_value_t = 2.0, value_name = "S", value_parser = time)]
    warm_up: f64,
    /// Minutes after which no further cell is begun
    #[arg(long, default_value_t = 25.0, value_name = "M", value_parser = time)]
    minutes: f64,
    /// Seconds that one answer may take; compiling a network takes minutes
    #[arg(long, default_value_t = 600.0, value_name = "S", value_parser = time)]
    patience: f64,
    /// Measure cells again in which a side failed
    #[arg(long)]
    retry: bool,
    /// Fewer, shorter blocks, and the other side's eager mode alone
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    roof: RoofFlags,
    #[command(flatten)]
    compute: Compute,
}

/// Both sides at work.
struct Sides {
    ours: Worker,
    theirs: Worker,
    hello: [Hello; 2],
}

impl Compare {
    pub fn run(mut self) -> Result<()> {
        if self.quick {
            (self.blocks, self.seconds, self.warm_up) = (self.blocks.min(5), self.seconds.min(0.3), 1.0);
            self.variants.get_or_insert_with(|| vec!["eager".into()]);
        }
        let cells = self.grid.cells();
        for cell in &cells {
            cell.validate()?;
        }
        let mut log = Log::open(&self.out)?;
        let (started, limit) = (Instant::now(), Duration::from_secs_f64(self.minutes * 60.0));
        let is_done = |record: &Record| !self.retry || record.ratio().is_some();
        let open: Vec<Cell> = cells.iter().copied().filter(|cell| !log.last(cell).is_some_and(is_done)).collect();
        if !open.is_empty() && limit > Duration::ZERO {
            let mut roofs = Roofs { compare: &self, known: HashMap::new() };
            let mut check = Check::new()?;
            let mut sides = self.start()?;
            for (number, cell) in open.iter().enumerate() {
                if started.elapsed() > limit {
                    errln!("{} cells are left: the time is up; the same command goes on", open.len() - number);
                    break;
                }
                errln!("{} of {}: {cell}", number + 1, open.len());
                let roof = roofs.of(cell)?;
                let record = self.cell(*cell, &mut sides, &mut check, roof)?;
                log.add(record)?;
            }
        }
        outln!("{}", table::markdown(&cells, &log));
        Ok(())
    }

    fn start(&self) -> Result<Sides> {
        let patience = Duration::from_secs_f64(self.patience);
        let program = std::env::current_exe().map_err(|error| Error::io("unfreeze", error))?;
        let mut ours = Command::new(&program);
        ours.args(["bench", "serve", "--seed", &self.compute.seed.to_string()]);
        let mut theirs = Command::new(&self.python);
        // It may want something of this program, such as an ONNX file.
        theirs.arg(&self.script).env("UNFREEZE", &program);
        for command in [&mut ours, &mut theirs] {
            command.args(["--device", &self.compute.device.to_string()]);
            command.args(["--threads", &self.compute.threads.to_string()]);
        }
        let mut ours = Worker::new("unfreeze", ours, patience);
        let mut theirs = Worker::new("the other side", theirs, patience);
        let hello = [ours.ask(&Request::Hello), theirs.ask(&Request::Hello)];
        let [first, second] = hello.map(|hello| hello.map_err(|message| Error::data(&self.script, message)));
        Ok(Sides { ours, theirs, hello: [first?, second?] })
    }

    /// Measures a cell. What goes wrong on one side is that side's result.
    fn cell(&self, cell: Cell, sides: &mut Sides, check: &mut Check, roof: Option<Roof>) -> Result<Record> {
        let mut record = Record::new(cell, &sides.hello, roof);
        if let Err(message) = check.logits(&cell, &mut sides.ours, &mut sides.theirs)? {
            errln!("  {message}");
            record.mismatch = Some(message);
            return Ok(record);
        }
        let tried = self.tried(&cell, &sides.hello[1]);
        let ours = prepare(&mut sides.ours, &cell, &sides.hello[0].variants, self.warm_up);
        let theirs = prepare(&mut sides.theirs, &cell, &tried, self.warm_up);
        let mut rates: [Result<Vec<f64>, String>; 2] = [&ours, &theirs].map(|ready| match ready {
            Ok(_) => Ok(Vec::with_capacity(self.blocks)),
            Err(message) => Err(message.clone()),
        });
        for pair in 0..self.blocks {
            // A B, B A, A B …: a drift favours neither.
            let order = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                let worker = if side == 0 { &mut sides.ours } else { &mut sides.theirs };
                if let Ok(found) = &mut rates[side] {
                    match block(worker, &cell, self.seconds) {
                        Ok(rate) => found.push(rate),
                        Err(message) => rates[side] = Err(message),
                    }
                }
            }
        }
        let [our_rates, their_rates] = rates;
        record.ours = side(&mut sides.ours, ours, our_rates);
        record.theirs = side(&mut sides.theirs, theirs, their_rates);
        errln!("  {}", table::line(&record));
        Ok(record)
    }

    /// The other side's ways to be tried for a cell, of those that it has.
    fn tried(&self, cell: &Cell, hello: &Hello) -> Vec<String> {
        let suits = |name: &&String| match name.as_str() {
            "dataloader" => cell.work.is_cached(),
            name => cell.work.is_forward() || !name.contains("folded"),
        };
        let known = hello.variants.iter().filter(suits);
        let wanted = |name: &&String| match &self.variants {
            None => DEFAULT.contains(&name.as_str()),
            Some(asked) => asked.iter().any(|asked| asked == "all" || asked == *name),
        };
        let mut tried: Vec<String> = known.clone().filter(wanted).cloned().collect();
        if tried.is_empty() {
            tried = known.take(1).cloned().collect();
        }
        tried
    }
}

/// Gets a side ready in the fastest of some ways: that, and images per second of each.
fn prepare(worker: &mut Worker, cell: &Cell, variants: &[String], warm_up: f64) -> Result<Chosen, String> {
    let ready = |worker: &mut Worker, variant: &String| {
        worker.ask::<Ready>(&Request::Prepare { cell: *cell, variant: variant.clone(), warm_up })
    };
    if let [only] = variants {
        ready(worker, only)?;
        return Ok(Chosen { variant: only.clone(), tried: Vec::new() });
    }
    let (mut tried, mut last, mut problem) = (Vec::new(), None, "it has no way to do this".to_string());
    for variant in variants {
        last = None;
        match ready(worker, variant).and_then(|_| block(worker, cell, TRIAL)) {
            Ok(rate) => {
                tried.push((variant.clone(), rate));
                last = Some(variant);
            }
            Err(message) => {
                errln!("  {variant}: {message}");
                problem = message;
            }
        }
    }
    let Some((best, _)) = tried.iter().max_by(|a, b| a.1.total_cmp(&b.1)).cloned() else { return Err(problem) };
    if last != Some(&best) {
        ready(worker, &best)?;
    }
    Ok(Chosen { variant: best, tried })
}

/// A side's way to do a cell, and what the ways that were tried reached.
struct Chosen {
    variant: String,
    tried: Vec<(String, f64)>,
}

/// Images per second of one block.
fn block(worker: &mut Worker, cell: &Cell, seconds: f64) -> Result<f64, String> {
    let done: Done = worker.ask(&Request::Block { seconds })?;
    match (cell.batch_size * done.steps) as f64 / done.seconds {
        rate if rate > 0.0 && rate.is_finite() => Ok(rate),
        rate => Err(format!("{rate} images per second are no measurement")),
    }
}

/// What a side reached, or why it did not.
fn side(worker: &mut Worker, chosen: Result<Chosen, String>, rates: Result<Vec<f64>, String>) -> Option<Outcome> {
    let outcome = chosen.and_then(|Chosen { variant, tried }| {
        let images_per_second = rates?;
        let Peak { peak_memory, peak_resident } = worker.ask(&Request::Finish)?;
        Ok(Side { variant, tried, images_per_second, peak_memory, peak_resident })
    });
    Some(outcome.map_or_else(|message| Outcome::Failed { message }, Outcome::Measured))
}

/// The device's roofs, each measured once.
struct Roofs<'a> {
    compare: &'a Compare,
    known: HashMap<unfreeze::Precision, Option<Roof>>,
}

impl Roofs<'_> {
    fn of(&mut self, cell: &Cell) -> Result<Option<Roof>> {
        if let Some(roof) = self.known.get(&cell.dtype) {
            return Ok(*roof);
        }
        // The device is let go of again: the measured processes are to have it for themselves.
        let device = self.compare.compute.open()?;
        let roof = self.compare.roof.roof(&device, cell.dtype)?;
        self.known.insert(cell.dtype, roof);
        Ok(roof)
    }
}

/// An error of the file of measurements.
fn damaged(path: &Path, line: usize, error: &serde_json::Error) -> Error {
    Error::data(path, format!("line {line} is no measurement: {error}; move the file away to begin anew"))
}
