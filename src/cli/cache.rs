//! `unfreeze cache`: the activations that are kept on disk.

use std::{
    io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use clap::{Args, Subcommand};
use indicatif::{BinaryBytes, HumanDuration};
use serde_json::json;
use unfreeze::{
    Error, Result,
    cache::store::{Listed, Store},
};

use super::options::absolute;

/// Look after the activations that are kept on disk from one run to the next
#[derive(Args)]
pub struct Cache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(List),
    Verify(Verify),
    Clear(Clear),
}

/// List the entries, those that were used last first
#[derive(Args)]
struct List {
    #[command(flatten)]
    place: Place,
    /// Print one JSON object per entry: id, arch, boundary, size, dims, stored, computed, data, rows, chunks, bytes,
    /// used (seconds since 1970)
    #[arg(long)]
    json: bool,
}

/// Compare the checksums of all files, and name those that are damaged
///
/// The exit status is 1 if there are any. A run finds and replaces them by itself.
#[derive(Args)]
struct Verify {
    #[command(flatten)]
    place: Place,
    /// Remove damaged files; what they held is computed anew when it is needed
    #[arg(long)]
    remove: bool,
    /// Print one JSON object per damaged file: file, reason. Last an object chunks, bytes, damaged
    #[arg(long)]
    json: bool,
}

/// Remove entries
#[derive(Args)]
struct Clear {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    place: Place,
    /// Print one JSON object per entry: id, bytes
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The first digits of an entry's id
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Remove all entries
    #[arg(long)]
    all: bool,
    /// Remove what is of images in this folder, as `list` names it, and nothing else of the same entries
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Args)]
struct Place {
    /// Folder of the cache [default: activations in UNFREEZE_CACHE, or in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl Cache {
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::List(list) => list.run(),
            Command::Verify(verify) => verify.run(),
            Command::Clear(clear) => clear.run(),
        }
    }
}

impl Place {
    /// The store and what is in it. Where nothing is, that is said on standard error.
    fn open(&self) -> Result<(Store, Vec<Listed>)> {
        let folder = self.folder.clone().or_else(Store::default_folder).ok_or_else(|| {
            Error::setting("--folder", "this user has no cache folder; say where the cache is, or set UNFREEZE_CACHE")
        })?;
        if self.folder.is_some() && !folder.exists() {
            return Err(Error::io(&folder, io::Error::new(io::ErrorKind::NotFound, "there is no such folder")));
        }
        let store = Store::at(folder)?;
        let entries = store.list()?;
        if entries.is_empty() {
            errln!("the cache is empty: {}", store.folder().display());
        }
        Ok((store, entries))
    }
}

/// The id as it is shown.
fn short(id: &str) -> &str {
    &id[..id.len().min(12)]
}

impl List {
    fn run(self) -> Result<()> {
        let (store, entries) = self.place.open()?;
        if entries.is_empty() {
            return Ok(());
        }
        if !self.json {
            let columns =
                format!("{:>5} {:<16} {:<6} {:>9} {:>11} {:>14}", "size", "computed", "stored", "rows", "", "used");
            outln!("{:<12} {:<16} {:<16} {columns}  data", "id", "arch", "boundary");
        }
        for entry in &entries {
            let about = entry.about.clone().unwrap_or_default();
            let data = entry.data.join(", ");
            if self.json {
                let used = entry.used.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let object = json!({
                    "id": entry.id, "arch": about.arch, "boundary": about.boundary, "size": about.size,
                    "dims": about.dims, "stored": about.stored, "computed": about.computed, "data": entry.data,
                    "rows": entry.rows, "chunks": entry.chunks, "bytes": entry.bytes, "used": used,
                });
                outln!("{object}");
            } else {
                let ago = format!("{} ago", HumanDuration(entry.used.elapsed().unwrap_or_default()));
                let bytes = BinaryBytes(entry.bytes).to_string();
                let stored = json!(about.stored);
                let columns = format!(
                    "{:>5} {:<16} {:<6} {:>9} {bytes:>11} {ago:>14}",
                    about.size,
                    about.computed,
                    stored.as_str().unwrap_or_default(),
                    entry.rows
                );
                outln!("{:<12} {:<16} {:<16} {columns}  {data}", short(&entry.id), about.arch, about.boundary);
            }
        }
        if !self.json {
            let bytes = BinaryBytes(entries.iter().map(|entry| entry.bytes).sum());
            outln!("{bytes} in {}", store.folder().display());
        }
        Ok(())
    }
}

impl Verify {
    fn run(self) -> Result<()> {
        let (store, _) = self.place.open()?;
        let verified = store.verify(self.remove)?;
        for file in &verified.damaged {
            if self.json {
                outln!("{}", json!({ "file": file.path.display().to_string(), "reason": file.reason }));
            } else {
                outln!("{}: {}", file.path.display(), file.reason);
            }
        }
        let (chunks, bytes, damaged) = (verified.chunks, verified.bytes, verified.damaged.len());
        if self.json {
            outln!("{}", json!({ "chunks": chunks, "bytes": bytes, "damaged": damaged }));
        } else {
            outln!("files checked: {chunks}, {}", BinaryBytes(bytes));
        }
        let remedy = if self.remove { "removed" } else { "--remove removes them" };
        match damaged {
            0 => Ok(()),
            _ => Err(Error::data(store.folder(), format!("{damaged} of {chunks} files are damaged; {remedy}"))),
        }
    }
}

impl Clear {
    fn run(self) -> Result<()> {
        let (store, entries) = self.place.open()?;
        let data = self.which.data.as_deref().map(absolute).transpose()?;
        let mut chosen: Vec<&Listed> = match &data {
            Some(data) => entries.iter().filter(|entry| entry.data.iter().any(|of| Path::new(of) == data)).collect(),
            None if self.which.all => entries.iter().collect(),
            None => self.which.ids.iter().map(|id| Listed::pick(&entries, id)).collect::<Result<_>>()?,
        };
        if let (Some(data), true) = (&data, chosen.is_empty()) {
            let message =
                format!("nothing is of images in {}; `unfreeze cache list` names the folders", data.display());
            return Err(Error::setting("--data", message));
        }
        chosen.sort_by_key(|entry| &entry.id);
        chosen.dedup();
        let mut freed = 0;
        for entry in &chosen {
            let bytes = match &data {
                Some(data) => store.clear_data(entry, data)?,
                None => store.clear(entry)?,
            };
            freed += bytes;
            if self.json {
                outln!("{}", json!({ "id": entry.id, "bytes": bytes }));
            } else {
                outln!("{} {}", short(&entry.id), BinaryBytes(bytes));
            }
        }
        if !self.json && !chosen.is_empty() {
            outln!("{} freed", BinaryBytes(freed));
        }
        Ok(())
    }
}
