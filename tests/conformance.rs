//! What the hardware makes of each primitive of `kernels/include/ptx*.cuh`, and that the emulator makes the same of it.
//! On a GPU (`UNFREEZE_TEST_DEVICE`), `UNFREEZE_RECORD=DIR` writes down inputs and outputs; what lies in
//! `tests/conformance/recorded` is then what the emulator is held to, beside the layouts that the PTX ISA states.

mod common;
#[path = "conformance/hopper.rs"]
mod hopper;

use std::{collections::BTreeMap, env, path::Path};

use common::emulator::{Settings, emulated, gpu};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use unfreeze::{
    Device,
    device::{
        CudaDevice,
        cuda::{Launch, Source},
    },
    random::Random,
};

static PRIMITIVES: Source = Source {
    name: "primitives",
    text: include_str!("conformance/primitives.cu"),
    archs: &["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"],
    entries: &[
        "copy_async_wide",
        "copy_async_narrow",
        "copy_async_middle",
        "narrower_floats",
        "shared_vectors",
        "load_matrix_rows",
        "load_matrix_columns",
        "multiply_bf16",
        "multiply_f16",
        "multiply_tf32",
        "named_barriers",
    ],
    layouts: &[],
};

/// A primitive's kernel on some input: what comes out, by the ISA's text, and by how much a sum may be off.
struct Primitive {
    entry: &'static str,
    threads: u32,
    input: Vec<u32>,
    expected: Expected,
}

enum Expected {
    /// Data that only moves.
    Words(Vec<u32>),
    /// Sums, each with that of its terms' magnitudes.
    Sums(Vec<(f64, f64)>),
}

fn words(name: &str, count: usize) -> Vec<u32> {
    let mut random = Random::stream(0, name, &[]);
    let byte = |random: &mut Random| random.uniform(0.0, 256.0) as u8;
    (0..count).map(|_| u32::from_le_bytes([(); 4].map(|()| byte(&mut random)))).collect()
}

fn copy_async_wide() -> Primitive {
    let input = words("wide", 128);
    let bytes: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
    let copied: Vec<u8> = bytes
        .chunks_exact(16)
        .enumerate()
        .flat_map(|(lane, row)| (0..16).map(move |at| if at < lane % 17 { row[at] } else { 0 }))
        .collect();
    let word = |at: usize| u32::from_le_bytes(copied[4 * at..][..4].try_into().unwrap());
    let expected = Expected::Words((0..128).map(|i| word(i ^ 5)).collect());
    Primitive { entry: "copy_async_wide", threads: 32, input, expected }
}

fn copy_async_narrow() -> Primitive {
    let input = words("narrow", 64);
    let second = |lane: usize| if lane.is_multiple_of(3) { 0 } else { input[32 + lane] };
    let expected = (0..32).map(|lane| input[31 - lane]).chain((0..32).map(|lane| second(31 - lane))).collect();
    Primitive { entry: "copy_async_narrow", threads: 32, expected: Expected::Words(expected), input }
}

fn copy_async_middle() -> Primitive {
    let input = words("middle", 64);
    let bytes: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
    let chunks = bytes.chunks_exact(8).enumerate();
    let copied: Vec<u8> =
        chunks.flat_map(|(lane, row)| (0..8).map(move |at| if at < lane % 9 { row[at] } else { 0 })).collect();
    let word = |at: usize| u32::from_le_bytes(copied[4 * at..][..4].try_into().unwrap());
    let expected = Expected::Words((0..64).map(|i| word(i ^ 3)).collect());
    Primitive { entry: "copy_async_middle", threads: 32, input, expected }
}

fn narrower_floats() -> Primitive {
    let mut random = Random::stream(2, "floats", &[]);
    let mut floats: Vec<f32> = (0..64).map(|_| random.normal_pair()[0]).collect();
    // Halfway between two bf16, and between two TF32: to the even one, and away from zero.
    floats[..4].copy_from_slice(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.0 / 2048.0, -1.0 - 1.0 / 2048.0]);
    let pair = |lane: usize| {
        let half = |at: usize| u32::from(bf16::from_f32(floats[at]).to_bits());
        half(lane) | half(32 + lane) << 16
    };
    let tf32 = |lane: usize| (floats[lane].to_bits() + 0x1000) & !0x1FFF;
    let expected = Expected::Words((0..32).map(pair).chain((0..32).map(tf32)).collect());
    let input = floats.iter().map(|float| float.to_bits()).collect();
    Primitive { entry: "narrower_floats", threads: 32, input, expected }
}

fn shared_vectors() -> Primitive {
    let input = words("vectors", 192);
    let pairs = (0..32).flat_map(|lane| [0, 1].map(|i| 6 * lane + i));
    let fours = (0..32).flat_map(|lane| [2, 3, 4, 5].map(|i| 6 * lane + i));
    let stored: Vec<u32> = pairs.chain(fours).map(|at| input[at]).collect();
    let expected = Expected::Words(stored.into_iter().rev().collect());
    Primitive { entry: "shared_vectors", threads: 32, input, expected }
}

/// Matrix m of the kernel has the rows that lanes 8·m to 8·m + 7 name; lane l receives two elements of its row l / 4, or
/// of its column where it is transposed.
fn load_matrix(entry: &'static str, transposed: bool) -> Primitive {
    let input = words(entry, 128);
    let row = |lane: usize| (5 * lane + 3) % 32;
    let element = |matrix: usize, r: usize, c: usize| input[4 * row(8 * matrix + r) + c / 2] >> (16 * (c % 2)) & 0xFFFF;
    let at = |lane: usize, matrix: usize| {
        let (major, minor) = (lane / 4, 2 * (lane % 4));
        let pair = [0, 1].map(|i| match transposed {
            false => element(matrix, major, minor + i),
            true => element(matrix, minor + i, major),
        });
        pair[0] | pair[1] << 16
    };
    let expected = (0..32).flat_map(|lane| (0..4).map(move |matrix| (lane, matrix))).map(|(l, m)| at(l, m)).collect();
    Primitive { entry, threads: 32, expected: Expected::Words(expected), input }
}

/// `d + a · b` of 16×K, K×8 elements that `read` takes from a word; `a_at` and `b_at` say which word, and which of its
/// elements, holds what.
fn multiply(entry: &'static str, inner: usize, make: fn(f32) -> u32, read: fn(u32, usize) -> f64) -> Primitive {
    let mut random = Random::stream(1, entry, &[]);
    let mut input = Vec::new();
    for _ in 0..32 {
        for word in 0..10 {
            let [x, y] = random.normal_pair();
            input.push(if word >= 6 {
                x.to_bits()
            } else if inner == 16 {
                make(x) | make(y) << 16
            } else {
                make(x)
            });
        }
    }
    let packed = inner / 8;
    let word = |lane: usize, at: usize| input[10 * lane + at];
    // (row or column, k) to lane, register and element.
    let place = |k: usize| (k % 8 / 2 * (packed - 1) + k % 4 * (2 - packed), k / (4 * packed), k % packed);
    let a = |row: usize, k: usize| {
        let (lane, half, element) = place(k);
        read(word(row % 8 * 4 + lane, row / 8 + 2 * half), element)
    };
    let b = |k: usize, col: usize| {
        let (lane, half, element) = place(k);
        read(word(col * 4 + lane, 4 + half), element)
    };
    let mut sums = Vec::new();
    for lane in 0..32 {
        for i in 0..4 {
            let (row, col) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            let start = f64::from(f32::from_bits(word(lane, 6 + i)));
            let terms = (0..inner).map(|k| a(row, k) * b(k, col));
            let (sum, size) = terms.fold((start, start.abs()), |(sum, size), x| (sum + x, size + x.abs()));
            sums.push((sum, size));
        }
    }
    Primitive { entry, threads: 32, input, expected: Expected::Sums(sums) }
}

fn named_barriers() -> Primitive {
    let input = words("barriers", 32);
    let tripled: Vec<u32> = input.iter().map(|word| word.wrapping_mul(3)).collect();
    let first = (0..32).map(|lane| tripled[lane ^ 9]);
    let second = (0..32).map(|lane| tripled[31 - lane].wrapping_add(1));
    let expected = Expected::Words(first.chain(second).collect());
    Primitive { entry: "named_barriers", threads: 64, expected, input }
}

fn primitives() -> Vec<Primitive> {
    vec![
        copy_async_wide(),
        copy_async_narrow(),
        copy_async_middle(),
        narrower_floats(),
        shared_vectors(),
        load_matrix("load_matrix_rows", false),
        load_matrix("load_matrix_columns", true),
        multiply(
            "multiply_bf16",
            16,
            |x| u32::from(bf16::from_f32(x).to_bits()),
            |word, at| bf16::from_bits((word >> (16 * at)) as u16).to_f64(),
        ),
        multiply(
            "multiply_f16",
            16,
            |x| u32::from(f16::from_f32(x).to_bits()),
            |word, at| f16::from_bits((word >> (16 * at)) as u16).to_f64(),
        ),
        // The low 13 bits are set in what the kernel gets: they must not count.
        multiply("multiply_tf32", 8, |x| x.to_bits(), |word, _| f64::from(f32::from_bits(word & !0x1FFF))),
        named_barriers(),
    ]
}

impl Primitive {
    fn run(&self, cuda: &CudaDevice) -> Vec<u32> {
        let launch =
            Launch { grid: [1; 3], block: [self.threads, 1, 1], shared: 0, cooperative: false, cluster: [1; 3] };
        self.run_on(cuda, &PRIMITIVES, &launch, |addresses| bytemuck::cast_slice(&addresses).to_vec())
    }

    /// Runs its kernel of `source`, with parameters made of the addresses of input and output.
    fn run_on(
        &self,
        cuda: &CudaDevice,
        source: &'static Source,
        launch: &Launch,
        params: impl FnOnce([u64; 2]) -> Vec<u8>,
    ) -> Vec<u32> {
        let driver = cuda.driver();
        let count = match &self.expected {
            Expected::Words(words) => words.len(),
            Expected::Sums(sums) => sums.len(),
        };
        let input: &[u8] = bytemuck::cast_slice(&self.input);
        let mut output = vec![0u32; count];
        let [from, to] = [input.len(), 4 * count].map(|bytes| driver.alloc(bytes).unwrap());
        driver.upload(from, input).unwrap();
        cuda.run(source, self.entry, launch, &params([from, to])).unwrap();
        driver.download(to, bytemuck::cast_slice_mut(&mut output)).unwrap();
        [from, to].into_iter().for_each(|address| driver.free(address));
        output
    }

    fn check(&self, what: &str, output: &[u32]) {
        match &self.expected {
            Expected::Words(words) => assert_eq!(output, words.as_slice(), "{} {what}", self.entry),
            Expected::Sums(sums) => {
                for (at, (word, (sum, size))) in output.iter().zip(sums).enumerate() {
                    let value = f64::from(f32::from_bits(*word));
                    // Tensor cores cut bits off terms that are small beside the largest.
                    assert!((value - sum).abs() <= 1e-6 * size, "{} {what}, element {at}: {value} {sum}", self.entry);
                }
            }
        }
    }

    /// Writes input and output to `folder`.
    fn record(&self, folder: &Path, device: &str, output: &[u32]) {
        let view =
            |words: &'_ [u32]| -> (Vec<usize>, Vec<u8>) { (vec![words.len()], bytemuck::cast_slice(words).to_vec()) };
        let tensors = [("input", view(&self.input)), ("output", view(output))];
        let views = tensors
            .iter()
            .map(|(name, (shape, bytes))| (*name, TensorView::new(Dtype::U32, shape.clone(), bytes).unwrap()));
        let metadata = BTreeMap::from([("device".to_string(), device.to_string())]).into_iter().collect();
        let bytes = safetensors::serialize(views.collect::<Vec<_>>(), Some(metadata)).unwrap();
        std::fs::write(folder.join(format!("{}.safetensors", self.entry)), bytes).unwrap();
    }

    /// Whether it was recorded on hardware; what was recorded is then checked too.
    fn is_recorded(&self) -> bool {
        let path = Path::new("tests/conformance/recorded").join(format!("{}.safetensors", self.entry));
        let Ok(bytes) = std::fs::read(path) else { return false };
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| -> Vec<u32> { bytemuck::pod_collect_to_vec(file.tensor(name).unwrap().data()) };
        assert_eq!(words("input"), self.input, "{}: recorded for another input", self.entry);
        self.check("as recorded", &words("output"));
        true
    }

    /// Checks what was computed, records it if asked to, and says whether hardware has been seen to do the same.
    fn conforms(&self, cuda: &CudaDevice, output: &[u32]) -> bool {
        self.check("computed", output);
        if let (Some(folder), Ok(_)) = (env::var_os("UNFREEZE_RECORD"), env::var("UNFREEZE_TEST_DEVICE")) {
            std::fs::create_dir_all(&folder).unwrap();
            self.record(Path::new(&folder), &cuda.properties().name, output);
        }
        self.is_recorded()
    }
}

#[test]
fn primitives_do_what_the_isa_says() {
    let Some(Device::Cuda(cuda)) = gpu() else { return };
    let primitives = primitives();
    let recorded = primitives.iter().filter(|primitive| primitive.conforms(&cuda, &primitive.run(&cuda))).count();
    println!("{recorded} of {} primitives are held to what hardware did", primitives.len());
}

/// On a Hopper under test, or an emulated one.
#[test]
fn hopper_primitives_do_what_the_isa_says() {
    let under_test = env::var_os("UNFREEZE_TEST_DEVICE").and_then(|_| gpu());
    let emulated = || Some(emulated(Settings { capability: (9, 0), ..Settings::default() })?.0);
    let Some(Device::Cuda(cuda)) = under_test.or_else(emulated) else { return };
    if cuda.properties().capability != (9, 0) {
        eprintln!("SKIPPED: primitives of Hopper: {} is another GPU", cuda.properties().name);
        return;
    }
    let primitives = hopper::primitives();
    let conforms = |mapped: &&hopper::Mapped| mapped.primitive.conforms(&cuda, &mapped.run(&cuda));
    let recorded = primitives.iter().filter(conforms).count();
    println!("{recorded} of {} primitives of Hopper are held to what hardware did", primitives.len());
}
