//! `unfreeze weights`, and how the other commands tell of published weights.

use std::{mem, time::Duration};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use unfreeze::{
    Error, Result,
    checkpoint::catalog::{self, Entry, Fetching, Folders, Interpolation},
    nn::Arch,
};

/// Published weights: list them, fetch them, tell where they are
///
/// They are looked for in `weights` of UNFREEZE_CACHE or of the user's cache folder, which they are fetched to, and in
/// the caches of PyTorch (TORCH_HOME) and of the Hugging Face Hub (HF_HUB_CACHE, HF_HOME). The first of HTTPS_PROXY,
/// ALL_PROXY and HTTP_PROXY names a proxy (http, https or socks5), NO_PROXY the hosts that need none. SSL_CERT_FILE
/// names certificates (PEM) to trust instead of Mozilla's, as networks need that open encrypted connections;
/// HF_ENDPOINT names a mirror of the Hub.
///
/// For a machine without a network, fetch elsewhere with UNFREEZE_CACHE set to an empty folder, and copy that.
#[derive(Args)]
pub struct Weights {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(List),
    Fetch(Fetch),
    Path(Path),
}

/// List published weights: accuracy on ImageNet, size, licence, what images went through, and where the file is
///
/// Names end in v1 or v2 for torchvision's weights, or in timm's tag.
#[derive(Args)]
struct List {
    /// Those of this architecture alone, such as resnet50
    #[arg(long)]
    arch: Option<Arch>,
    /// Those alone whose file is here
    #[arg(long)]
    present: bool,
    /// Print one JSON object per line: name, arch, top1 (percent), mib, licence, transforms (resize, crop,
    /// interpolation, mean, std), url, sha256 (or its first digits), path (null where the file is not here)
    #[arg(long)]
    json: bool,
}

/// Fetch the files of published weights, unless they are here already, and print where each is
///
/// What is fetched is verified by its SHA-256, which is noted beside it in NAME.sha256 (`sha256sum --check` reads it). A
/// file that is here already is verified too, and fetched again where it is damaged; so it is whenever weights are used
/// by their name. A download that was interrupted goes on from where it ended.
#[derive(Args)]
struct Fetch {
    /// Names of `unfreeze weights list`, such as resnet50.v2
    #[arg(required = true, value_parser = catalog::entry)]
    names: Vec<&'static Entry>,
    /// Print nothing but errors and the path
    #[arg(long, short)]
    quiet: bool,
}

/// Print where the file of published weights is; the exit status is 1 if it is not here
///
/// Its content is not looked at.
#[derive(Args)]
struct Path {
    /// A name of `unfreeze weights list`, such as resnet50.v2
    #[arg(value_parser = catalog::entry)]
    name: &'static Entry,
}

impl Weights {
    pub fn run(self) -> Result<()> {
        let folders = Folders::of_user()?;
        match self.command {
            Command::List(list) => list.run(&folders),
            Command::Fetch(Fetch { names, quiet }) => {
                for name in names {
                    outln!("{}", name.obtain(&folders, &mut teller(quiet))?.display());
                }
            }
            Command::Path(Path { name }) => match name.find(&folders) {
                Some(path) => outln!("{}", path.display()),
                None => {
                    let path = folders.own.join(name.file_name());
                    let message = format!(
                        "is not here; `unfreeze weights fetch {}` fetches it from {}",
                        name.name,
                        name.address()
                    );
                    return Err(Error::checkpoint(path, message));
                }
            },
        }
        Ok(())
    }
}

impl List {
    fn run(&self, folders: &Folders) {
        let entries = catalog::entries().iter().filter(|entry| self.arch.is_none_or(|arch| arch == entry.arch));
        let found = entries.map(|entry| (entry, entry.find(folders)));
        let found: Vec<_> = found.filter(|(_, path)| !self.present || path.is_some()).collect();
        if self.json {
            for (entry, path) in found {
                let listed = Listed { entry, path: path.map(|path| path.display().to_string()) };
                outln!("{}", serde_json::to_string(&listed).expect("it is of strings and numbers"));
            }
            return;
        }
        let Some(width) = found.iter().map(|(entry, _)| entry.name.len()).max() else {
            match (self.present, self.arch) {
                (true, _) => errln!("none of them is here; `unfreeze weights fetch NAME` fetches one"),
                (false, arch) => errln!("none is published for {}", arch.map_or("", Arch::name)),
            }
            return;
        };
        // Of at most 80 columns; a path has a line of its own.
        outln!("{:<width$} top-1  MiB {:<12} transforms", "name", "licence");
        for (entry, path) in found {
            let mib = entry.mib.map_or("-".into(), |mib| format!("{mib:.0}"));
            let (name, top1, licence) = (&entry.name, entry.top1, &entry.licence);
            outln!("{name:<width$} {top1:>5.2} {mib:>4} {licence:<12} {}", transforms(entry));
            if let Some(path) = path {
                outln!("  {}", path.display());
            }
        }
    }
}

/// An entry, and where its file is.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    entry: &'a Entry,
    path: Option<String>,
}

fn transforms(entry: &Entry) -> String {
    let transforms = &entry.transforms;
    let filter = if transforms.interpolation == Interpolation::Bicubic { " bicubic" } else { "" };
    format!("{}→{}{filter}", transforms.resize, transforms.crop)
}

/// What is said of published weights when they are used.
pub fn published_with(entry: &Entry) -> String {
    let Entry { name, licence, transforms, .. } = entry;
    let (resize, crop) = (transforms.resize, transforms.crop);
    let filter = match transforms.interpolation {
        Interpolation::Bicubic => ", there by a bicubic filter, here a bilinear one",
        _ => "",
    };
    format!(
        "weights {name} ({licence}): images are scaled and cropped as they were published, {resize} to {crop}{filter}"
    )
}

/// Tells on standard error how fetching goes: by a bar on a terminal, else by its beginning.
pub fn teller(quiet: bool) -> impl FnMut(Fetching) {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::no_length() };
    let style = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta:>5}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    // What is there already has taken no time now.
    let mut begins = true;
    move |event| {
        let note = match event {
            Fetching::Progress { done, total } => {
                if begins {
                    bar.reset();
                }
                total.inspect(|&total| bar.set_length(total));
                bar.set_position(done);
                if mem::take(&mut begins) {
                    bar.reset_eta();
                }
                if total == Some(done) {
                    bar.finish_and_clear();
                }
                return;
            }
            Fetching::Begun { url, path } => {
                bar.enable_steady_tick(Duration::from_millis(250));
                format!("fetching {url} to {}", path.display())
            }
            Fetching::Waiting { path } => format!("waiting for another process that fetches {}", path.display()),
            Fetching::PassedOver { path, reason } => format!("note: {} is left aside: {reason}", path.display()),
            Fetching::Resuming { reason, pause } if pause >= Duration::from_secs(1) => {
                format!("note: {reason}; going on in {} s", pause.as_secs())
            }
            Fetching::Resuming { reason, .. } => format!("note: {reason}; going on from there"),
            Fetching::Afresh { reason } => format!("note: {reason}; beginning again"),
            _ => return,
        };
        begins = true;
        if !quiet {
            bar.suspend(|| errln!("{note}"));
        }
    }
}
