//! Whether two checkpoints hold the same values, as far as their types can tell.

use std::collections::BTreeMap;

use super::{CheckpointFile, FileDtype, FileTensor, TensorSource, architecture::COUNTER, onnx::Foldable};
use crate::Result;

/// How one tensor differs between two checkpoints.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// The extents differ: this one's, and the reference's.
    Shape(Vec<usize>, Vec<usize>),
    /// Values differ.
    Values {
        /// The largest absolute difference; infinite where one of two values is no number.
        absolute: f64,
        /// The largest difference as a share of the larger of the two values.
        relative: f64,
        /// Whether every difference is at most what rounding to the narrower of the two types explains.
        rounding: bool,
    },
}

/// What [`compare`] found.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Number of tensors that are equal to the last bit (of a float, to the sign of zero).
    pub equal: usize,
    /// Tensors that differ.
    pub differing: BTreeMap<String, Difference>,
    /// Tensors that only the reference has.
    pub missing: Vec<String>,
    /// Tensors that the reference lacks.
    pub extra: Vec<String>,
    /// How many batchnorm counters only one of the two has; no network depends on them.
    pub counters: usize,
    /// Which one alone has batchnorm folded, where the other was folded for the comparison.
    pub folded: Option<Folded>,
}

/// Which of two networks has batchnorm folded into the layers beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folded {
    /// The one that is compared.
    Compared,
    /// What it is compared with.
    Reference,
}

impl Comparison {
    /// Whether nothing but rounding tells the two apart.
    pub fn agrees(&self) -> bool {
        let rounding = |difference: &Difference| matches!(difference, Difference::Values { rounding: true, .. });
        self.missing.is_empty() && self.extra.is_empty() && self.differing.values().all(rounding)
    }
}

/// Compares tensors by name, one after the other. Between two types a difference counts as rounding if it is at most
/// half a step of the narrower one; of the same type, values must be equal.
///
/// # Errors
/// Those of reading a tensor from its file.
pub fn compare<A: TensorSource, B: TensorSource>(
    tensors: &BTreeMap<String, A>,
    reference: &BTreeMap<String, B>,
) -> Result<Comparison> {
    compare_within(0.0, tensors, reference)
}

/// As [`compare`], for files under torchvision's names, as [`CheckpointFile::normalised`] gives them. Of two whole
/// networks of which one has batchnorm folded, as ONNX files have, the other is folded too, and what computing so in
/// `f32` may cost counts as rounding: 2⁻¹⁸ of a tensor's largest value.
///
/// # Errors
/// Those of [`compare`].
pub fn compare_networks(tensors: &CheckpointFile, reference: &CheckpointFile) -> Result<Comparison> {
    let networks = Foldable::new(&tensors.tensors).zip(Foldable::new(&reference.tensors));
    if let Some((one, other)) = networks {
        let folded = match (one.is_folded()?, other.is_folded()?) {
            (true, false) => Some(Folded::Compared),
            (false, true) => Some(Folded::Reference),
            _ => None,
        };
        if folded.is_some() {
            let (one, other) = (one.folded(&tensors.path), other.folded(&reference.path));
            return Ok(Comparison { folded, ..compare_within(FOLDING, &one, &other)? });
        }
    }
    compare(&tensors.tensors, &reference.tensors)
}

/// What folding may cost, as a share of a tensor's largest value: the shift is a difference of values that may be
/// larger than it.
const FOLDING: f64 = 1.0 / (1 << 18) as f64;

/// As [`compare`], with differences of up to a share of a tensor's largest value as rounding too.
fn compare_within<A: TensorSource, B: TensorSource>(
    share: f64,
    tensors: &BTreeMap<String, A>,
    reference: &BTreeMap<String, B>,
) -> Result<Comparison> {
    let mut found = Comparison::default();
    for (name, tensor) in tensors {
        let Some(other) = reference.get(name) else {
            found.only_one_has(name, true);
            continue;
        };
        let difference = if tensor.shape() == other.shape() {
            values(share, &*tensor.load()?, &*other.load()?)
        } else {
            Some(Difference::Shape(tensor.shape().to_vec(), other.shape().to_vec()))
        };
        match difference {
            Some(difference) => drop(found.differing.insert(name.clone(), difference)),
            None => found.equal += 1,
        }
    }
    reference.keys().filter(|name| !tensors.contains_key(*name)).for_each(|name| found.only_one_has(name, false));
    Ok(found)
}

impl Comparison {
    fn only_one_has(&mut self, name: &str, here: bool) {
        match (name.ends_with(COUNTER), here) {
            (true, _) => self.counters += 1,
            (false, true) => self.extra.push(name.into()),
            (false, false) => self.missing.push(name.into()),
        }
    }
}

/// How the values of two tensors of the same shape differ, and whether rounding explains that, or `within` of the
/// largest value.
fn values(within: f64, a: &FileTensor, b: &FileTensor) -> Option<Difference> {
    if a.dtype == b.dtype && a.bytes() == b.bytes() {
        return None;
    }
    let (share, least) = if a.dtype == b.dtype { (0.0, 0.0) } else { coarser(rounding(a.dtype), rounding(b.dtype)) };
    let largest = b.values().map(f64::abs).fold(0.0, f64::max);
    let least = least + within * largest;
    let (mut absolute, mut relative, mut explained) = (0f64, 0f64, true);
    for (a, b) in a.values().zip(b.values()) {
        if a == b || a.is_nan() && b.is_nan() {
            continue;
        }
        let larger = a.abs().max(b.abs());
        let difference = (a - b).abs();
        // NaN where one is no number, or both are infinite.
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        absolute = absolute.max(difference);
        relative = relative.max(if difference.is_finite() { difference / larger } else { f64::INFINITY });
        explained &= difference.is_finite() && difference <= share * larger + least;
    }
    if a.dtype == b.dtype && !a.dtype.is_float() {
        // Integers of more than 53 bits may differ by less than shows here.
        absolute = absolute.max(1.0);
    }
    (absolute > 0.0).then_some(Difference::Values { absolute, relative, rounding: explained })
}

/// Half a step of a type: as a share of a value, and below its normal range. A hundredth more, since a value that was
/// rounded twice (by way of `f32`) may lie that much beyond.
fn rounding(dtype: FileDtype) -> (f64, f64) {
    let (bits, smallest) = match dtype {
        FileDtype::F16 => (11, 25),
        FileDtype::BF16 => (8, 134),
        FileDtype::F32 => (24, 150),
        _ => return (0.0, 0.0),
    };
    (1.01 * 2f64.powi(-bits), 1.01 * 2f64.powi(-smallest))
}

fn coarser(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    (a.0.max(b.0), a.1.max(b.1))
}
