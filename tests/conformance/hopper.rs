//! The primitives of `ptx_sm90.cuh`: copies by tensor maps, clusters, products of a warpgroup.

use unfreeze::device::{
    CudaDevice,
    cuda::{Launch, Source, Swizzle, TensorMap, TensorMode, TensorType},
};

use super::*;

static PRIMITIVES: Source = Source {
    name: "primitives_sm90",
    text: include_str!("primitives_sm90.cu"),
    archs: &["sm_90a"],
    entries: &["copy_boxes", "copy_windows", "copy_to_both", "multiply_128", "multiply_256"],
    layouts: &[],
};

/// A primitive whose kernel takes its input as a tensor of bf16.
pub struct Mapped {
    pub primitive: Primitive,
    /// From the contiguous dimension on.
    extents: &'static [u64],
    /// Every how many elements are copied.
    steps: &'static [u32],
    mode: TensorMode,
    /// Blocks of the one cluster that is launched.
    blocks: u32,
}

impl Mapped {
    pub fn run(&self, cuda: &CudaDevice) -> Vec<u32> {
        let launch = Launch {
            grid: [self.blocks, 1, 1],
            block: [self.primitive.threads, 1, 1],
            shared: 0,
            cooperative: false,
            cluster: [self.blocks, 1, 1],
        };
        self.primitive.run_on(cuda, &PRIMITIVES, &launch, |[from, to]| {
            let strides = self.extents.iter().scan(2, |stride, extent| {
                *stride *= extent;
                Some(*stride)
            });
            let map = TensorMap {
                element: TensorType::Bf16,
                address: from,
                extents: self.extents.to_vec(),
                strides: strides.take(self.extents.len() - 1).collect(),
                steps: self.steps.to_vec(),
                mode: self.mode.clone(),
                swizzle: Swizzle::B128,
            };
            // The struct is as large as its alignment, 64, asks for.
            let mut params = cuda.driver().tensor_map(&map).unwrap().0.to_vec();
            params.extend(to.to_ne_bytes());
            params.resize(192, 0);
            params
        })
    }
}

/// Rows of 32 words as the swizzle lays them out: piece p of 16 bytes of row r is piece p ^ (r % 8).
fn swizzled(rows: usize, word: impl Fn(usize, usize) -> u32) -> Vec<u32> {
    (0..32 * rows)
        .map(|at| (at / 32, at % 32))
        .map(|(row, at)| word(row, ((at / 4) ^ (row % 8)) * 4 + at % 4))
        .collect()
}

fn copy_boxes() -> Mapped {
    // 20 rows of 72 elements, or 36 words; the box begins at element 40 of row 10.
    let input = words("boxes", 20 * 36);
    let word = |row: usize, col: usize| if row < 10 && col < 16 { input[(10 + row) * 36 + 20 + col] } else { 0 };
    let expected = Expected::Words(swizzled(16, word));
    let primitive = Primitive { entry: "copy_boxes", threads: 32, expected, input };
    Mapped {
        primitive,
        extents: &[72, 20],
        steps: &[1; 2],
        mode: TensorMode::Tiled { extents: vec![64, 16] },
        blocks: 1,
    }
}

fn copy_windows() -> Mapped {
    // Two images of 5 by 6 pixels of 64 channels: 3 by 3 windows of each, of which the first four are passed over.
    let input = words("windows", 2 * 5 * 6 * 32);
    let word = |row: usize, col: usize| {
        let window = row + 4;
        let (image, y, x) = (window / 9, window / 3 % 3 * 2, window % 3 * 2);
        if image < 2 { input[((image * 5 + y) * 6 + x) * 32 + col] } else { 0 }
    };
    let expected = Expected::Words(swizzled(16, word));
    let primitive = Primitive { entry: "copy_windows", threads: 32, expected, input };
    let mode = TensorMode::Im2col { lower: [0; 2], upper: [0; 2], channels: 64, pixels: 16 };
    Mapped { primitive, extents: &[64, 6, 5, 2], steps: &[1, 2, 2, 1], mode, blocks: 1 }
}

fn copy_to_both() -> Mapped {
    let input = words("both", 16 * 32);
    let rows = swizzled(16, |row, col| input[row * 32 + col]);
    let expected = Expected::Words([rows.clone(), rows].concat());
    let primitive = Primitive { entry: "copy_to_both", threads: 32, expected, input };
    Mapped {
        primitive,
        extents: &[64, 16],
        steps: &[1; 2],
        mode: TensorMode::Tiled { extents: vec![64, 8] },
        blocks: 2,
    }
}

fn multiply(entry: &'static str, cols: usize, extents: &'static [u64]) -> Mapped {
    let mut random = Random::stream(1, entry, &[]);
    let values: Vec<bf16> = (0..(64 + cols) * 32).flat_map(|_| random.normal_pair()).map(bf16::from_f32).collect();
    let at = |row: usize, k: usize| values[row * 64 + k].to_f64();
    let mut sums = Vec::new();
    for (i, thread) in (0..cols / 2).flat_map(|i| (0..128).map(move |thread| (i, thread))) {
        let row = thread / 32 * 16 + i / 2 % 2 * 8 + thread % 32 / 4;
        let col = i / 4 * 8 + thread % 4 * 2 + i % 2;
        let terms = (0..64).map(|k| at(row, k) * at(64 + col, k));
        sums.push(terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs())));
    }
    let input = bytemuck::pod_collect_to_vec(&values);
    let primitive = Primitive { entry, threads: 128, expected: Expected::Sums(sums), input };
    Mapped { primitive, extents, steps: &[1; 2], mode: TensorMode::Tiled { extents: vec![64; 2] }, blocks: 1 }
}

pub fn primitives() -> Vec<Mapped> {
    vec![
        copy_boxes(),
        copy_windows(),
        copy_to_both(),
        multiply("multiply_128", 128, &[64, 192]),
        multiply("multiply_256", 256, &[64, 320]),
    ]
}
