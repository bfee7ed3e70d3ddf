//! Which tile a convolution on tensor cores takes, and into how many slices a weight gradient's reduction is cut.
//!
//! The choice is about speed alone: every tile gives the same bits. Slices do not, as they change the order of a sum;
//! they follow from the shape and never from the number of multiprocessors.

use super::Factors;
use crate::{device::CudaDevice, ops::conv::Extents};
use Generation::{Ada, Ampere, Blackwell, DesktopAmpere, DesktopBlackwell, Hopper};
use Needs::{By4, By8, Patches};
use Product::{Forward, InputGrad, WeightGrad};

/// What one block computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 128 rows by 128 columns.
    Large,
    /// 128 rows by 64 columns.
    Tall,
    /// 64 rows by 64 columns.
    Small,
    /// As `Tall`, with channels copied four at a time.
    TallBy4,
    /// As `Small`, with channels copied four at a time.
    SmallBy4,
    /// Two tiles of 8 by 8 pixels by 64 columns, whose input is copied once for all taps.
    Patches,
}

impl Tile {
    /// Rows and columns.
    pub const fn extents(self) -> [usize; 2] {
        match self {
            Tile::Large => [128, 128],
            Tile::Tall | Tile::TallBy4 | Tile::Patches => [128, 64],
            Tile::Small | Tile::SmallBy4 => [64, 64],
        }
    }

    /// Rows that it leaves sums of: all of a block's, or those of each of two tiles.
    pub const fn sum_rows(self) -> usize {
        match self {
            Tile::Patches => 64,
            _ => self.extents()[0],
        }
    }

    /// Bytes of dynamic shared memory: four stages of 64 bytes of each row and column, or the sums with a padding of
    /// eight columns; two patches of 10 by 10 pixels and three taps of 64 filters, of 64 channels.
    pub const fn shared(self) -> usize {
        let [rows, cols] = self.extents();
        match self {
            Tile::Patches => 2 * (2 * 10 * 10 + 3 * cols) * 64,
            Tile::Large => rows * (cols + 8) * 4,
            _ => 4 * 64 * (rows + cols),
        }
    }

    /// As kernels are named.
    pub const fn name(self) -> &'static str {
        match self {
            Tile::Large => "128x128",
            Tile::Tall => "128x64",
            Tile::Small => "64x64",
            Tile::TallBy4 => "128x64_by4",
            Tile::SmallBy4 => "64x64_by4",
            Tile::Patches => "patches",
        }
    }
}

/// Which of the three convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Rows are output pixels, columns filters.
    Forward,
    /// Rows are input pixels, columns channels.
    InputGrad,
    /// Rows are filters, columns values of the window.
    WeightGrad,
}

/// Generations of multiprocessors that differ in what suits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// 8.0: 164 KB of shared memory.
    Ampere,
    /// 8.6 and 8.7: 100 KB and more, f32 sums at half the rate on most.
    DesktopAmpere,
    /// 8.9: 100 KB.
    Ada,
    /// 9.0: 228 KB.
    Hopper,
    /// 10: 228 KB.
    Blackwell,
    /// 12: 100 KB.
    DesktopBlackwell,
}

impl Generation {
    fn of(capability: (u32, u32)) -> Self {
        match capability {
            (..=8, 0) => Ampere,
            (..=8, ..=7) => DesktopAmpere,
            (..=8, _) => Ada,
            (9, _) => Hopper,
            (10..=11, _) => Blackwell,
            _ => DesktopBlackwell,
        }
    }
}

/// A GPU as the table sees it.
#[derive(Clone, Copy, Debug)]
pub struct Gpu {
    pub generation: Generation,
    pub multiprocessors: usize,
}

impl Gpu {
    pub fn of(cuda: &CudaDevice) -> Self {
        let properties = cuda.properties();
        let multiprocessors = properties.multiprocessors as usize;
        Self { generation: Generation::of(properties.capability), multiprocessors }
    }
}

/// A matrix product: `groups` of `rows` by `cols`.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub product: Product,
    pub rows: usize,
    pub cols: usize,
    pub groups: usize,
    /// Whether channels are read four at a time: of bf16, where a group's are not a multiple of eight.
    pub by4: bool,
    /// Whether it is a 3×3 convolution of 64 channels that tiles of 8 by 8 pixels cover, of bf16.
    pub patches: bool,
}

impl Problem {
    pub fn new(product: Product, factors: Factors, extents: &Extents) -> Self {
        let (rows, cols, read) = match product {
            Forward => (extents.n * extents.p * extents.q, extents.group_k(), extents.group_c()),
            InputGrad => (extents.n * extents.h * extents.w, extents.group_c(), extents.group_k()),
            WeightGrad => (extents.group_k(), extents.window(), extents.group_c()),
        };
        let by4 = factors == Factors::Bf16 && !read.is_multiple_of(8);
        let Extents { h, w, r, s, stride, padding, .. } = *extents;
        let patches = product != WeightGrad
            && factors == Factors::Bf16
            && [r, s, stride, padding, read] == [3, 3, 1, 1, 64]
            && h.is_multiple_of(8)
            && w.is_multiple_of(8);
        Self { product, rows, cols, groups: extents.groups, by4, patches }
    }

    /// Tiles in all.
    pub fn tiles(&self, tile: Tile) -> usize {
        let [rows, cols] = tile.extents();
        self.rows.div_ceil(rows) * self.cols.div_ceil(cols) * self.groups
    }

    /// The tile for a GPU: of the first row of the table that fits.
    pub fn tile(&self, gpu: Gpu) -> Tile {
        let fits = |row: &&Row| {
            row.products.contains(&self.product)
                && row.needs.met_by(self)
                && (row.generations.is_empty() || row.generations.contains(&gpu.generation))
                && self.rows >= row.rows
                && self.cols >= row.cols
                && self.tiles(row.tile) >= row.waves * gpu.multiprocessors
        };
        TABLE.iter().find(fits).map_or(Tile::Small, |row| row.tile)
    }

    /// Slices of a reduction over `depth` values, and the length of all but the last: a multiple of a step's.
    pub fn slices(&self, tile: Tile, depth: usize) -> (usize, usize) {
        let wanted = ENOUGH_BLOCKS.div_ceil(self.tiles(tile)).min(depth.div_ceil(SHORTEST_SLICE)).max(1);
        let length = depth.div_ceil(wanted).next_multiple_of(STEP);
        (depth.div_ceil(length), length)
    }
}

/// Blocks that keep any GPU busy, two and more to a multiprocessor.
const ENOUGH_BLOCKS: usize = 512;
/// Pixels below which a slice is mostly prologue and merging.
const SHORTEST_SLICE: usize = 512;
/// Pixels of a step of the weight gradient, of the element type that has more.
const STEP: usize = 32;

/// What a tile needs of a problem.
#[derive(Clone, Copy)]
enum Needs {
    /// Channels read eight at a time.
    By8,
    By4,
    Patches,
}

impl Needs {
    fn met_by(self, problem: &Problem) -> bool {
        match self {
            Needs::By8 => !problem.by4,
            Needs::By4 => problem.by4,
            Needs::Patches => problem.patches,
        }
    }
}

/// A row of the table: where it holds, and the tile.
struct Row {
    products: &'static [Product],
    needs: Needs,
    /// Empty: any.
    generations: &'static [Generation],
    /// The least rows and columns of the product.
    rows: usize,
    cols: usize,
    /// The least number of tiles per multiprocessor.
    waves: usize,
    tile: Tile,
}

const DATACENTRE: &[Generation] = &[Ampere, Hopper, Blackwell];
const DESKTOP: &[Generation] = &[DesktopAmpere, Ada, DesktopBlackwell];
const ALL: &[Generation] = &[];
const WINDOWS: &[Product] = &[Forward, InputGrad];

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // The stem, and groups whose channels are no multiple of eight.
    Row { products: &[Forward], needs: By4, generations: ALL, rows: 0, cols: 0, waves: 0, tile: Tile::TallBy4 },
    Row { products: &[WeightGrad], needs: By4, generations: ALL, rows: 0, cols: 0, waves: 0, tile: Tile::SmallBy4 },
    // The first stage: an input element is copied once, not nine times, from a cache that could not keep up.
    Row { products: WINDOWS, needs: Patches, generations: ALL, rows: 0, cols: 0, waves: 1, tile: Tile::Patches },
    // Most products per byte of shared memory; two blocks fit 164 KB and more.
    Row { products: WINDOWS, needs: By8, generations: DATACENTRE, rows: 0, cols: 65, waves: 2, tile: Tile::Large },
    // Of 100 KB a large tile leaves room for one block of four warps, a tall one for two.
    Row { products: WINDOWS, needs: By8, generations: DESKTOP, rows: 0, cols: 0, waves: 2, tile: Tile::Tall },
    // 64 channels, or not enough large tiles.
    Row { products: WINDOWS, needs: By8, generations: ALL, rows: 0, cols: 0, waves: 1, tile: Tile::Tall },
    // Late stages of small batches: as many blocks as there can be.
    Row { products: WINDOWS, needs: By8, generations: ALL, rows: 0, cols: 0, waves: 0, tile: Tile::Small },
    // Slices make the blocks, so that size is free to choose.
    Row { products: &[WeightGrad], needs: By8, generations: ALL, rows: 65, cols: 65, waves: 0, tile: Tile::Large },
    // 64 filters.
    Row { products: &[WeightGrad], needs: By8, generations: ALL, rows: 0, cols: 0, waves: 0, tile: Tile::Small },
];
