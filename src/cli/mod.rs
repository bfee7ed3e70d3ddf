//! The command line: one file per subcommand. It parses and prints; the library decides.

/// As `println!`, but a reader that has gone away (`unfreeze inspect FILE | head`) is no error.
macro_rules! outln {
    ($($argument:tt)*) => { $crate::cli::print_line(format_args!($($argument)*)) };
}

/// As `eprintln!`, but a standard error that cannot be written to is no reason to fail.
macro_rules! errln {
    ($($argument:tt)*) => { $crate::cli::print_message(format_args!($($argument)*)) };
}

mod bench;
mod cache;
mod completions;
mod convert;
mod demo;
mod devices;
mod evaluate;
mod features;
mod inspect;
mod interrupt;
mod kernels;
mod lr_find;
mod onnx_flags;
mod options;
mod precompute;
mod precompute_flags;
mod predict;
mod progress;
mod report;
mod run;
mod samples;
mod step_flags;
mod summary;
mod train;
mod trained;
mod weights;

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use clap::{Parser, Subcommand};
use unfreeze::Error;

const START: &str = "\
Start with `unfreeze demo`: it needs nothing. For images of your own, in folders named after their classes:

  unfreeze samples DATA --valid-fraction 0.2 --out samples.png
  unfreeze lr-find DATA --valid-fraction 0.2 --arch resnet18 --weights auto --out lr
  unfreeze train DATA --valid-fraction 0.2 --arch resnet18 --weights auto --out run
  unfreeze evaluate run
  unfreeze predict run some/images

The run folder holds a report (report.html). `unfreeze train --resume --out run` goes on after an interruption.";

/// Transfer learning with ResNets: train an image classifier of your own on a pretrained network.
///
/// Results go to standard output, progress and messages to standard error. The exit status is 0 for success, 1 for
/// failure, 2 for wrong usage.
#[derive(Parser)]
#[command(name = "unfreeze", version, about, max_term_width = 110, arg_required_else_help = true, after_help = START)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Train(Box<train::Train>),
    LrFind(Box<lr_find::Find>),
    Predict(predict::Predict),
    Evaluate(evaluate::Evaluate),
    Report(report::Report),
    Samples(samples::Samples),
    Features(features::Features),
    Convert(convert::Convert),
    Inspect(inspect::Inspect),
    Weights(weights::Weights),
    Summary(summary::Summary),
    Bench(bench::Bench),
    Precompute(Box<precompute::Precompute>),
    Cache(cache::Cache),
    Kernels(kernels::Kernels),
    Devices(devices::Devices),
    Completions(completions::Completions),
}

/// Runs the program.
pub fn run() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(command) => command.run(),
        Command::Train(command) => command.run(),
        Command::LrFind(command) => command.run(),
        Command::Predict(command) => command.run(),
        Command::Report(command) => command.run(),
        Command::Evaluate(command) => command.run(),
        Command::Samples(command) => command.run(),
        Command::Features(command) => command.run(),
        Command::Convert(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Weights(command) => command.run(),
        Command::Summary(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Precompute(command) => command.run(),
        Command::Cache(command) => command.run(),
        Command::Kernels(command) => command.run(),
        Command::Devices(command) => command.run(),
        Command::Completions(command) => command.run(),
    };
    match outcome {
        Ok(()) if OUTPUT_FAILED.load(Ordering::SeqCst) => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A file's own words may be in it.
            let message: Vec<String> = in_flags(&error).split('\n').map(inspect::printable).collect();
            errln!("error: {}", message.join("\n"));
            ExitCode::from(if matches!(error, Error::Setting { .. }) { 2 } else { 1 })
        }
    }
}

/// The error, a setting under the name of its flag.
fn in_flags(error: &Error) -> String {
    const SETTINGS: &[&str] = &[
        "augment",
        "batch_size",
        "bn_freeze",
        "class_weights",
        "clip_grad",
        "cutmix",
        "cycle_mult",
        "cycles",
        "early_stopping",
        "ema",
        "end",
        "epochs",
        "freeze_out",
        "freeze_to",
        "groups",
        "hidden",
        "lr",
        "max_zoom",
        "metrics",
        "mixup",
        "momentum_range",
        "optimizer",
        "pad",
        "reduce_on_plateau",
        "resize",
        "resume",
        "save_best",
        "size",
        "softmax",
        "start",
        "steps",
        "suggest",
        "threads",
        "threshold",
        "tta",
        "valid_fraction",
        "warm_up",
        "wd",
        "weights",
    ];
    match error {
        Error::Setting { setting, message } if setting == "dropout" => format!("--ps: {message}"),
        Error::Setting { setting, message } if SETTINGS.contains(&setting.as_str()) => {
            format!("--{}: {message}", setting.replace('_', "-"))
        }
        other => other.to_string(),
    }
}

/// Whether standard output could not be written to. The work goes on: a full disk under a log must not cost a run.
static OUTPUT_FAILED: AtomicBool = AtomicBool::new(false);

fn print_line(line: fmt::Arguments) {
    if OUTPUT_FAILED.load(Ordering::SeqCst) {
        return;
    }
    if let Err(error) = writeln!(io::stdout().lock(), "{line}")
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        OUTPUT_FAILED.store(true, Ordering::SeqCst);
        errln!("error: standard output: {error}; nothing more is printed");
    }
}

fn print_message(line: fmt::Arguments) {
    // There is nowhere left to say so.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
