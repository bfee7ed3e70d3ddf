//! Bulk copies: boxes of tensors in every mode and swizzle against plain Rust, what the driver refuses, rules kept and
//! broken.

mod common;

use common::*;
use simt::{AsyncCopies, Config, Fault, FaultKind, Gpu, Launch, Module, Swizzle, TensorMap, TensorMode, TensorType};

const ARCHS: &[&str] = &["sm_90a"];

/// A tensor of numbered elements and a copy of a box of it.
#[derive(Clone)]
struct Box {
    kernel: &'static str,
    map: TensorMap,
    at: Vec<i32>,
    offsets: Vec<u32>,
}

impl Box {
    /// A contiguous tensor but for `gap` bytes behind each row.
    fn new(kernel: &'static str, element: TensorType, extents: &[u64], gap: u64, mode: TensorMode, at: &[i32]) -> Box {
        let mut strides = Vec::new();
        let mut stride = (extents[0] * element.bytes() as u64).next_multiple_of(16) + gap;
        for extent in &extents[1..] {
            strides.push(stride);
            stride *= extent;
        }
        let map = TensorMap {
            element,
            address: 0,
            extents: extents.to_vec(),
            strides,
            steps: vec![1; extents.len()],
            mode,
            swizzle: Swizzle::None,
        };
        Box { kernel, map, at: at.to_vec(), offsets: Vec::new() }
    }

    fn tiled(kernel: &'static str, element: TensorType, extents: &[u64], of_box: &[u32], at: &[i32]) -> Box {
        Box::new(kernel, element, extents, 16, TensorMode::Tiled { extents: of_box.to_vec() }, at)
    }

    fn swizzled(self, swizzle: Swizzle) -> Box {
        Box { map: TensorMap { swizzle, ..self.map }, ..self }
    }

    fn stepping(self, steps: &[u32]) -> Box {
        Box { map: TensorMap { steps: steps.to_vec(), ..self.map }, ..self }
    }

    fn shifted(self, offsets: &[u32]) -> Box {
        Box { offsets: offsets.to_vec(), ..self }
    }

    fn bytes_of_tensor(&self) -> usize {
        let map = &self.map;
        let last = map.strides.last().zip(map.extents.last());
        last.map_or(map.extents[0] as usize * map.element.bytes(), |(stride, extent)| (stride * extent) as usize)
    }

    /// For each element of the box in order: its coordinates.
    fn elements(&self) -> Vec<Vec<i64>> {
        let start: Vec<i64> = self.at.iter().map(|&at| at.into()).collect();
        let step = |i: usize| i64::from(self.map.steps[i]);
        match &self.map.mode {
            TensorMode::Tiled { extents } => {
                let mut all = vec![Vec::new()];
                // The slowest dimension varies least.
                for i in (0..extents.len()).rev() {
                    let step = if i == 0 { 1 } else { step(i) };
                    let along = (0..i64::from(extents[i])).step_by(step as usize).map(|j| start[i] + j);
                    let along: Vec<i64> = along.collect();
                    let longer = |rest: Vec<i64>| along.iter().map(move |&at| [&[at], &rest[..]].concat()).collect();
                    all = all.into_iter().flat_map(|rest| -> Vec<Vec<i64>> { longer(rest) }).collect();
                }
                all
            }
            TensorMode::Im2col { lower, upper, channels, pixels } => {
                // All base pixels of all images in order, from the first one asked for.
                let spatial = lower.len();
                let range = |i: usize| i64::from(lower[i])..self.map.extents[1 + i] as i64 + i64::from(upper[i]);
                let mut bases = vec![Vec::new()];
                for i in 0..spatial {
                    let along: Vec<i64> = range(i).step_by(step(1 + i) as usize).collect();
                    let all =
                        along.iter().flat_map(|&at| bases.iter().map(move |b: &Vec<i64>| [&b[..], &[at]].concat()));
                    bases = all.collect();
                }
                let first = bases.iter().position(|b| *b == start[1..=spatial]).expect("a base pixel");
                let mut all = Vec::new();
                for p in 0..*pixels as usize {
                    let (image, base) = ((first + p) / bases.len(), (first + p) % bases.len());
                    let offsets = bases[base].iter().zip(&self.offsets).map(|(b, &o)| b + i64::from(o));
                    let pixel: Vec<i64> = offsets.chain([start[spatial + 1] + image as i64]).collect();
                    for c in 0..i64::from(*channels) {
                        all.push([&[start[0] + c], &pixel[..]].concat());
                    }
                }
                all
            }
        }
    }

    /// Where an element is in the tensor, unless it is outside of it.
    fn place(&self, element: &[i64]) -> Option<usize> {
        let inside = element.iter().zip(&self.map.extents).all(|(&at, &extent)| (0..extent as i64).contains(&at));
        let outer = element[1..].iter().zip(&self.map.strides).map(|(&at, &stride)| at * stride as i64).sum::<i64>();
        inside.then(|| outer as usize + element[0] as usize * self.map.element.bytes())
    }

    /// Where byte `at` of the box is in shared memory, as tables of the PTX ISA show swizzles.
    fn swizzle(&self, at: usize) -> usize {
        let (line, chunk) = (at / 128, at / 16 % 8);
        let chunk = match self.map.swizzle {
            Swizzle::None => chunk,
            Swizzle::B32 => chunk & 6 | (chunk + line) & 1,
            Swizzle::B64 => chunk & 4 | (chunk ^ line) & 3,
            Swizzle::B128 => (chunk ^ line) & 7,
        };
        128 * line + 16 * chunk + at % 16
    }

    fn run(&self, module: &Module, gpu: &Gpu, address: u64, x: u64, out: u64, bytes: usize) -> Result<(), Fault> {
        let map = TensorMap { address, ..self.map.clone() }.encode().unwrap();
        let mut params = Params::default().map(&map).u64(x).u64(out).u32(bytes as u32);
        for i in 0..5 {
            params = params.u32(self.at.get(i).copied().unwrap_or(0) as u32);
        }
        for i in 0..3 {
            params = params.u32(self.offsets.get(i).copied().unwrap_or(0));
        }
        params.0.resize(module.param_bytes(self.kernel).unwrap(), 0);
        let launch = Launch { dynamic_shared: bytes.next_multiple_of(1024) as u32, ..Launch::linear(1, 64) };
        gpu.launch(module, self.kernel, &launch, &params.0).map(|_| ())
    }

    /// Copies to shared memory, and compares what came there.
    fn check_load(&self, module: &Module, config: Config) {
        let gpu = Gpu::new(config);
        let size = self.map.element.bytes();
        let rounds = |bytes: &[u8]| -> Vec<u8> {
            if self.map.element != TensorType::TF32 {
                return bytes.to_vec();
            }
            let bits = u32::from_le_bytes(bytes.try_into().unwrap());
            ((bits + 0x1000) & !0x1FFF).to_le_bytes().to_vec()
        };
        let mut tensor: Vec<u8> = (0..self.bytes_of_tensor()).map(|i| (i * 7 + i / 251) as u8 & 0x3F).collect();
        tensor.resize(tensor.len().next_multiple_of(16), 0);
        let address = upload_bytes(&gpu, "tensor", &tensor);
        let elements = self.elements();
        let bytes = elements.len() * size;
        let out = gpu.alloc(bytes, "out").unwrap();
        self.run(module, &gpu, address, 0, out, bytes)
            .unwrap_or_else(|e| panic!("{} {:?}: {e}", self.kernel, self.map));
        let mut got = vec![0; bytes];
        gpu.read(out, &mut got).unwrap();
        for (i, element) in elements.iter().enumerate() {
            let right = self.place(element).map_or(vec![0; size], |at| rounds(&tensor[at..at + size]));
            let at = self.swizzle(i * size);
            assert_eq!(got[at..at + size], right, "{} {:?} element {element:?}", self.kernel, self.map);
        }
    }

    /// Copies from shared memory, and compares the whole tensor.
    fn check_store(&self, module: &Module, config: Config) {
        let gpu = Gpu::new(config);
        let size = self.map.element.bytes();
        let elements = self.elements();
        let bytes = elements.len() * size;
        let image: Vec<u8> = (0..bytes).map(|i| (i * 5 + i / 253) as u8 | 1).collect();
        let mut right = vec![0; self.bytes_of_tensor()];
        let address = upload_bytes(&gpu, "tensor", &right);
        let x = upload_bytes(&gpu, "image", &image);
        self.run(module, &gpu, address, x, 0, bytes).unwrap_or_else(|e| panic!("{} {:?}: {e}", self.kernel, self.map));
        for (i, element) in elements.iter().enumerate() {
            if let Some(to) = self.place(element) {
                let at = self.swizzle(i * size);
                right[to..to + size].copy_from_slice(&image[at..at + size]);
            }
        }
        let mut got = vec![0; right.len()];
        gpu.read(address, &mut got).unwrap();
        assert!(got == right, "{} {:?}", self.kernel, self.map);
    }
}

fn im2col(kernel: &'static str, extents: &[u64], corners: (&[i32], &[i32]), shape: (u32, u32), at: &[i32]) -> Box {
    let (lower, upper, channels, pixels) = (corners.0.to_vec(), corners.1.to_vec(), shape.0, shape.1);
    Box::new(kernel, TensorType::BF16, extents, 0, TensorMode::Im2col { lower, upper, channels, pixels }, at)
}

#[test]
fn boxes() {
    use TensorType::*;
    let loads = [
        Box::tiled("load_1d", F32, &[37], &[16], &[28]),
        Box::tiled("load_2d", U8, &[70, 9], &[32, 5], &[-3, 6]),
        Box::tiled("load_2d", U16, &[64, 20], &[64, 24], &[0, -2]).swizzled(Swizzle::B128),
        Box::tiled("load_2d", BF16, &[50, 20], &[32, 24], &[32, 3]).swizzled(Swizzle::B64),
        Box::tiled("load_2d", F16, &[50, 40], &[16, 24], &[-8, 3]).swizzled(Swizzle::B32),
        Box::tiled("load_2d", TF32, &[33, 12], &[32, 8], &[4, 2]).swizzled(Swizzle::B128),
        Box::tiled("load_2d", BF16, &[8, 40], &[8, 32], &[0, 1]).stepping(&[1, 3]),
        Box::tiled("load_3d", U32, &[12, 7, 5], &[8, 3, 4], &[6, -1, 3]),
        Box::tiled("load_4d", BF16, &[64, 7, 6, 3], &[64, 4, 2, 2], &[0, -1, 5, 1]).swizzled(Swizzle::B128),
        Box::tiled("load_4d", BF16, &[16, 9, 9, 2], &[16, 6, 6, 2], &[0, 0, 1, 0]).stepping(&[1, 2, 2, 1]),
        Box::tiled("load_5d", F32, &[4, 3, 4, 3, 2], &[4, 2, 3, 2, 2], &[0, 2, 1, 2, 1]),
        // Taps of a 3×3 convolution with padding 1, of stride 1 and 2; one of 7×7; one dimension; three.
        im2col("im2col_4d", &[64, 7, 5, 3], (&[-1, -1], &[-1, -1]), (64, 64), &[0, 3, 2, 1])
            .shifted(&[2, 0])
            .swizzled(Swizzle::B128),
        im2col("im2col_4d", &[40, 8, 9, 2], (&[-1, -1], &[-1, -1]), (32, 40), &[32, -1, 1, 0])
            .stepping(&[1, 2, 2, 1])
            .shifted(&[0, 2])
            .swizzled(Swizzle::B64),
        im2col("im2col_4d", &[8, 12, 11, 2], (&[-3, -3], &[-3, -3]), (8, 48), &[0, -1, -3, 0])
            .stepping(&[1, 2, 2, 1])
            .shifted(&[6, 5]),
        im2col("im2col_4d", &[16, 5, 5, 2], (&[0, 0], &[0, 0]), (16, 33), &[0, 2, 3, 0])
            .shifted(&[0, 0])
            .swizzled(Swizzle::B32),
        im2col("im2col_3d", &[64, 19, 3], (&[-2], &[-2]), (64, 30), &[0, 9, 1]).shifted(&[4]).swizzled(Swizzle::B128),
        im2col("im2col_5d", &[8, 4, 5, 3, 2], (&[-1, -1, -1], &[-1, -1, -1]), (8, 50), &[0, 2, 1, 0, 0])
            .shifted(&[1, 2, 0]),
    ];
    let stores = [
        Box::tiled("store_1d", F32, &[37], &[16], &[28]),
        Box::tiled("store_2d", BF16, &[72, 20], &[64, 24], &[16, -2]).swizzled(Swizzle::B128),
        Box::tiled("store_2d", BF16, &[27, 9], &[32, 4], &[0, 6]),
        Box::tiled("store_4d", BF16, &[32, 5, 6, 2], &[32, 3, 4, 2], &[0, 3, -1, 1]).swizzled(Swizzle::B64),
    ];
    for (_, module) in kernels("sm90_copies", ARCHS).iter() {
        for async_copies in [AsyncCopies::Late, AsyncCopies::Early] {
            for seed in 0..2 {
                let config = Config { async_copies, ..config(seed) };
                loads.iter().for_each(|load| load.check_load(module, config.clone()));
                stores.iter().for_each(|store| store.check_store(module, config.clone()));
            }
        }
    }
}

#[test]
fn rules() {
    use FaultKind::*;
    // Whether it shows only where copies land late.
    let cases: [(&str, FaultKind, &str, bool); 12] = [
        ("no_wait", InFlight, "reads byte", false),
        ("no_barrier_fence", Unfenced, "mbarrier", false),
        ("no_init", Mbarrier, "none has been initialised", false),
        ("overwrites", InFlight, "writes byte", false),
        ("misaligned", Misaligned, "no multiple of 16", false),
        ("past_end", OutOfBounds, "past the end of buffer `x`", false),
        ("no_proxy_fence", Unfenced, "fence.proxy.async", false),
        ("early_reuse", InFlight, "is still reading", false),
        ("early_return", InFlight, "wait_group.read is missing", false),
        ("leaves_copy", InFlight, "is still to fill its shared memory", true),
        ("reads_back", UninitialisedMemory, "byte 20 of buffer `out`", true),
        ("wrong_parity", InFlight, "reads byte", true),
    ];
    let run = |module: &Module, name: &str, config: Config| -> Result<Vec<u32>, Fault> {
        let gpu = Gpu::new(config);
        let x = upload_u32(&gpu, "x", &(0..384).collect::<Vec<_>>());
        let out = gpu.alloc(4 * 129, "out")?;
        launch(&gpu, module, &format!("bytes_{name}"), 1, 128, Params::default().u64(x).u64(out))?;
        download_u32(&gpu, out, 128)
    };
    for (arch, module) in kernels("sm90_copies", ARCHS).iter() {
        for async_copies in [AsyncCopies::Late, AsyncCopies::Early] {
            for seed in 0..4 {
                let config = Config { async_copies, ..config(seed) };
                let out = run(module, "right", config.clone()).unwrap_or_else(|e| panic!("{arch} seed {seed}: {e}"));
                assert_eq!(out, (0..128).map(|i| 2 * i).collect::<Vec<_>>(), "{arch}");
                for (name, kind, says, late) in cases {
                    if !late || async_copies == AsyncCopies::Late {
                        let fault = run(module, name, config.clone()).expect_err(name);
                        assert_eq!(fault.kind, kind, "{arch} {name} seed {seed}: {fault}");
                        assert!(fault.message.contains(says), "{arch} {name}: {fault}");
                    }
                }
            }
        }
    }
}

#[test]
fn copies_that_do_not_fit() {
    let right = Box::tiled("load_2d", TensorType::BF16, &[64, 20], &[64, 16], &[0, 0]);
    for (arch, module) in kernels("sm90_copies", ARCHS).iter() {
        let run = |load: &Box, tensor: usize, bytes: usize| {
            let gpu = Gpu::new(config(0));
            let address = upload_bytes(&gpu, "tensor", &vec![0; tensor]);
            let out = gpu.alloc(bytes, "out").unwrap();
            load.run(module, &gpu, address, 0, out, bytes)
        };
        let whole = right.bytes_of_tensor();
        run(&right, whole, 2048).unwrap_or_else(|e| panic!("{arch}: {e}"));
        let cases = [
            (right.clone(), whole - 2000, 2048, FaultKind::OutOfBounds, "past the end of buffer `tensor`"),
            (right.clone(), whole, 1024, FaultKind::OutOfBounds, "of shared memory, and the block has"),
            (Box { kernel: "load_3d", ..right.clone() }, whole, 2048, FaultKind::Unsupported, "3 coordinates"),
            (Box { kernel: "im2col_4d", ..right.clone() }, whole, 2048, FaultKind::Unsupported, "4 coordinates"),
        ];
        for (load, tensor, bytes, kind, says) in cases {
            let load = Box { at: vec![0, 12], ..load };
            let fault = run(&load, tensor, bytes).expect_err(says);
            assert_eq!(fault.kind, kind, "{arch}: {fault}");
            assert!(fault.message.contains(says), "{arch}: {fault}");
        }
    }
}

#[test]
fn maps_that_the_driver_refuses() {
    let tiled = |extents: &[u32]| TensorMode::Tiled { extents: extents.to_vec() };
    let im2col = |lower: i32, channels, pixels| TensorMode::Im2col {
        lower: vec![lower, 0],
        upper: vec![0, 0],
        channels,
        pixels,
    };
    let two = Box::tiled("", TensorType::BF16, &[64, 20], &[64, 8], &[0, 0]).map;
    let four = TensorMap {
        mode: im2col(-1, 64, 128),
        ..Box::tiled("", TensorType::BF16, &[64, 9, 9, 2], &[8; 4], &[0; 4]).map
    };
    assert!(two.encode().is_ok() && four.encode().is_ok());
    let cases = [
        (TensorMap { address: 8, ..two.clone() }, "no multiple of 16"),
        (TensorMap { extents: vec![64, 0], ..two.clone() }, "an extent of 0"),
        (TensorMap { extents: vec![64], ..two.clone() }, "1 strides and 2 steps for 1 dimensions"),
        (TensorMap { extents: vec![], ..two.clone() }, "0 dimensions"),
        (TensorMap { strides: vec![136], ..two.clone() }, "a stride of 136"),
        (TensorMap { strides: vec![1 << 40], ..two.clone() }, "a stride of"),
        (TensorMap { steps: vec![1, 9], ..two.clone() }, "a step of 9"),
        (TensorMap { mode: tiled(&[64]), ..two.clone() }, "a box of 1 dimensions"),
        (TensorMap { mode: tiled(&[64, 257]), ..two.clone() }, "extent of 257"),
        (TensorMap { mode: tiled(&[12, 8]), ..two.clone() }, "rows of 24 bytes"),
        (TensorMap { swizzle: Swizzle::B64, ..two.clone() }, "rows of 128 bytes in a swizzle of 64"),
        (TensorMap { mode: im2col(0, 64, 128), ..two }, "corners of 2 and 2 dimensions of 2"),
        (TensorMap { mode: im2col(-129, 64, 128), ..four.clone() }, "a corner of -129"),
        (TensorMap { mode: im2col(0, 264, 128), ..four.clone() }, "264 channels"),
        (TensorMap { mode: im2col(0, 64, 1025), ..four }, "1025 pixels"),
    ];
    for (map, says) in cases {
        let error = map.encode().expect_err(says);
        assert!(error.contains(says), "{error}");
    }
}
