//! Which convolutions the kernels of Hopper take, and with which tile. The tile is about speed alone, and gives the
//! same bits. Whether these kernels are taken must not depend on the batch: nothing promises that their products round
//! as those of `mma` do, and an image's activations are not to depend on what it is batched with.

use half::bf16;

use super::{BLOCKS, DEPTH, ROWS};
use crate::ops::conv::{
    Extents,
    mma::{
        Factors,
        table::{Generation, Gpu, Product},
    },
};

/// Tiles of 128 pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// By 256 columns.
    Wide,
    /// By 128 columns.
    Narrow,
}

/// The largest step between pixels that the copy engine takes.
const MOST_STRIDE: usize = 8;

impl Tile {
    /// The tile for a convolution, or for the gradient of its input; none where the kernels of every GPU serve alone.
    pub(in crate::ops::conv) fn choose(
        gpu: Gpu,
        product: Product,
        factors: Factors,
        extents: &Extents,
    ) -> Option<Self> {
        let Extents { n, c, k, r, s, p, q, stride, padding, groups, .. } = *extents;
        let (depth, cols, strides) = match product {
            Product::Forward => (c, k, MOST_STRIDE),
            // Of a gradient with a stride most pixels are zeros.
            Product::InputGrad => (k, c, 1),
            Product::WeightGrad => return None,
        };
        let is_for = gpu.generation == Generation::Hopper
            && factors == Factors::Bf16
            && (r, s, padding, groups) == (1, 1, 0, 1)
            && stride <= strides
            // Less than a whole step of 64 channels would be multiplied with zeros.
            && depth.is_multiple_of(DEPTH);
        // A wide tile has most products for each byte of shared memory. Of up to 128 columns half would be zeros; and
        // where wide tiles leave multiprocessors idle, twice as many narrow ones do not, or fewer.
        let wide = cols > Tile::Narrow.cols() && Tile::Wide.pairs(n * p * q, cols) * BLOCKS >= gpu.multiprocessors;
        is_for.then_some(if wide { Tile::Wide } else { Tile::Narrow })
    }

    pub(super) fn cols(self) -> usize {
        match self {
            Tile::Wide => 256,
            Tile::Narrow => 128,
        }
    }

    fn stages(self) -> usize {
        match self {
            Tile::Wide => 3,
            Tile::Narrow => 5,
        }
    }

    /// Bytes of a block's shared memory, as the kernel lays it out: stages, the sums of two consumers, barriers.
    pub(super) fn shared(self) -> usize {
        let (stage, sums) = ((ROWS + self.cols()) * DEPTH * size_of::<bf16>(), 64 * (64 + 8) * size_of::<f32>());
        self.stages() * stage + 2 * sums + self.stages() * 2 * size_of::<u64>()
    }

    /// Pairs of tiles that a product of so many rows and columns takes: one for each cluster at a time.
    pub(super) fn pairs(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(BLOCKS * ROWS) * self.across(cols)
    }

    /// Tiles side by side over so many columns.
    pub(super) fn across(self, cols: usize) -> usize {
        cols.div_ceil(self.cols())
    }
}
