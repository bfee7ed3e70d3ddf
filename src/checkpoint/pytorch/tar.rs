//! The layout before PyTorch 0.1.10: a tar archive of entries in which pickles alternate with numbers and values.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, BufReader},
    path::Path,
    sync::Mutex,
};

use ::tar::EntryType;

use super::{
    super::{
        Format,
        pickle::{Global, Id, Pickle, Value},
        stored::MAX_RANK,
    },
    layouts::{Layout, Places, check_machine},
    short,
    stream::Stream,
    values::Storages,
    view::{Kind, Read, View},
};
use crate::{Error, Result};

/// The entries, in the order in which each needs those before.
const ENTRIES: [&str; 4] = ["sys_info", "storages", "tensors", "pickle"];

/// Reads all but the values, which stay in the file, and what the pickles import.
pub(super) fn layout(path: &Path, file: File) -> Result<(std::result::Result<Layout, String>, BTreeSet<Global>)> {
    let entries = entries(path)?;
    let length = file.metadata().map_err(|error| Error::io(path, error))?.len();
    let mut tables = Tables::default();
    let mut read = || {
        for name in ENTRIES {
            let &(start, size) = entries.get(name).ok_or(format!("is a tar archive without its entry {name}"))?;
            let end = start.checked_add(size).filter(|end| *end <= length);
            let end = end.ok_or(format!("is cut off in its entry {name}: was the download interrupted?"))?;
            let mut stream = Stream::new(&file, start, end);
            let read = tables.read(name, &mut stream);
            tables.imports.append(&mut stream.imports);
            read.map_err(|error| format!("is damaged: entry {name} of the tar archive {error}"))?;
        }
        tables.root.take().ok_or_else(|| "has no pickle".into())
    };
    let pickle: std::result::Result<Pickle, String> = read();
    let Tables { places, tensors, imports, .. } = tables;
    let layout = pickle.map(|pickle| Layout {
        format: Format::PytorchTar,
        pickle,
        tensors: Some(tensors),
        storages: Storages::Plain(Mutex::new(file), places),
    });
    Ok((layout, imports))
}

/// Where each entry begins in the file, and its length.
fn entries(path: &Path) -> Result<HashMap<String, (u64, u64)>> {
    let damaged = |error: io::Error| {
        Error::checkpoint(path, format!("is a truncated or damaged tar archive ({error}): fetch it again"))
    };
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    let mut archive = ::tar::Archive::new(BufReader::new(file));
    let mut entries = HashMap::new();
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        // Its values do not lie one after the other.
        if entry.header().entry_type() == EntryType::GNUSparse {
            return Err(Error::checkpoint(path, "is a tar archive with sparse entries: refused"));
        }
        let name = entry.path().map_err(damaged)?.to_string_lossy().trim_start_matches("./").to_owned();
        entries.insert(name, (entry.raw_file_position(), entry.size()));
    }
    Ok(entries)
}

/// What the entries say.
#[derive(Default)]
struct Tables {
    imports: BTreeSet<Global>,
    /// What the storages hold, and how many elements.
    storages: HashMap<String, (Kind, usize)>,
    places: Places,
    tensors: HashMap<String, Read>,
    root: Option<Pickle>,
}

impl Tables {
    fn read(&mut self, name: &str, stream: &mut Stream<'_>) -> std::result::Result<(), String> {
        match name {
            "sys_info" => check_machine(&stream.pickle()?),
            "storages" => self.storages(stream),
            "tensors" => self.tensors(stream),
            _ => {
                self.root = Some(stream.pickle()?);
                Ok(())
            }
        }
    }

    /// A count, then of each storage key, place and type, its number of elements, and these; then a list of views, of
    /// each its key, the storage, the first element and how many.
    fn storages(&mut self, stream: &mut Stream<'_>) -> std::result::Result<(), String> {
        for _ in 0..count(stream)? {
            let (key, _, kind) = fields(&stream.pickle()?)?;
            let elements = stream.number()?;
            let (start, length) = (stream.position(), elements.checked_mul(kind.size()));
            stream.skip(length)?;
            self.places.insert(key.clone(), (start, stream.position() - start));
            self.storages.insert(key, (kind, elements));
        }
        let views = stream.pickle()?;
        for view in views.items(views.root) {
            let bad = || "has a view of a storage that cannot be".to_owned();
            let &[key, storage, first, elements] = views.items(*view) else { return Err(bad()) };
            let [Some(key), Some(storage)] = [key, storage].map(|id| views.name(id)) else { return Err(bad()) };
            let [Some(first), Some(elements)] = [first, elements].map(|id| views.number(id)) else { return Err(bad()) };
            let &(kind, whole) = self.storages.get(&storage).ok_or_else(bad)?;
            if first.checked_add(elements).is_none_or(|end| end > whole) {
                return Err(bad());
            }
            let &(start, _) = self.places.get(&storage).ok_or_else(bad)?;
            let place = (start + (first * kind.size()) as u64, (elements * kind.size()) as u64);
            self.places.insert(key.clone(), place);
            self.storages.insert(key, (kind, elements));
        }
        Ok(())
    }

    /// A count, then of each tensor key, storage and type, and in binary rank, padding, sizes, strides and offset.
    fn tensors(&mut self, stream: &mut Stream<'_>) -> std::result::Result<(), String> {
        for _ in 0..count(stream)? {
            let (key, storage, _) = fields(&stream.pickle()?)?;
            // The upper half of the eight bytes may be anything.
            let rank = stream.number_of_32_bits()?;
            if rank > MAX_RANK {
                return Err(format!("has a tensor of {rank} extents: refused"));
            }
            let mut numbers = || (0..rank).map(|_| stream.number()).collect::<std::result::Result<Vec<_>, _>>();
            let (shape, strides) = (numbers()?, numbers()?);
            let offset = stream.number()?;
            let unknown = || format!("has a tensor of a storage {storage} that is not there");
            let &(kind, elements) = self.storages.get(&storage).ok_or_else(unknown)?;
            let read = match kind {
                Kind::Of(dtype) => Ok(View { storage, dtype, offset, shape, strides }.check(elements)?),
                Kind::Unread(_, why) => Err(why),
                Kind::Untyped => Err("of no type, and not read"),
            };
            self.tensors.insert(key, read);
        }
        Ok(())
    }
}

fn count(stream: &mut Stream<'_>) -> std::result::Result<usize, String> {
    let count = stream.pickle()?;
    count.number(count.root).ok_or_else(|| "does not begin with a count".into())
}

/// A key, a place or another key, and what a storage or tensor class holds.
fn fields(pickle: &Pickle) -> std::result::Result<(String, String, Kind), String> {
    let bad = || "has a table that is not known".to_owned();
    let &[key, second, class] = pickle.items(pickle.root) else { return Err(bad()) };
    let Value::Class(class) = pickle.value(class) else { return Err(bad()) };
    let storage = class.name.replace("Tensor", "Storage");
    let kind = Kind::of_class(&storage).ok_or_else(|| format!("has a storage that is not known, {}", short(class)))?;
    let key_of = |id: Id| pickle.name(id).ok_or_else(bad);
    Ok((key_of(key)?, key_of(second)?, kind))
}
