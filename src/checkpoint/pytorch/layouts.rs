//! The layouts of `torch.save`: the zip archive of PyTorch 1.6 and later, and the pickle stream before; and a single
//! pickle. That of the first versions is in `tar`.

use std::{collections::HashMap, fs::File, io::Read, path::Path, sync::Mutex};

use zip::ZipReadOptions;

use super::{
    super::{
        CheckpointFile, Format, guard,
        guard::Archive,
        pickle::{self, End, MAX_BYTES, Pickle, Value},
    },
    open, short,
    stream::{CUT, Stream, too_long},
    tar,
    values::Storages,
    view::{self, Read as TensorRead, Storage},
};
use crate::{Error, Result};

/// What a file of any layout comes to.
pub(super) struct Layout {
    pub format: Format,
    pub pickle: Pickle,
    /// The tensors that the pickle of a tar archive refers to.
    pub tensors: Option<HashMap<String, TensorRead>>,
    pub storages: Storages,
}

/// What is said of files of big-endian machines.
const BIG_ENDIAN: &str = "was written on a big-endian machine, which is not read: load and save it again on another";

/// The number that the pickle stream begins with, as protocol 2 and later write it, and as those before.
const MAGIC: (&[u8], &[u8]) = (b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", b"119547037146038801333356");

/// How far from the start it is at most.
const MAGIC_WITHIN: usize = 64;

/// The version of the pickle stream.
const STREAM_VERSION: usize = 1001;

/// Opens an archive that has passed [`guard::open_zip`].
pub(in super::super) fn open_zip(path: &Path, mut archive: Archive, key: Option<&str>) -> Result<CheckpointFile> {
    guard::check_unpacked(path, &archive)?;
    let pickle = zipped_pickle(&mut archive);
    let imports = pickle.as_ref().map_or(Default::default(), |(pickle, _)| pickle.imports.clone());
    let layout = pickle.and_then(|(pickle, root)| {
        whole(&pickle)?;
        if entry(&mut archive, &format!("{root}byteorder"))?.is_some_and(|order| order.trim_ascii() == b"big") {
            return Err(BIG_ENDIAN.into());
        }
        let storages = Storages::Zip(Mutex::new(archive), format!("{root}data/"));
        Ok(Layout { format: Format::PytorchZip, pickle, tensors: None, storages })
    });
    open(path, &imports, layout, key)
}

/// The pickle of an archive, up to where it ends or is damaged, and what the names of its other entries begin with.
fn zipped_pickle(archive: &mut Archive) -> std::result::Result<(Pickle, String), String> {
    let names = archive.file_names().flatten();
    let roots = names.filter_map(|name| name.strip_suffix("data.pkl").map(str::to_owned));
    let mut roots = roots.filter(|root| root.is_empty() || root.ends_with('/'));
    let root = roots.next().ok_or("is a zip archive of something else: a PyTorch checkpoint has an entry data.pkl")?;
    if let Some(other) = roots.next() {
        let (root, other) = (short(&root), short(&other));
        return Err(format!("is a zip archive of two pickles, {root}data.pkl and {other}data.pkl: refused"));
    }
    drop(roots);
    let bytes = entry(archive, &format!("{root}data.pkl"))?.ok_or(CUT)?;
    if bytes.len() > MAX_BYTES {
        return Err(too_long());
    }
    Ok((pickle::parse(&bytes)?, root))
}

/// The first bytes of an entry, up to one more than a pickle may have.
fn entry(archive: &mut Archive, name: &str) -> std::result::Result<Option<Vec<u8>>, String> {
    let damaged = |error: &dyn std::fmt::Display| {
        format!("is a truncated or damaged zip archive ({error}): was the download interrupted?")
    };
    let Some(index) = archive.index_for_name(name) else { return Ok(None) };
    // `torch.save` may leave the checksum out.
    let checksum = archive.by_index_data(index).map_err(|error| damaged(&error))?.crc32();
    let options = ZipReadOptions::new().ignore_crc32(checksum == 0);
    let entry = archive.by_index_with_options(index, options).map_err(|error| damaged(&error))?;
    let mut bytes = Vec::new();
    entry.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| damaged(&error))?;
    Ok(Some(bytes))
}

/// Opens a file of the other layouts.
pub(in super::super) fn open_pickles(path: &Path, head: &[u8], key: Option<&str>) -> Result<CheckpointFile> {
    let io = |error| Error::io(path, error);
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    if head.get(257..262) == Some(b"ustar") {
        let (layout, imports) = tar::layout(path, file)?;
        return open(path, &imports, layout, key);
    }
    let mut stream = Stream::new(&file, 0, length);
    let head = &head[..head.len().min(MAGIC_WITHIN)];
    let starts = |magic: &[u8]| head.windows(magic.len()).any(|bytes| bytes == magic);
    let parts = if starts(MAGIC.0) || starts(MAGIC.1) {
        legacy(&mut stream)
    } else {
        stream.pickle().map(|pickle| (pickle, HashMap::new()))
    };
    let imports = std::mem::take(&mut stream.imports);
    let layout = parts.map(|(pickle, places)| {
        let storages = Storages::Plain(Mutex::new(file), places);
        Layout { format: Format::PytorchLegacy, pickle, tensors: None, storages }
    });
    open(path, &imports, layout, key)
}

/// First byte and length of storages, by key.
pub(super) type Places = HashMap<String, (u64, u64)>;

/// The number, the version, the machine, the pickle, the keys of storages; then of each storage how many elements it
/// has, and these.
fn legacy(stream: &mut Stream<'_>) -> std::result::Result<(Pickle, Places), String> {
    stream.pickle()?;
    let version = stream.pickle()?;
    if version.number(version.root) != Some(STREAM_VERSION) {
        return Err(format!("is of a version of PyTorch's layout that is not known, not {STREAM_VERSION}"));
    }
    check_machine(&stream.pickle()?)?;
    let pickle = stream.pickle()?;
    let keys = stream.pickle()?;

    let mut declared: HashMap<String, Storage> = HashMap::new();
    for value in pickle.values() {
        let Value::Outside(outside) = value else { continue };
        // Beside the classes of modules.
        if pickle.items(*outside).first().is_some_and(|tag| pickle.is_text(*tag, "module")) {
            continue;
        }
        let storage = view::storage(&pickle, *outside)?;
        let size = |storage: &Storage| (storage.elements, storage.kind.size());
        if let Some(other) = declared.get(&storage.key).filter(|other| size(other) != size(&storage)) {
            return Err(format!("gives storage {} two sizes: refused", other.key));
        }
        declared.insert(storage.key.clone(), storage);
    }
    let mut places = Places::new();
    for key in keys.items(keys.root) {
        let key = keys.name(*key).unwrap_or_default();
        let storage = declared.get(&key).ok_or_else(|| format!("has a storage {key} of a size that nothing tells"))?;
        let elements = stream.number()?;
        if elements != storage.elements {
            let says = storage.elements;
            return Err(format!("is damaged: its storage {key} has {elements} elements, but its pickle says {says}"));
        }
        let (start, length) = (stream.position(), elements.checked_mul(storage.kind.size()));
        stream.skip(length)?;
        places.insert(key, (start, stream.position() - start));
    }
    Ok((pickle, places))
}

/// Refuses values whose bytes are in the other order.
pub(super) fn check_machine(system: &Pickle) -> std::result::Result<(), String> {
    match system.get(system.root, "little_endian").map(|value| system.value(value)) {
        Some(Value::Bool(true)) => Ok(()),
        Some(Value::Bool(false)) => Err(BIG_ENDIAN.into()),
        _ => Err("does not say on which machine it was written: is it damaged?".into()),
    }
}

/// Refuses a pickle that is not there whole.
fn whole(pickle: &Pickle) -> std::result::Result<(), String> {
    match pickle.end {
        End::Whole => Ok(()),
        End::Cut => Err(CUT.into()),
        End::Damaged => Err("has a damaged pickle: was the download interrupted?".into()),
    }
}
