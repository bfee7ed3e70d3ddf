//! A resident process that answers requests line by line. One that dies or falls silent is replaced by a fresh one when
//! it is next asked.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use serde::de::DeserializeOwned;

use crate::cli::bench::protocol::{Failed, Request};

/// A side of the comparison.
pub struct Worker {
    name: &'static str,
    command: Command,
    patience: Duration,
    running: Option<Running>,
}

struct Running {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Worker {
    /// The process that `command` starts, which may take `patience` for an answer.
    pub fn new(name: &'static str, mut command: Command, patience: Duration) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self { name, command, patience, running: None }
    }

    /// Its answer to `request`.
    ///
    /// # Errors
    /// What it says went wrong; or that it has ended, is silent, or says something else.
    pub fn ask<A: DeserializeOwned>(&mut self, request: &Request) -> Result<A, String> {
        let name = self.name;
        let line = self.exchange(&format!("{}\n", serde_json::json!(request)))?;
        match (serde_json::from_str(&line), serde_json::from_str::<Failed>(&line)) {
            (_, Ok(Failed { error })) => Err(error),
            (Ok(answer), Err(_)) => Ok(answer),
            (Err(_), Err(_)) => Err(format!("{name} answered: {}", line.chars().take(200).collect::<String>())),
        }
    }

    fn exchange(&mut self, line: &str) -> Result<String, String> {
        let patience = self.patience;
        let running = match &mut self.running {
            Some(running) => running,
            none => none.insert(start(&mut self.command).map_err(|error| {
                format!("{} ({:?}) does not start: {error}", self.name, self.command.get_program())
            })?),
        };
        // A process that has ended does not read; what it said and how it ended is told below.
        let _ = running.input.write_all(line.as_bytes());
        let outcome = running.answers.recv_timeout(patience);
        outcome.map_err(|problem| {
            let end = self.stop();
            match problem {
                RecvTimeoutError::Timeout => format!("no answer within {:.0} s", patience.as_secs_f64()),
                RecvTimeoutError::Disconnected => format!("{} ended ({end})", self.name),
            }
        })
    }

    /// Ends the process, and says how it ended.
    fn stop(&mut self) -> String {
        let Some(Running { mut child, input, answers }) = self.running.take() else { return "not running".into() };
        drop((input, answers));
        // It may have ended already.
        let _ = child.kill();
        child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

fn start(command: &mut Command) -> std::io::Result<Running> {
    let mut child = command.spawn()?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(std::io::Error::other("no pipes"));
    };
    let (sender, answers) = channel();
    // Ends with the process, or when nobody listens any more.
    thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    Ok(Running { child, input, answers })
}
