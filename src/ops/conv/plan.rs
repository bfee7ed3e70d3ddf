//! Which tile a convolution's kernel takes, and into how many slices a reduction is cut.

use super::Extents;

/// Products that a kernel sums before it adds them to the others: `SEGMENT` of `kernels/include/gemm.cuh`.
pub const SEGMENT: usize = 256;
/// Blocks that keep a GPU busy; where there are fewer, blocks share reductions.
const ENOUGH_BLOCKS: usize = 128;
/// Most blocks that share reductions: what each leaves behind must be stored.
const MOST_SHARING: usize = 4096;

/// What one block computes, in the order of the kernels in `kernels/include/conv.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// For large problems.
    Large,
    /// For most others.
    Middle,
    /// For few columns.
    Narrow,
    /// For few rows.
    Flat,
}

impl Tile {
    /// Rows and columns.
    pub const fn extents(self) -> [usize; 2] {
        match self {
            Tile::Large => [128, 64],
            Tile::Middle => [64, 64],
            Tile::Narrow => [64, 16],
            Tile::Flat => [16, 64],
        }
    }
}

/// A matrix product: `copies` (groups …) times `rows` by `cols` sums over `depth`.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub rows: usize,
    pub cols: usize,
    pub copies: usize,
    pub depth: usize,
}

impl Problem {
    /// Of a convolution: output pixels by filters.
    pub fn forward(extents: &Extents) -> Self {
        let rows = extents.n * extents.p * extents.q;
        Self { rows, cols: extents.group_k(), copies: extents.groups, depth: extents.window() }
    }

    /// Of its input gradient: input pixels by channels, for the largest class of pixels (see the kernel) and the class
    /// with the longest windows.
    pub fn input_grad(extents: &Extents) -> Self {
        let [h, w, r, s] = [extents.h, extents.w, extents.r, extents.s].map(|extent| extent.div_ceil(extents.stride));
        let copies = extents.groups * extents.stride * extents.stride;
        Self { rows: extents.n * h * w, cols: extents.group_c(), copies, depth: r * s * extents.group_k() }
    }

    /// Of its weight gradient: filters by values of the window.
    pub fn weight_grad(extents: &Extents) -> Self {
        let depth = extents.n * extents.p * extents.q;
        Self { rows: extents.group_k(), cols: extents.window(), copies: extents.groups, depth }
    }

    /// Tiles in all.
    pub fn tiles(&self, tile: Tile) -> usize {
        let [rows, cols] = tile.extents();
        self.rows.div_ceil(rows) * self.cols.div_ceil(cols) * self.copies
    }

    /// Segments of each sum.
    pub fn segments(&self) -> usize {
        self.depth.div_ceil(SEGMENT).max(1)
    }

    /// The tile that suits, where up to `sharing` blocks work on each.
    fn tile(&self, sharing: usize) -> Tile {
        if self.cols <= Tile::Narrow.extents()[1] {
            Tile::Narrow
        } else if self.rows <= Tile::Flat.extents()[0] {
            Tile::Flat
        } else if self.rows > Tile::Middle.extents()[0] && self.tiles(Tile::Large) * sharing >= 2 * ENOUGH_BLOCKS {
            Tile::Large
        } else {
            Tile::Middle
        }
    }

    /// A plan that changes no bit of the result: a slice is one segment, or all of them.
    pub fn plan(&self) -> Plan {
        let tile = self.tile(1);
        let (tiles, segments) = (self.tiles(tile), self.segments());
        let shared = tiles < ENOUGH_BLOCKS && tiles * segments <= MOST_SHARING;
        Plan { tile, slices: if shared { segments } else { 1 } }
    }

    /// A plan for a long reduction into few results: as many slices, of equal numbers of segments, as make enough
    /// blocks.
    pub fn sliced_plan(&self) -> Plan {
        let segments = self.segments();
        let tile = self.tile(segments);
        let slices = (4 * ENOUGH_BLOCKS).div_ceil(self.tiles(tile)).min(segments);
        Plan { tile, slices: segments.div_ceil(segments.div_ceil(slices)) }
    }
}

/// How a problem is spread over blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub tile: Tile,
    /// Parts of the reduction, each with blocks of its own.
    pub slices: usize,
}
