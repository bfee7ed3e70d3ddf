//! Tensors as the copy engine of Hopper GPUs and later (the tensor memory accelerator, TMA) is told of them: a kernel
//! then has whole boxes of them copied to shared memory, with zeros outside the tensor.

use super::params::Field;

/// A tensor in the GPU's memory, and the boxes of it that one copy moves. Dimensions are listed from the contiguous one
/// on; there are at most 5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// What its elements are.
    pub element: TensorType,
    /// Where it begins; a multiple of 16.
    pub address: u64,
    /// Elements along each dimension.
    pub extents: Vec<u64>,
    /// Bytes from an element to the next along each dimension but the first; multiples of 16.
    pub strides: Vec<u64>,
    /// Every how many elements along each dimension are copied; 1 for all of them.
    pub steps: Vec<u32>,
    /// What one copy moves.
    pub mode: TensorMode,
    /// How it lies in shared memory.
    pub swizzle: Swizzle,
}

/// Types of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// bfloat16.
    Bf16,
    /// f32.
    F32,
    /// f32, rounded to the 10 bits of mantissa that tensor cores multiply as it is copied.
    Tf32,
}

/// What one copy moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorMode {
    /// A box of as many elements along each dimension, each at most 256.
    Tiled {
        /// The box.
        extents: Vec<u32>,
    },
    /// Of images `[N, H, W, C]`, `pixels` pixels in the order of memory, those that the window of a convolution begins
    /// at: from `lower` of each image's first column and row to `upper` of its last. A kernel names the tap.
    Im2col {
        /// Column and row of the first window of an image.
        lower: [i32; 2],
        /// Column and row of the last window, counted from the last of the image.
        upper: [i32; 2],
        /// Channels of a pixel that are copied, at most 256.
        channels: u32,
        /// Pixels, at most 1024.
        pixels: u32,
    },
}

/// How 16-byte pieces of a box are permuted in shared memory, so that reading a column of it meets all banks: within
/// spans of that many bytes, by the number of the row of 128 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// In order.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}

impl TensorMap {
    /// Whether its lists are of one length, as the driver's C interface takes for granted.
    ///
    /// # Errors
    /// What does not fit.
    #[cfg(feature = "cuda")]
    pub(super) fn check(&self) -> Result<(), String> {
        let rank = self.extents.len();
        let boxes = match &self.mode {
            TensorMode::Tiled { extents } => extents.len(),
            TensorMode::Im2col { .. } => 4,
        };
        if (1..=5).contains(&rank) && self.strides.len() == rank - 1 && self.steps.len() == rank && boxes == rank {
            return Ok(());
        }
        Err(format!("a tensor map whose dimensions do not fit: {self:?}"))
    }
}

/// A tensor map as kernels take it, by value: a field of their parameter struct.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct EncodedMap(pub [u8; 128]);

impl Field for EncodedMap {
    fn write(&self, bytes: &mut [u8]) {
        bytes[..128].copy_from_slice(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::{Params, kernel_params};

    kernel_params! {
        struct WithMap {
            count: u32,
            map: EncodedMap,
            output: u64,
        }
    }

    #[test]
    fn maps_lie_aligned_in_parameters() {
        let params = WithMap { count: 1, map: EncodedMap([7; 128]), output: 2 };
        let bytes = params.to_bytes();
        assert_eq!((bytes.len(), WithMap::LAYOUT.fields[1].1), (256, 64));
        assert!(bytes[64..192] == [7; 128] && bytes[4..64] == [0; 60] && bytes[192] == 2);
    }

    #[test]
    #[cfg(feature = "cuda")]
    fn lists_of_different_lengths_are_refused() {
        let map = TensorMap {
            element: TensorType::Bf16,
            address: 0,
            extents: vec![64, 10],
            strides: vec![128],
            steps: vec![1, 1],
            mode: TensorMode::Tiled { extents: vec![64, 8] },
            swizzle: Swizzle::B128,
        };
        assert_eq!(map.check(), Ok(()));
        let im2col = TensorMode::Im2col { lower: [0; 2], upper: [0; 2], channels: 64, pixels: 8 };
        for wrong in [
            TensorMap { extents: vec![64], ..map.clone() },
            TensorMap { strides: vec![128, 256], ..map.clone() },
            TensorMap { steps: vec![1], ..map.clone() },
            TensorMap { mode: TensorMode::Tiled { extents: vec![64] }, ..map.clone() },
            TensorMap { mode: im2col, ..map.clone() },
            TensorMap { extents: vec![2; 6], strides: vec![16; 5], steps: vec![1; 6], ..map.clone() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
