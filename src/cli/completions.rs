//! `unfreeze completions`

use std::io;

use clap::{Args, CommandFactory};
use unfreeze::{Error, Result};

/// Print a script that completes commands and flags in a shell
///
/// For bash: `unfreeze completions bash > ~/.local/share/bash-completion/completions/unfreeze`; for zsh into a file
/// `_unfreeze` of a folder in `fpath`; for fish into ~/.config/fish/completions/unfreeze.fish.
#[derive(Args)]
pub struct Completions {
    /// Shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "unfreeze", &mut script);
        let text =
            String::from_utf8(script).map_err(|error| Error::io("the completion script", io::Error::other(error)))?;
        outln!("{}", text.trim_end());
        Ok(())
    }
}
