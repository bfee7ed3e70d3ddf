//! What is done with a file of unknown origin: all that a user might. The fuzz targets call it with their bytes, and
//! `tests/checkpoints/fuzzed.rs` with those of the corpora. An error is as good an answer as a value; what must not
//! happen is a panic, a hang, memory that the file's size does not explain, or a copy that differs from its source.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
};

use tempfile::TempDir;
use unfreeze::{
    Device,
    checkpoint::{
        BatchNormForm, CheckpointFile, Conversion, ConvertOptions, FileDtype, FileTensor, Format, OnnxOptions,
        StoredTensor, Target, TensorSource, TensorStats, Weights, catalog, collect, compare, write_safetensors,
    },
    data::RgbImage,
    learner::Classifier,
    nn::{Arch, HeadSpec, Model},
};

/// Values are read and copied up to so many bytes in all, so that each file takes little time.
const MAX_VALUES: u64 = 1 << 20;

/// Length of the file beside an ONNX file, of nothing but zeros, which take no space.
const WEIGHTS: u64 = 64 << 20;

/// Larger images take longer than is of use here.
const MAX_SIZE: usize = 64;

/// Does with `bytes` what the target of this name is for.
pub fn run(target: &str, bytes: &[u8]) {
    thread_local!(static FOLDER: TempDir = folder());
    FOLDER.with(|folder| match target {
        "safetensors" => checkpoint(folder.path(), "model.safetensors", bytes),
        "index" => checkpoint(folder.path(), "model.safetensors.index.json", bytes),
        "pytorch" => checkpoint(folder.path(), "model.pth", bytes),
        "npz" => checkpoint(folder.path(), "model.npz", bytes),
        "onnx" => checkpoint(folder.path(), "model.onnx", bytes),
        "model_file" => model_file(folder.path(), bytes),
        "catalog" => catalogue(folder.path(), bytes),
        other => panic!("there is no target {other}"),
    });
}

/// A folder with the files that others may name: shards, and values of ONNX tensors.
fn folder() -> TempDir {
    // In memory where there is such a folder: what is written is synced.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder");
    let shard = |name: &str, tensors: &[(&str, &[usize])]| {
        let zeros =
            |shape: &[usize]| FileTensor::from_f32(shape.to_vec(), vec![0.0; shape.iter().product()]).expect("fits");
        let tensors = tensors.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))).collect();
        write_safetensors(folder.path().join(name), &tensors, &BTreeMap::new()).expect("writes");
    };
    shard("1.safetensors", &[("conv1.weight", &[16, 3, 3, 3]), ("bn1.weight", &[16])]);
    shard("2.safetensors", &[("fc.weight", &[10, 64]), ("fc.bias", &[10])]);
    let weights = File::create(folder.path().join("weights.data")).expect("creates");
    weights.set_len(WEIGHTS).expect("grows");
    folder
}

fn device() -> Device {
    Device::cpu(1).expect("a processor")
}

/// A checkpoint: inspects, compares and converts it, and loads it as weights.
fn checkpoint(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("writes");
    let Ok(file) = CheckpointFile::open(&path) else { return };

    let size = |tensor: &StoredTensor| (tensor.elements() as u64).saturating_mul(tensor.dtype().size() as u64);
    let declared = file.tensors.values().map(size).fold(0, u64::saturating_add);
    // What the readers allow; those of values in other files go by their size.
    let (ratio, slack) = if file.format == Format::Npz { (64, 64 << 20) } else { (8, 1 << 20) };
    let beside = if matches!(file.format, Format::Onnx | Format::Sharded) { WEIGHTS } else { 0 };
    let length = bytes.len() as u64 + beside;
    assert!(declared <= ratio * length + slack, "{declared} bytes of tensors in {length}");

    // What the name of a tensor begins with is a key, that of one which was left out above all.
    let mut names = file.left_out.iter().map(|(name, _)| name).chain(file.tensors.keys());
    if let Some((key, _)) = names.find_map(|name| name.rsplit_once('.'))
        && let Ok(part) = CheckpointFile::open_key(&path, key)
    {
        assert!(!part.tensors.is_empty(), "nothing under {key}");
    }

    let Ok(plan) = Conversion::plan(file.clone(), &ConvertOptions::default()) else { return };
    if declared > MAX_VALUES {
        return;
    }
    for tensor in file.tensors.values() {
        if let Ok(values) = tensor.read() {
            assert_eq!((values.dtype, values.shape.as_slice()), (tensor.dtype(), tensor.shape()));
            assert_eq!(values.bytes().len() as u64, size(tensor));
            TensorStats::of(&values);
        }
    }
    if let Ok(comparison) = compare(&file.tensors, &file.tensors) {
        assert_eq!(comparison.equal, file.tensors.len(), "differs from itself: {comparison:?}");
    }
    // One thing more, that the content chooses, so that none takes long.
    match bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) % 6 {
        0 => copy(&plan, &folder.join("copy.safetensors")),
        1 => convert(&file, folder, "copy.pth", Target::Pth, None),
        2 => convert(&file, folder, "half.safetensors", Target::Safetensors, Some(FileDtype::F16)),
        3 => convert(&file, folder, "model.safetensors", Target::Model, None),
        4 => {
            let batchnorm = if bytes.len().is_multiple_of(2) { BatchNormForm::Fold } else { BatchNormForm::Keep };
            let options = OnnxOptions { batchnorm, ..OnnxOptions::default() };
            convert(&file, folder, "copy.onnx", Target::Onnx(options), None);
        }
        _ => {
            if let Ok(weights) = Weights::file(&path) {
                weights.normalisation();
                let _ = weights.with_classifier(&device());
            }
        }
    }
}

fn convert(file: &CheckpointFile, folder: &Path, name: &str, target: Target, dtype: Option<FileDtype>) {
    let options = ConvertOptions { target, dtype, ..ConvertOptions::default() };
    if let Ok(plan) = Conversion::plan(file.clone(), &options) {
        copy(&plan, &folder.join(name));
    }
}

/// Writes what is planned, which then reads back as it was.
fn copy(plan: &Conversion, path: &Path) {
    if plan.write(path).is_err() {
        return;
    }
    let copy = CheckpointFile::open(path).expect("reads its own file");
    // Folding changes values, and ONNX has no counters.
    if copy.format != Format::Onnx {
        let comparison = compare(&copy.tensors, &plan.tensors).expect("reads both");
        assert_eq!(comparison.equal, plan.tensors.len(), "the copy differs: {comparison:?}");
    }
    fs::remove_file(path).expect("removes");
}

/// Metadata of a model file, as `inspect` prints them: `key: value` in lines. The tensors are those of small networks.
fn model_file(folder: &Path, bytes: &[u8]) {
    thread_local!(static MODELS: [BTreeMap<String, FileTensor>; 2] = models());
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    let metadata: BTreeMap<String, String> = lines.map(|(key, value)| (key.into(), value.into())).collect();
    let path = folder.join("model.safetensors");
    let fastai = metadata.get("head").is_some_and(|head| head.contains("hidden"));
    MODELS.with(|models| write_safetensors(&path, &models[usize::from(fastai)], &metadata).expect("writes"));
    let Ok(classifier) = Classifier::load(&path, device()) else { return };
    if classifier.transforms().resize <= MAX_SIZE {
        let prediction = classifier.predict(&RgbImage::new(MAX_SIZE as u32, 48)).expect("a loaded model predicts");
        assert_eq!(prediction.probabilities.len(), 2);
    }
}

/// The tensors of a linear classifier, and of one with fastai's head.
fn models() -> [BTreeMap<String, FileTensor>; 2] {
    [HeadSpec::Linear, HeadSpec::fastai(vec![4])].map(|head| {
        collect(&Model::new(Arch::ResNet8, head, 2, 0, &device()).expect("a network")).expect("its tensors")
    })
}

fn catalogue(folder: &Path, bytes: &[u8]) {
    let Ok(entries) = std::str::from_utf8(bytes).map_err(drop).and_then(|text| catalog::parse(text).map_err(drop))
    else {
        return;
    };
    let at = |name: &str| folder.join(name);
    let folders = catalog::Folders { own: at("own"), torch: Some(at("torch")), hub: Some(at("hub")) };
    for entry in entries {
        entry.address();
        entry.file_name();
        assert_eq!(entry.find(&folders), None, "a file that is not there is found");
    }
}
