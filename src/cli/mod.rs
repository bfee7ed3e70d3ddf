//! The command line: one file per subcommand. It parses and prints; the library decides.

mod bench;
mod devices;
mod options;
mod summary;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use unfreeze::Error;

/// Transfer learning with ResNets: train an image classifier of your own on a pretrained network.
#[derive(Parser)]
#[command(name = "unfreeze", version, about, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Summary(summary::Summary),
    Bench(bench::Bench),
    Devices(devices::Devices),
}

/// Runs the program; 0 success, 1 failure, 2 wrong usage.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Summary(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Devices(command) => command.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if matches!(error, Error::Setting { .. }) { 2 } else { 1 })
        }
    }
}
