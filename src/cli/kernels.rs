//! `unfreeze kernels`: what the GPU's kernels are, and compiling them ahead of time.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, Subcommand};
use serde_json::json;
use unfreeze::{
    Error, Result,
    device::cuda::{Compiler, Nvrtc, Prebuilt, Source},
    ops::kernels::SOURCES,
};

/// List the GPU's kernels, or compile them ahead of time
#[derive(Args)]
pub struct Kernels {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List kernel files, their kernels, and the architectures they are for; those with a * are in the cache
    List(List),
    /// Compile kernels for machines that have no NVRTC; UNFREEZE_KERNELS=DIR uses them there
    Build(Build),
}

#[derive(Args)]
struct List {
    /// Print one JSON object per file: source, kernels, archs, cached
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Build {
    /// Architectures, such as sm_90a or sm_80,sm_90a; all for all of them
    #[arg(long, value_delimiter = ',', required = true, value_name = "SM,SM|all")]
    arch: Vec<String>,
    /// Folder to write to; what it holds already for other architectures is kept
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// NVRTC's library [default: where it is found]
    #[arg(long, value_name = "FILE")]
    nvrtc: Option<PathBuf>,
    /// Print one JSON object per kernel: source, arch, kernel, registers, shared, stack, spills
    #[arg(long)]
    json: bool,
}

impl Kernels {
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::List(list) => list.run(),
            Command::Build(build) => build.run(),
        }
    }
}

impl List {
    fn run(self) -> Result<()> {
        let compiler = Compiler::new();
        if !self.json {
            outln!("{:<16} {:<48} kernels", "source", "architectures");
        }
        for source in SOURCES {
            let cached: Vec<_> = source.archs.iter().filter(|arch| compiler.is_cached(source, arch)).collect();
            if self.json {
                let (kernels, archs) = (source.entries, source.archs);
                outln!("{}", json!({ "source": source.name, "kernels": kernels, "archs": archs, "cached": cached }));
            } else {
                let mark = |arch| if cached.contains(&arch) { format!("{arch}*") } else { arch.to_string() };
                let archs = source.archs.iter().map(mark).collect::<Vec<_>>().join(" ");
                outln!("{:<16} {archs:<48} {}", source.name, source.entries.join(" "));
            }
        }
        Ok(())
    }
}

impl Build {
    fn run(self) -> Result<()> {
        let archs = architectures(&self.arch)?;
        let compiler = compiler(self.nvrtc.as_deref())?;
        let nvrtc = compiler.find_nvrtc(None)?;
        let mut folder = Prebuilt::create(&self.out)?;
        if !self.json {
            let columns = format!("{:>9} {:>7} {:>6} {:>7}", "registers", "shared", "stack", "spilled");
            outln!("{:<16} {:<8} {:<40} {columns}", "source", "arch", "kernel");
        }
        for (source, arch) in SOURCES.iter().flat_map(|source| archs.iter().map(move |arch| (source, arch))) {
            if !source.archs.contains(&arch.as_str()) {
                continue;
            }
            let compiled = compiler.compile(source, arch)?;
            folder.add(source, arch, &compiled, nvrtc.version())?;
            for kernel in &compiled.resources {
                let (name, entry) = (source.name, &kernel.entry);
                let (registers, shared, stack, spills) = (kernel.registers, kernel.shared, kernel.stack, kernel.spills);
                if self.json {
                    let object = json!({
                        "source": name, "arch": arch, "kernel": entry, "registers": registers, "shared": shared,
                        "stack": stack, "spills": spills,
                    });
                    outln!("{object}");
                } else {
                    outln!("{name:<16} {arch:<8} {entry:<40} {registers:>9} {shared:>7} {stack:>6} {spills:>7}");
                }
            }
        }
        folder.save()?;
        errln!("compiled by {nvrtc:?}; to use them: UNFREEZE_KERNELS={}", self.out.display());
        Ok(())
    }
}

/// The compiler, by the NVRTC that a flag names or the one that is found.
fn compiler(nvrtc: Option<&Path>) -> Result<Compiler> {
    let Some(path) = nvrtc else { return Ok(Compiler::new()) };
    let absolute = super::options::absolute(path)?;
    let nvrtc = Nvrtc::open(&absolute)
        .map_err(|reason| Error::setting("--nvrtc", format!("'{}' cannot be loaded: {reason}", path.display())))?;
    Ok(Compiler::new().nvrtc(Arc::new(nvrtc)))
}

/// The architectures asked for, each of which some kernels are for.
fn architectures(asked: &[String]) -> Result<Vec<String>> {
    let known: BTreeSet<&str> = SOURCES.iter().flat_map(|source: &&Source| source.archs).copied().collect();
    if asked == ["all"] {
        return Ok(known.into_iter().map(str::to_owned).collect());
    }
    match asked.iter().find(|arch| !known.contains(arch.as_str())) {
        None => Ok(asked.to_vec()),
        Some(unknown) => {
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            Err(Error::setting(
                "--arch",
                format!("there are no kernels for '{unknown}'; there are for {known}, or all"),
            ))
        }
    }
}
