//! `unfreeze convert`

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use unfreeze::{
    Error, Result,
    checkpoint::{
        BatchNormForm, CheckpointFile, Comparison, Conversion, ConvertOptions, Difference, FileDtype, Folded, Target,
        TensorSource, catalog::Interpolation, compare_networks, short_name,
    },
    learner::CancelToken,
    nn::Arch,
};

use super::{
    inspect::printable,
    interrupt,
    onnx_flags::OnnxFlags,
    options::{check_output, open_checkpoint, side},
};

/// As many tensors of a kind are named where others are only counted.
const FEW: usize = 3;

fn float(text: &str) -> Result<FileDtype, String> {
    match text.parse::<FileDtype>() {
        Ok(dtype) if dtype.is_float() => Ok(dtype),
        _ => Err("give f32, f16, bf16 or f64".into()),
    }
}

/// Red, green, blue.
fn channels(text: &str) -> Result<[f32; 3], String> {
    let values: Option<Vec<f32>> = text.split(',').map(|value| value.trim().parse().ok()).collect();
    values.and_then(|values| values.try_into().ok()).ok_or("give three numbers, for red, green and blue".into())
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// Tensors and metadata
    Safetensors,
    /// What torch.load(..., weights_only=True) reads
    Pth,
    /// A model file of this program, for predict and evaluate
    Model,
    /// For other runtimes: input `input` [N, 3, size, size], output `logits`, or `probabilities` with --softmax
    Onnx,
}

/// Both name these networks alike; the flag says what a reader expects.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Naming {
    Torchvision,
    Timm,
}

/// Convert a checkpoint to safetensors, PyTorch's .pth, a model file or ONNX, with torchvision's tensor names
///
/// Reads safetensors (a sharded checkpoint by its .index.json), PyTorch files (.pth, .pt, .bin, .tar, and fastai 0.7's
/// .h5), NumPy's .npz and ONNX files of ResNets, without executing anything in them. Wrappers such as state_dict and
/// prefixes such as module. are taken away; names of fastai, MMPretrain and CIFAR networks become torchvision's. The
/// architecture is told from the tensors.
#[derive(Args)]
pub struct Convert {
    /// Checkpoint to read
    input: PathBuf,
    /// File to write; may be left out with --dry-run or --check
    #[arg(required_unless_present_any = ["dry_run", "check"])]
    output: Option<PathBuf>,
    /// What to write [default: pth for .pth, .pt and .bin, onnx for .onnx, else safetensors]
    #[arg(long)]
    format: Option<Format>,
    /// Which weights of a training checkpoint to read, by their key in it, such as model_ema [default: the likeliest:
    /// state_dict, model, …]
    #[arg(long)]
    key: Option<String>,
    /// Whose tensor names to write; the two are the same for every network that they share
    #[arg(long, default_value = "torchvision")]
    names: Naming,
    /// Check that the checkpoint is of this architecture, names and shapes, its classifier included
    #[arg(long)]
    arch: Option<Arch>,
    /// Cast floating-point tensors: f32, f16, bf16 or f64; ONNX: f32 or f16 [default: as they are, ONNX f32]
    #[arg(long, value_parser = float)]
    dtype: Option<FileDtype>,
    /// Names of the classes of a model, one a line [default: their numbers]
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Side of the square that a model sees, in pixels [default: that of an ONNX file's input, or as the weights were
    /// published if the catalogue has them, else 224, or 32 for CIFAR networks]
    #[arg(long, value_name = "N", value_parser = side)]
    size: Option<usize>,
    /// Short side before the crop, in pixels [default: in proportion as published, else 256 for 224; the size itself
    /// for fastai's heads and CIFAR networks]
    #[arg(long, value_name = "N", value_parser = side)]
    resize: Option<usize>,
    /// Mean of a model's images per channel, of values from 0 to 1 [default: the file's (of ONNX what its graph
    /// computes), as published, or ImageNet's]
    #[arg(long, value_name = "R,G,B", value_parser = channels)]
    mean: Option<[f32; 3]>,
    /// Standard deviation per channel [default: as for the mean]
    #[arg(long, value_name = "R,G,B", value_parser = channels)]
    std: Option<[f32; 3]>,
    /// Print what would become of each tensor, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Compare with this file, tensor by tensor: what was written, or without OUTPUT what would be; exit status 1 if
    /// they differ by more than the rounding of their types
    #[arg(long, value_name = "REFERENCE", conflicts_with = "dry_run")]
    check: Option<PathBuf>,
    #[command(flatten)]
    onnx: OnnxFlags,
}

impl Convert {
    pub fn run(self) -> Result<()> {
        let target = self.target()?;
        let options = ConvertOptions {
            target,
            dtype: self.dtype,
            arch: self.arch,
            classes: self.classes.as_deref().map(read_classes).transpose()?,
            size: self.size,
            resize: self.resize,
            mean: self.mean,
            std: self.std,
        };
        let file = open_checkpoint(&self.input, self.key.as_deref())?;
        let format = file.format;
        let mut conversion = Conversion::plan(file, &options)?;
        errln!("{}: {format}, {}", self.input.display(), describe(&conversion));
        self.remark(&conversion);
        if self.dry_run {
            print_plan(&conversion, target, self.dtype);
            return Ok(());
        }
        // Opened before it could be written over.
        let expected = match &self.check {
            Some(reference) => {
                let file = CheckpointFile::open(reference)?;
                self.check_reference(reference, &file)?;
                Some((reference, file.normalised()?))
            }
            None => None,
        };
        if let Some(output) = &self.output {
            let token = CancelToken::default();
            interrupt::cancels(token.clone())?;
            conversion.cancelled_by(&token);
            let written = conversion.write(output)?;
            for (name, what) in written.flawed.iter().take(FEW) {
                errln!("note: {} has {what}: no network computes with that", short_name(name));
            }
            if written.flawed.len() > FEW {
                errln!("note: and {} more with such values", written.flawed.len() - FEW);
            }
            errln!("{}: {} tensors", output.display(), written.tensors);
        }
        let Some((reference, expected)) = expected else { return Ok(()) };
        let comparison = match &self.output {
            Some(output) => compare_networks(&CheckpointFile::open(output)?.normalised()?, &expected)?,
            None => compare_networks(&conversion.into(), &expected)?,
        };
        print_comparison(&comparison);
        if comparison.agrees() {
            return Ok(());
        }
        let compared = self.output.as_deref().unwrap_or(&self.input);
        Err(Error::checkpoint(compared, format!("differs from {}", reference.display())))
    }

    /// Whether the reference stays what it is, with all its parts.
    fn check_reference(&self, reference: &Path, file: &CheckpointFile) -> Result<()> {
        let place = |path: &Path| fs::canonicalize(path).ok();
        match self.output.as_deref().and_then(place) {
            Some(output) if file.files()?.iter().any(|part| place(part).as_ref() == Some(&output)) => {
                Err(Error::setting("--check", format!("{} would be written over; give another", reference.display())))
            }
            _ => Ok(()),
        }
    }

    /// What to write, checked before any work.
    fn target(&self) -> Result<Target> {
        let extension = self.output.as_deref().and_then(Path::extension).and_then(|end| end.to_str());
        let format = match (self.format, extension) {
            (Some(format), _) => format,
            (None, Some("pth" | "pt" | "bin")) => Format::Pth,
            (None, Some("onnx")) => Format::Onnx,
            (None, Some("safetensors")) => Format::Safetensors,
            (None, _) => match &self.output {
                Some(output) => {
                    let message = format!(
                        "'{}' should end in .safetensors, .pth, .pt, .bin or .onnx, which says what to write",
                        output.display()
                    );
                    return Err(Error::setting("OUTPUT", message));
                }
                None => Format::Safetensors,
            },
        };
        if format != Format::Onnx {
            self.onnx.expect_none()?;
        }
        if !matches!(format, Format::Model | Format::Onnx) {
            for (flag, given) in [
                ("--classes", self.classes.is_some()),
                ("--size", self.size.is_some()),
                ("--resize", self.resize.is_some()),
                ("--mean", self.mean.is_some()),
                ("--std", self.std.is_some()),
            ] {
                if given {
                    return Err(Error::setting(flag, "is for a model alone, or ONNX; use it with --format model"));
                }
            }
        }
        if let Some(output) = self.output.as_deref().filter(|_| !self.dry_run) {
            let ends = match format {
                Format::Pth => extension.filter(|end| ["pt", "bin"].contains(end)).unwrap_or("pth"),
                Format::Safetensors | Format::Model => "safetensors",
                Format::Onnx => "onnx",
            };
            check_output("OUTPUT", output, ends)?;
        }
        Ok(match format {
            Format::Safetensors => Target::Safetensors,
            Format::Pth => Target::Pth,
            Format::Model => Target::Model,
            Format::Onnx => Target::Onnx(self.onnx.options()),
        })
    }

    /// Says what a user would not expect.
    fn remark(&self, conversion: &Conversion) {
        const LISTED: usize = 8;
        if self.names == Naming::Timm
            && let Some(arch) = conversion.arch
        {
            errln!("note: timm's names of {arch} are torchvision's");
        }
        if conversion.arch.is_none() {
            let like = conversion.likeness.as_ref().map_or(String::new(), |like| format!("; {like}"));
            errln!("note: the tensors are converted all the same, but make no model{like}");
        }
        for (name, near) in conversion.unknown.iter().take(LISTED) {
            let near = near.as_ref().map_or(String::new(), |near| format!("; the nearest that is known is {near}"));
            errln!("note: {} is not known, and kept as it is{near}", short_name(name));
        }
        if conversion.unknown.len() > LISTED {
            errln!("note: and {} more that are not known", conversion.unknown.len() - LISTED);
        }
        conversion.notes.iter().for_each(|note| errln!("note: {}", printable(note)));
        match conversion.dropped.len() {
            _ if self.dry_run => {}
            count if count > FEW => errln!("note: {count} tensors are left out; --dry-run lists them"),
            _ => conversion
                .dropped
                .iter()
                .for_each(|(name, why)| errln!("note: {} is left out: {why}", short_name(name))),
        }
        if let Some(transforms) = &conversion.transforms {
            let why = match conversion.published {
                Some(entry) if self.size.is_some() || self.resize.is_some() => {
                    let published = &entry.transforms;
                    format!("; {} was published with {} and {}", entry.name, published.resize, published.crop)
                }
                Some(entry) => format!(", as {} was published", entry.name),
                None => "; --size and --resize change that".into(),
            };
            errln!("note: images are resized to {} and cropped to {}{why}", transforms.resize, transforms.size);
            if conversion.published.is_some_and(|entry| entry.transforms.interpolation == Interpolation::Bicubic) {
                errln!("note: it was published with bicubic resizing; this program's is bilinear");
            }
        }
        if self.format == Some(Format::Model) && self.classes.is_none() {
            errln!("note: classes have the names that the file gives, else numbers; --classes FILE names them");
        }
    }
}

/// One name a line.
fn read_classes(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// The network, and whose names it has.
fn describe(conversion: &Conversion) -> String {
    let arch = conversion.arch.map_or("of no known architecture".into(), |arch| format!("{arch} by names and shapes"));
    let names = conversion.convention.map_or(String::new(), |names| format!(", names of {names}"));
    let prefixes = match conversion.prefixes.concat() {
        prefixes if prefixes.is_empty() => String::new(),
        prefixes => format!(", without {prefixes}"),
    };
    arch + &names + &prefixes
}

/// What would become of each tensor: its old name, where that is another, the new one, type and extents.
fn print_plan(conversion: &Conversion, target: Target, asked: Option<FileDtype>) {
    let (format, onnx) = match target {
        Target::Pth => ("a PyTorch file".to_owned(), None),
        Target::Model => ("a model file".to_owned(), None),
        Target::Onnx(options) => {
            let dtype = asked.unwrap_or(FileDtype::F32);
            let folded = match options.batchnorm {
                BatchNormForm::Fold => ", batchnorm folded into the layers beside it",
                BatchNormForm::Keep => "",
            };
            (format!("an ONNX file of {dtype}{folded}"), Some(dtype))
        }
        _ => ("safetensors".to_owned(), None),
    };
    for (to, tensor) in &conversion.tensors {
        let Some(origin) = conversion.origins.get(to) else { continue };
        let name = match origin.from.as_deref() {
            Some(from) if from == to => short_name(to).into_owned(),
            from => format!("{} -> {}", from.map_or("(zeros)".into(), short_name), short_name(to)),
        };
        let dtype = match (origin.dtype, onnx.unwrap_or(tensor.dtype())) {
            (from, to) if from == to => to.to_string(),
            (from, to) => format!("{from} -> {to}"),
        };
        outln!("{name}  {dtype} {:?}", tensor.shape());
    }
    for (name, why) in &conversion.dropped {
        outln!("{}  left out: {why}", short_name(name));
    }
    let (written, dropped) = (conversion.tensors.len(), conversion.dropped.len());
    outln!("{written} tensors would go to {format}, {dropped} be left out");
}

fn print_comparison(found: &Comparison) {
    if let Some(folded) = found.folded {
        let (folded, other) = match folded {
            Folded::Compared => ("this file", "the reference"),
            Folded::Reference => ("the reference", "this file"),
        };
        errln!("note: {folded} has batchnorm folded into the layers beside it; {other} is compared folded too");
    }
    for (name, difference) in &found.differing {
        match difference {
            Difference::Shape(here, there) => outln!("{name}: {here:?}, in the reference {there:?}"),
            Difference::Values { absolute, relative, rounding } => {
                let why = if *rounding { ", rounding" } else { "" };
                outln!("{name}: differs by up to {absolute:.3e}, relatively {relative:.3e}{why}");
            }
        }
    }
    found.missing.iter().for_each(|name| outln!("{name}: only in the reference"));
    found.extra.iter().for_each(|name| outln!("{name}: not in the reference"));
    let counters = match found.counters {
        0 => String::new(),
        counters => format!("; {counters} counters num_batches_tracked that only one has do not count"),
    };
    let (differing, missing, extra) = (found.differing.len(), found.missing.len(), found.extra.len());
    outln!("{} tensors equal, {differing} different, {missing} missing, {extra} extra{counters}", found.equal);
}
