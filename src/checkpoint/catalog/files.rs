//! Where the files of published checkpoints lie on this machine, and are fetched to.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Entry, sums};
use crate::{
    Error, Result,
    checkpoint::Weights,
    files::{CACHE_VARIABLE, cache_folder},
};

const HUB: &str = "https://huggingface.co/";

/// Folders with checkpoints: this engine's own, and what other programs have fetched.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Where files are fetched to.
    pub own: PathBuf,
    /// PyTorch's: `hub/checkpoints` in `TORCH_HOME`, or in `torch` of `XDG_CACHE_HOME` or `~/.cache`.
    pub torch: Option<PathBuf>,
    /// The Hugging Face Hub's: `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or in `huggingface` of `XDG_CACHE_HOME` or
    /// `~/.cache`.
    pub hub: Option<PathBuf>,
}

impl Folders {
    /// The user's: files are fetched to `weights` in `UNFREEZE_CACHE`, or in the user's cache folder.
    ///
    /// # Errors
    /// [`Error::Setting`] if this user has no cache folder.
    pub fn of_user() -> Result<Self> {
        let missing =
            || Error::setting(CACHE_VARIABLE, "this user has no cache folder; set it to a folder for weights");
        let users = etcetera::home_dir().ok();
        let variable = |name: &str| {
            let path = PathBuf::from(env::var_os(name).filter(|value| !value.is_empty())?);
            // Where no shell has done so, both take ~ for the user's folder.
            match path.strip_prefix("~") {
                Ok(below) => Some(users.as_ref()?.join(below)),
                Err(_) => Some(path),
            }
        };
        // Both take the cache folder of the desktop standard on every system.
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(users.as_ref()?.join(".cache")));
        let home = |name: &str, below: &str| variable(name).or_else(|| Some(cache.as_ref()?.join(below)));
        Ok(Self {
            own: cache_folder("weights").ok_or_else(missing)?,
            torch: home("TORCH_HOME", "torch").map(|folder| folder.join("hub/checkpoints")),
            hub: ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]
                .into_iter()
                .find_map(variable)
                .or_else(|| Some(home("HF_HOME", "huggingface")?.join("hub"))),
        })
    }
}

/// What [`Entry::obtain`] meets on its way.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Fetching<'a> {
    /// A file that is there already is not the published one, and is left aside.
    PassedOver {
        /// The file.
        path: &'a Path,
        /// What is wrong with it.
        reason: &'a str,
    },
    /// Another process is fetching the same file, and this one waits for it.
    Waiting {
        /// Where it is fetched to.
        path: &'a Path,
    },
    /// The file is being fetched.
    Begun {
        /// From there.
        url: &'a str,
        /// To there.
        path: &'a Path,
    },
    /// So many bytes are there, of as many as the server says there are.
    Progress {
        /// Bytes that are there, those of an earlier attempt included.
        done: u64,
        /// Bytes in all.
        total: Option<u64>,
    },
    /// The connection was cut, or the server is busy; another attempt goes on from there.
    Resuming {
        /// What happened.
        reason: &'a str,
        /// Time until then.
        pause: Duration,
    },
    /// What there was of the file is of no use: it is fetched from its beginning, and progress begins again.
    Afresh {
        /// What happened.
        reason: &'a str,
    },
}

impl Entry {
    /// The name that its file has in [`Folders::own`].
    pub fn file_name(&self) -> String {
        match self.hub_file() {
            // Whose files are all called alike.
            Some((_, file)) => match Path::new(file).extension() {
                Some(extension) => format!("{}.{}", self.name, extension.display()),
                None => self.name.clone(),
            },
            None => self.url.rsplit('/').next().unwrap_or(&self.name).to_string(),
        }
    }

    /// Repository and file of an entry on the Hugging Face Hub.
    pub(in crate::checkpoint) fn hub_file(&self) -> Option<(&str, &str)> {
        self.url.strip_prefix(HUB)?.split_once("/resolve/main/")
    }

    /// Where it is fetched from: [`url`](Self::url), or the same on the mirror of the Hub that `HF_ENDPOINT` names.
    pub fn address(&self) -> String {
        let mirror = env::var("HF_ENDPOINT").ok().filter(|mirror| !mirror.is_empty());
        match (mirror, self.url.strip_prefix(HUB)) {
            (Some(mirror), Some(rest)) => format!("{}/{rest}", mirror.trim_end_matches('/')),
            _ => self.url.clone(),
        }
    }

    /// Its file, if it is on this machine already. Its content is not looked at.
    pub fn find(&self, folders: &Folders) -> Option<PathBuf> {
        self.places(folders).into_iter().next()
    }

    /// Where its file lies, in the order in which they are preferred: the own folder, then the latest of others.
    fn places(&self, folders: &Folders) -> Vec<PathBuf> {
        let mut places = vec![folders.own.join(self.file_name())];
        match (self.hub_file(), &folders.torch, &folders.hub) {
            (None, Some(torch), _) => places.push(torch.join(self.file_name())),
            (Some((repository, file)), _, Some(hub)) => {
                let folder = hub.join(format!("models--{}", repository.replace('/', "--")));
                let snapshots = folder.join("snapshots");
                let latest = fs::read_to_string(folder.join("refs/main")).unwrap_or_default();
                places.push(snapshots.join(latest.trim()).join(file));
                let revisions = fs::read_dir(&snapshots).into_iter().flatten().flatten();
                let mut others: Vec<_> = revisions.map(|revision| revision.path().join(file)).collect();
                others.sort();
                places.extend(others);
            }
            _ => {}
        }
        places.retain(|path| path.is_file());
        places
    }

    /// Its file: one that is on this machine already, or fetched to [`Folders::own`]. `tell` hears what happens.
    ///
    /// A file that is found is compared each time with the hashes that are known of it: the entry's; the one that was
    /// noted when it was fetched, in `NAME.sha256` beside it, which `sha256sum --check` reads; in the cache of the
    /// Hugging Face Hub the one that names what is stored. A file without any, put there by hand, is taken as it is.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is not here and cannot be fetched, with the path to put it at by hand, [`Error::Io`]
    /// if it cannot be written there.
    pub fn obtain(&self, folders: &Folders, tell: &mut dyn FnMut(Fetching)) -> Result<PathBuf> {
        for path in self.places(folders) {
            match self.flaw(&path) {
                None => return Ok(path),
                Some(reason) => tell(Fetching::PassedOver { path: &path, reason: &reason }),
            }
        }
        let path = folders.own.join(self.file_name());
        self.fetch(&path, tell)?;
        Ok(path)
    }

    /// Reads its weights, which [`obtain`](Self::obtain) finds or fetches.
    ///
    /// # Errors
    /// As [`obtain`](Self::obtain), and as [`Weights::file_of`].
    pub fn weights(&self, folders: &Folders, tell: &mut dyn FnMut(Fetching)) -> Result<Weights> {
        Ok(Weights::file_of(self.arch, self.obtain(folders, tell)?)?.published_as(self.clone()))
    }

    #[cfg(feature = "fetch")]
    fn fetch(&self, path: &Path, tell: &mut dyn FnMut(Fetching)) -> Result<()> {
        use crate::checkpoint::fetch::{Failure, fetch};
        fetch(self, path, tell).map_err(|failure| match failure {
            Failure::Local(error) => error,
            Failure::Remote(reason) => self.by_hand(path, &reason),
        })
    }

    #[cfg(not(feature = "fetch"))]
    fn fetch(&self, path: &Path, _tell: &mut dyn FnMut(Fetching)) -> Result<()> {
        Err(self.by_hand(path, "this program was built without the feature `fetch`"))
    }

    fn by_hand(&self, path: &Path, reason: &str) -> Error {
        let known = match (&self.sha256, self.hub_file()) {
            (Some(hash), _) if hash.len() == 64 => format!("its sha256 is {hash}"),
            (Some(digits), _) => format!("its sha256 begins with {digits}"),
            (None, Some((repository, file))) => format!("{HUB}{repository}/blob/main/{file} shows its sha256"),
            (None, None) => "its sha256 is not known".into(),
        };
        let message = format!(
            "could not be fetched: {reason}\ndownload {} where there is a network, and put it at\n{}\n({known})",
            self.address(),
            path.display()
        );
        Error::checkpoint(path, message)
    }

    /// Why a file is not the published one; `None` if it is, or if nothing is known to compare it with.
    pub(in crate::checkpoint) fn flaw(&self, path: &Path) -> Option<String> {
        sums::flaw(path, self.sha256.as_deref())
    }
}
