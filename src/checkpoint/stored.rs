//! A checkpoint file that is open: what its tensors are, and their values one at a time.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Checkpoint, FileDtype, FileTensor, Format,
    names::{bare, listed, short_name},
    onnx, reading, sharded,
};
use crate::{Error, Result};

/// The most extents of a tensor, those that NumPy and PyTorch allow. A view that is not contiguous takes time for each
/// of them at each of its elements, and a file may claim thousands, of 1.
pub(super) const MAX_RANK: usize = 64;

/// What a writer asks of a tensor, be it in memory or in a file.
pub trait TensorSource {
    /// The element type.
    fn dtype(&self) -> FileDtype;

    /// The extents, outermost first; empty for a scalar.
    fn shape(&self) -> &[usize];

    /// The tensor with its values, read from its file if it is not in memory.
    ///
    /// # Errors
    /// Those of reading the file.
    fn load(&self) -> Result<Cow<'_, FileTensor>>;
}

impl TensorSource for FileTensor {
    fn dtype(&self) -> FileDtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn load(&self) -> Result<Cow<'_, FileTensor>> {
        Ok(Cow::Borrowed(self))
    }
}

/// A tensor whose values are in a file until they are asked for. Clones share the open file.
#[derive(Clone)]
pub struct StoredTensor {
    dtype: FileDtype,
    shape: Vec<usize>,
    read: Arc<dyn Fn() -> Result<FileTensor> + Send + Sync>,
}

impl StoredTensor {
    /// A tensor that `read` reads.
    pub(super) fn new(
        dtype: FileDtype,
        shape: Vec<usize>,
        read: impl Fn() -> Result<FileTensor> + Send + Sync + 'static,
    ) -> Self {
        Self { dtype, shape, read: Arc::new(read) }
    }

    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |product, &extent| product.saturating_mul(extent))
    }

    /// The tensor with its values. Nothing is kept: each call reads the file.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Checkpoint`] if the file cannot be read, or was changed since it was opened.
    pub fn read(&self) -> Result<FileTensor> {
        (self.read)()
    }
}

impl TensorSource for StoredTensor {
    fn dtype(&self) -> FileDtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn load(&self) -> Result<Cow<'_, FileTensor>> {
        self.read().map(Cow::Owned)
    }
}

impl fmt::Debug for StoredTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredTensor({} {:?})", self.dtype, self.shape)
    }
}

/// A checkpoint file of which only the names, types and shapes have been read.
///
/// ```no_run
/// use unfreeze::checkpoint::{CheckpointFile, TensorSource};
///
/// for (name, tensor) in CheckpointFile::open("resnet34.pth")?.tensors {
///     println!("{name}: {} {:?}", tensor.dtype(), tensor.shape());
/// }
/// # Ok::<(), unfreeze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CheckpointFile {
    /// The file.
    pub path: PathBuf,
    /// Its layout.
    pub format: Format,
    /// The tensors under the file's names.
    pub tensors: BTreeMap<String, StoredTensor>,
    /// The strings stored beside the tensors of a safetensors or ONNX file; `mean` and `std` also where its graph
    /// normalises images by them.
    pub metadata: BTreeMap<String, String>,
    /// What the file holds beside these tensors, by its path in the file, and why it is left out: an optimizer's
    /// tensors, arrays of text, tensors of types that are not read, …
    pub left_out: Vec<(String, &'static str)>,
    /// What else of the file is left out, in words: what an ONNX graph computes beside the network, or where a training
    /// checkpoint has other weights than those that are taken.
    pub notes: Vec<String>,
    /// What an ONNX file does to images before its network.
    pub(super) input: onnx::Input,
    /// Whether the file has anything that is neither in `tensors` nor in `metadata`: an optimizer's state, the number
    /// of the epoch, other weights, …
    pub partial: bool,
}

impl CheckpointFile {
    /// Opens a checkpoint, telling its format from its content. A training checkpoint's wrapper (`state_dict`,
    /// `model`, …) is unwrapped: tensors beside it are left out. Of a whole module (`torch.save(model)`) what its
    /// `state_dict()` has is read. Whatever is no tensor (epoch, settings, …) is passed over.
    ///
    /// Tensors of a type that [`FileDtype`] has not (complex, float8, quantised, sparse) are left out too; where a
    /// network needs one of them, an error says so.
    ///
    /// A file may come from anywhere. It is refused if two of its tensors have one name, if its tensors take more than
    /// a few times its size (in NumPy's compressed archives 64 times and 64 MiB), or if its pickle has more than 16
    /// MiB or names a function that runs code. The last only tells what the file is: what a pickle asks to call is
    /// never called.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Checkpoint`] if it is damaged, hostile or no checkpoint.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_at(path.as_ref(), None)
    }

    /// As [`CheckpointFile::open`], of a file that has several sets of weights those under `key`: the dotted path of a
    /// dictionary, such as `model_ema`, or in formats without dictionaries what names begin with.
    ///
    /// # Errors
    /// Those of [`CheckpointFile::open`]; [`Error::Checkpoint`] listing the keys that there are if this one is not.
    pub fn open_key(path: impl AsRef<Path>, key: &str) -> Result<Self> {
        Self::open_at(path.as_ref(), Some(key))
    }

    fn open_at(path: &Path, key: Option<&str>) -> Result<Self> {
        let file = reading::open(path, key)?;
        if file.tensors.is_empty() {
            let others: Vec<String> = file.left_out.iter().map(explained).collect();
            return Err(Error::checkpoint(
                path,
                match others.is_empty() {
                    true => "holds no tensors".into(),
                    false => format!("holds no tensors that are read: {}", listed(&others)),
                },
            ));
        }
        if let Some((name, tensor)) = file.tensors.iter().find(|(_, tensor)| tensor.shape.len() > MAX_RANK) {
            let rank = tensor.shape.len();
            return Err(Error::checkpoint(path, format!("has a tensor of {rank} extents, {name}: refused")));
        }
        Ok(file)
    }

    /// The same with the tensors alone whose names begin with `key` and a dot, without these.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] listing the keys that there are if there is none.
    pub(super) fn at_key(mut self, key: &str) -> Result<Self> {
        check_key(&self.path, key, self.tensors.keys())?;
        let below = |name: &str| name.strip_prefix(key).and_then(|rest| rest.strip_prefix('.')).map(str::to_owned);
        for entry in &mut self.left_out {
            *entry = below(&entry.0).map_or_else(|| (entry.0.clone(), BESIDE), |rest| (rest, entry.1));
        }
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            match below(&name) {
                Some(rest) => drop(self.tensors.insert(rest, tensor)),
                None => self.left_out.push((name, BESIDE)),
            }
        }
        self.partial |= !self.left_out.is_empty();
        Ok(self)
    }

    /// Notes which set of weights was taken, that under `taken` (with a dot at its end), where the file holds others. A
    /// set counts if half of the names that were taken are there too: not a classifier, nor an optimizer's state.
    pub(super) fn note_other_sets(&mut self, taken: &str) {
        let known: BTreeSet<_> = self.tensors.keys().map(|name| bare(name)).collect();
        let mut sets = BTreeMap::<&str, usize>::new();
        for (name, _) in self.left_out.iter().filter(|(_, why)| *why == BESIDE) {
            let key = beside(name, taken);
            if name.get(key.len() + 1..).is_some_and(|rest| known.contains(bare(rest))) {
                *sets.entry(key).or_default() += 1;
            }
        }
        sets.retain(|_, count| 2 * *count >= self.tensors.len());
        let Some((first, _)) = sets.first_key_value() else { return };
        let described = |key: &&str| {
            let is_averaged = key.split(['.', '_']).any(|word| matches!(word, "ema" | "swa" | "averaged"));
            format!("{}{}", short_name(key), if is_averaged { " (averaged, by its name)" } else { "" })
        };
        let others: Vec<String> = sets.keys().map(described).collect();
        self.notes.push(format!(
            "the weights under {} are taken; the file also holds {}: --key {} takes {}",
            short_name(taken.trim_end_matches('.')),
            listed(&others),
            short_name(first),
            if others.len() == 1 { "those" } else { "the first of these" }
        ));
    }

    /// The files that it is made of: the file itself, the shards that an index names, and where the values of an ONNX
    /// file are.
    ///
    /// # Errors
    /// As [`CheckpointFile::open`], which has read them before.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = vec![self.path.clone()];
        match self.format {
            Format::Sharded => files.extend(sharded::shards(&self.path)?),
            Format::Onnx => files.extend(onnx::value_files(&self.path)?),
            _ => {}
        }
        Ok(files)
    }

    /// Reads all values.
    ///
    /// # Errors
    /// Those of [`StoredTensor::read`].
    pub fn load(self) -> Result<Checkpoint> {
        let Self { path, format, tensors, metadata, left_out, .. } = self;
        let tensors =
            tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.read()?))).collect::<Result<BTreeMap<_, _>>>()?;
        Ok(Checkpoint { path, format, tensors, metadata, left_out })
    }
}

/// What is left out, and why, in words.
pub(super) fn explained((name, why): &(String, &'static str)) -> String {
    format!("{} is {why}", short_name(name))
}

/// Why tensors that are not those of the network are left out.
pub(super) const BESIDE: &str = "stored beside the weights";

/// The dictionary that holds `name` and lies beside those on the way to `taken`.
fn beside<'a>(name: &'a str, taken: &str) -> &'a str {
    let mut shared = 0;
    for segment in taken.split_inclusive('.') {
        if !name[shared..].starts_with(segment) {
            break;
        }
        shared += segment.len();
    }
    name[shared..].split_once('.').map_or(name, |(key, _)| &name[..shared + key.len()])
}

/// Whether some of `names` begin with `key` and a dot.
///
/// # Errors
/// [`Error::Checkpoint`] listing what names begin with if none does.
pub(super) fn check_key<'a>(path: &Path, key: &str, names: impl Iterator<Item = &'a String> + Clone) -> Result<()> {
    let is_below = |name: &String| name.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
    if names.clone().any(is_below) {
        return Ok(());
    }
    let keys: BTreeSet<&str> = names.filter_map(|name| name.split_once('.')).map(|(first, _)| first).collect();
    let keys: Vec<String> = keys.into_iter().map(|key| short_name(key).into_owned()).collect();
    let there = if keys.is_empty() { "there are no keys".into() } else { format!("there are {}", listed(&keys)) };
    Err(Error::checkpoint(path, format!("has no tensors under the key {}; {there}", short_name(key))))
}
