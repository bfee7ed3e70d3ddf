//! The kernels' source text as the program carries it, and how a launcher names a kernel.

use std::marker::PhantomData;

use super::{Layout, Params};
use crate::{Error, Result};

/// A file of CUDA C++: one module.
#[derive(Debug)]
pub struct Source {
    /// The file's name in `kernels/`, without its extension.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
    /// Architectures that it is written for, such as `sm_80`.
    pub archs: &'static [&'static str],
    /// Its kernels.
    pub entries: &'static [&'static str],
    /// Layouts of its parameter structs.
    pub layouts: &'static [Layout],
}

/// Architectures of the f32 kernels: every GPU since Turing.
pub const F32_ARCHS: &[&str] = &["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"];

/// Headers that sources include by name.
pub const HEADERS: &[(&str, &str)] = &[
    ("batchnorm.cuh", include_str!("../../../kernels/include/batchnorm.cuh")),
    ("common.cuh", include_str!("../../../kernels/include/common.cuh")),
    ("conv.cuh", include_str!("../../../kernels/include/conv.cuh")),
    ("conv_mma.cuh", include_str!("../../../kernels/include/conv_mma.cuh")),
    ("element.cuh", include_str!("../../../kernels/include/element.cuh")),
    ("epilogue.cuh", include_str!("../../../kernels/include/epilogue.cuh")),
    ("extents.cuh", include_str!("../../../kernels/include/extents.cuh")),
    ("finish.cuh", include_str!("../../../kernels/include/finish.cuh")),
    ("gemm.cuh", include_str!("../../../kernels/include/gemm.cuh")),
    ("grid.cuh", include_str!("../../../kernels/include/grid.cuh")),
    ("map.cuh", include_str!("../../../kernels/include/map.cuh")),
    ("mma.cuh", include_str!("../../../kernels/include/mma.cuh")),
    ("norm.cuh", include_str!("../../../kernels/include/norm.cuh")),
    ("pack.cuh", include_str!("../../../kernels/include/pack.cuh")),
    ("ptx.cuh", include_str!("../../../kernels/include/ptx.cuh")),
    ("ptx_sm90.cuh", include_str!("../../../kernels/include/ptx_sm90.cuh")),
    ("random.cuh", include_str!("../../../kernels/include/random.cuh")),
    ("softmax.cuh", include_str!("../../../kernels/include/softmax.cuh")),
    ("sums.cuh", include_str!("../../../kernels/include/sums.cuh")),
    ("update.cuh", include_str!("../../../kernels/include/update.cuh")),
];

impl Source {
    /// The text to compile: the file, and assertions that its structs are laid out as their Rust counterparts.
    pub fn program(&self) -> String {
        let assertions = self.layouts.iter().map(Layout::assertions);
        std::iter::once(format!("{}\n", self.text)).chain(assertions).collect()
    }

    /// The architecture to compile it for on a GPU of this compute capability.
    ///
    /// # Errors
    /// [`Error::Device`] if none of its architectures runs there.
    pub fn arch(&self, capability: (u32, u32)) -> Result<&'static str> {
        architecture(self.archs, capability).ok_or_else(|| {
            let ((major, minor), archs) = (capability, self.archs.join(", "));
            let message = format!("the kernels of {} are for {archs}, not for {major}.{minor}", self.name);
            Error::Device { device: "cuda".into(), message }
        })
    }
}

/// The best of `archs` for a GPU of this compute capability: code runs on GPUs of the same major version and the same
/// or a higher minor one; with an `a` behind it, on that one alone.
pub fn architecture(archs: &[&'static str], capability: (u32, u32)) -> Option<&'static str> {
    let runs = |arch: &&'static str| {
        let number = arch.strip_prefix("sm_")?;
        let (number, exact) = number.strip_suffix('a').map_or((number, false), |number| (number, true));
        let number: u32 = number.parse().ok()?;
        let (major, minor) = (number / 10, number % 10);
        let fits = major == capability.0 && if exact { minor == capability.1 } else { minor <= capability.1 };
        fits.then_some(((minor, exact), *arch))
    };
    archs.iter().filter_map(runs).max().map(|(_, arch)| arch)
}

/// A kernel that takes the parameters `P`.
pub(crate) struct Kernel<P> {
    pub source: &'static Source,
    pub entry: &'static str,
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Blocks of a cluster along each axis.
    pub cluster: [u32; 3],
    params: PhantomData<fn(P)>,
}

impl<P: Params> Kernel<P> {
    /// The kernel `entry` of `source`, launched in blocks of `threads`.
    pub const fn new(source: &'static Source, entry: &'static str, threads: u32) -> Self {
        Self { source, entry, block: [threads, 1, 1], cluster: [1; 3], params: PhantomData }
    }

    /// The same, launched in clusters of `blocks` neighbours.
    pub const fn clustered(self, blocks: u32) -> Self {
        Self { cluster: [blocks, 1, 1], ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_follow_the_gpu() {
        let f32 = |major, minor| architecture(F32_ARCHS, (major, minor));
        assert_eq!([f32(7, 5), f32(8, 0), f32(8, 6)], [Some("sm_75"), Some("sm_80"), Some("sm_86")]);
        assert_eq!([f32(8, 7), f32(8, 9), f32(9, 0)], [Some("sm_86"), Some("sm_89"), Some("sm_90a")]);
        assert_eq!([f32(10, 0), f32(10, 3), f32(12, 1)], [Some("sm_100"), Some("sm_100"), Some("sm_120")]);
        assert_eq!([f32(7, 0), f32(11, 0), f32(13, 0)], [None; 3]);
        assert_eq!(architecture(&["sm_90", "sm_90a"], (9, 0)), Some("sm_90a"));
        assert_eq!(architecture(&["sm_90a"], (9, 1)), None);
    }
}
