//! `wgmma`: products of factors in every layout of shared memory against plain Rust, and its rules kept and broken.

mod common;

use common::*;
use half::{bf16, f16};
use simt::{AsyncCopies, Config, Counters, Fault, FaultKind, Gpu, Launch, Module};

const ARCHS: &[&str] = &["sm_90a"];
/// Bytes of the image of shared memory: factor a in the first half.
const IMAGE: usize = 192 << 10;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Type {
    Bf16,
    F16,
    Tf32,
}

impl Type {
    fn bytes(self) -> usize {
        if self == Type::Tf32 { 4 } else { 2 }
    }

    /// Elements along k.
    fn depth(self) -> usize {
        32 / self.bytes()
    }

    /// A number that the type holds, and its bits.
    fn round(self, x: f32) -> (f32, Vec<u8>) {
        match self {
            Type::Bf16 => (bf16::from_f32(x).to_f32(), bf16::from_f32(x).to_le_bytes().to_vec()),
            Type::F16 => (f16::from_f32(x).to_f32(), f16::from_f32(x).to_le_bytes().to_vec()),
            Type::Tf32 => {
                let bits = x.to_bits() & !0x1FFF;
                (f32::from_bits(bits), bits.to_le_bytes().to_vec())
            }
        }
    }
}

/// How a factor lies in shared memory: as the canonical layouts of the PTX ISA, "Asynchronous warpgroup level matrix
/// shared memory layout".
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Bytes of the swizzle; 0 for none.
    swizzle: usize,
    /// Rows (or columns) follow each other, not elements along k.
    transposed: bool,
    leading: usize,
    stride: usize,
    start: usize,
}

impl Layout {
    /// Where element (i, k) is, in bytes.
    fn place(&self, ty: Type, i: usize, k: usize) -> usize {
        let each = 16 / ty.bytes();
        // In core matrices of eight lines of 16 bytes: line and chunk.
        let (line, chunk, within) = if self.transposed { (k, i / each, i % each) } else { (i, k / each, k % each) };
        let at = if self.swizzle == 0 {
            // `leading` goes from one core matrix to the next along k, `stride` along rows: each a block of 128 bytes.
            let (along_k, along_rows) = if self.transposed { (line / 8, chunk) } else { (chunk, line / 8) };
            along_k * self.leading + along_rows * self.stride + line % 8 * 16
        } else {
            let chunks = self.swizzle / 16;
            let (block, column) = (chunk / chunks, chunk % chunks);
            let block = block * self.leading + line / 8 * self.stride;
            block + line % 8 * self.swizzle + column * 16
        };
        let at = self.start + at;
        // Lines of 128 bytes repeat a pattern: chunk c of line l is at c ^ l, as far as the swizzle goes.
        let (line, chunk) = (at / 128, at / 16 % 8);
        let mask = if self.swizzle == 0 { 0 } else { self.swizzle / 16 - 1 };
        line * 128 + (chunk ^ (line & mask)) * 16 + within * ty.bytes()
    }

    /// The descriptor, without its start.
    fn descriptor(&self) -> u64 {
        let kind = match self.swizzle {
            128 => 1,
            64 => 2,
            32 => 3,
            _ => 0,
        };
        (self.leading as u64 / 16) << 16 | (self.stride as u64 / 16) << 32 | kind << 62
    }

    /// The layouts to try for a factor of so many rows.
    fn all(transposed: bool, rows: usize, ty: Type) -> Vec<Layout> {
        let mut all = Vec::new();
        for (leading, stride) in [(128, 256), (rows * 16, 128), (144, 320)] {
            all.push(Layout { swizzle: 0, transposed, leading, stride, start: 0 });
        }
        for swizzle in [32, 64, 128] {
            let span = swizzle / ty.bytes();
            if transposed {
                // Two groups along k follow each other; then all groups of rows.
                if rows.is_multiple_of(span) || rows < span {
                    let group = 8 * swizzle;
                    all.push(Layout { swizzle, transposed, leading: 2 * group, stride: group, start: 0 });
                    let far = rows.div_ceil(span) * group;
                    all.push(Layout { swizzle, transposed, leading: group, stride: far, start: 0 });
                }
            } else {
                // Steps along k within the swizzle move the start.
                for start in (0..swizzle).step_by(32) {
                    all.push(Layout { swizzle, transposed, leading: 16, stride: 8 * swizzle, start });
                }
                all.push(Layout { swizzle, transposed, leading: 16, stride: 3072, start: 0 });
            }
        }
        all
    }
}

struct Product {
    name: &'static str,
    ty: Type,
    n: usize,
    a_transposed: bool,
    b_transposed: bool,
    a_in_registers: bool,
    sign: f64,
}

const fn product(name: &'static str, ty: Type, n: usize) -> Product {
    Product { name, ty, n, a_transposed: false, b_transposed: false, a_in_registers: false, sign: 1.0 }
}

const PRODUCTS: [Product; 10] = [
    product("bf16_8", Type::Bf16, 8),
    product("bf16_64", Type::Bf16, 64),
    Product { a_transposed: true, ..product("bf16_64_ta", Type::Bf16, 64) },
    Product { b_transposed: true, sign: -1.0, ..product("bf16_64_tb", Type::Bf16, 64) },
    Product { a_transposed: true, b_transposed: true, sign: -1.0, ..product("bf16_24_tab", Type::Bf16, 24) },
    Product { b_transposed: true, ..product("f16_128_tb", Type::F16, 128) },
    product("bf16_256", Type::Bf16, 256),
    product("tf32_32", Type::Tf32, 32),
    Product { b_transposed: true, a_in_registers: true, ..product("bf16_16_ra", Type::Bf16, 16) },
    Product { a_in_registers: true, ..product("tf32_8_ra", Type::Tf32, 8) },
];

/// Row and column of register `i` of a thread of the warpgroup.
fn fragment(thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    (16 * warp + lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2)
}

impl Product {
    /// Runs it with factors in these layouts; the largest error, and what was counted.
    fn error(
        &self,
        module: &Module,
        (a, b): (Layout, Layout),
        add: bool,
        config: Config,
    ) -> Result<(f64, Counters), Fault> {
        let (ty, n, depth) = (self.ty, self.n, self.ty.depth());
        let mut image = vec![0; IMAGE];
        let mut put = |count: usize, seed: u32, place: &dyn Fn(usize, usize) -> usize| -> Vec<f32> {
            let mut values = Vec::new();
            for (at, x) in numbers(count * depth, seed).into_iter().enumerate() {
                let (value, bits) = ty.round(x);
                let to = place(at / depth, at % depth);
                image[to..to + bits.len()].copy_from_slice(&bits);
                values.push(value);
            }
            values
        };
        let rows = |i: usize, k: usize| i * 32 + k * ty.bytes();
        let in_a = |i: usize, k: usize| if self.a_in_registers { rows(i, k) } else { a.place(ty, i, k) };
        let fa = put(64, 1, &in_a);
        let fb = put(n, 2, &|i, k| IMAGE / 2 + b.place(ty, i, k));
        let c = numbers(64 * n, 3);
        let gpu = Gpu::new(config);
        let (di, dc) = (upload_bytes(&gpu, "image", &image), upload(&gpu, "c", &c));
        let out = gpu.alloc(4 * 64 * n, "out")?;
        let params = Params::default().u64(di).u64(dc).u64(out).u64(a.descriptor()).u64(b.descriptor());
        let (a_start, b_start) = (a.start as u32, (IMAGE / 2 + b.start) as u32);
        let params = params.u32(IMAGE as u32).u32(a_start).u32(b_start).u32(add.into());
        let launch = Launch { dynamic_shared: IMAGE as u32, ..Launch::linear(1, 128) };
        let counters = gpu.launch(module, self.name, &launch, &params.0)?;
        let got = download(&gpu, out, 64 * n)?;
        let each = n / 2;
        let mut worst = 0f64;
        for (at, &got) in got.iter().enumerate() {
            let (row, column) = fragment(at / each, at % each);
            let pairs = fa[row * depth..][..depth].iter().zip(&fb[column * depth..][..depth]);
            let sum: f64 = pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            let right = self.sign * sum + if add { f64::from(c[at]) } else { 0.0 };
            worst = worst.max((f64::from(got) - right).abs());
        }
        Ok((worst, counters))
    }
}

#[test]
fn layouts() {
    for (arch, module) in kernels("sm90_products", ARCHS).iter() {
        for product in &PRODUCTS {
            let of_a = Layout::all(product.a_transposed, 64, product.ty);
            let of_b = Layout::all(product.b_transposed, product.n, product.ty);
            let count = if product.a_in_registers { of_b.len() } else { of_a.len().max(of_b.len()) };
            for at in 0..count {
                let (a, b) = (of_a[at % of_a.len()], of_b[(at + 1) % of_b.len()]);
                let name = product.name;
                let result = product.error(module, (a, b), at % 3 != 0, config(at as u64 % 4));
                let (error, counters) = result.unwrap_or_else(|e| panic!("{arch} {name} {a:?} {b:?}: {e}"));
                assert!(error < 1e-5, "{arch} {name} {a:?} {b:?}: off by {error}");
                assert_eq!(counters.wgmma, 1, "{arch} {name}");
                assert_eq!(counters.wgmma_products, (64 * product.n * product.ty.depth()) as u64, "{arch} {name}");
            }
        }
        // A layout that is not the image's.
        let layouts = Layout::all(false, 64, Type::Bf16);
        let product = &PRODUCTS[1];
        let right = layouts[layouts.len() - 1];
        let gap = Layout { stride: 1024, ..right };
        let (error, _) = product.error(module, (right, right), false, config(0)).unwrap();
        assert!(error < 1e-5, "{arch}: off by {error}");
        assert!(gap.place(Type::Bf16, 9, 0) != right.place(Type::Bf16, 9, 0));
    }
}

fn rule(module: &Module, entry: &str, config: Config) -> Result<Vec<f32>, Fault> {
    let gpu = Gpu::new(config);
    let image: Vec<u8> = numbers(2048, 5).into_iter().flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect();
    let image = upload_bytes(&gpu, "image", &image);
    let out = gpu.alloc(4 * 512, "out")?;
    let params = Params::default().u64(image).u64(0).u64(out).u64(0).u64(0).u32(4096).u32(0).u32(0).u32(0);
    launch(&gpu, module, entry, 1, 128, params)?;
    download(&gpu, out, 512)
}

#[test]
fn rules() {
    use FaultKind::*;
    let cases: [(&str, FaultKind, &str); 6] = [
        ("proxy", Unfenced, "fence.proxy.async"),
        ("groups", InFlight, "still computing"),
        ("leave", InFlight, "wgmma.wait_group is missing"),
        ("overwrite", InFlight, "is still reading"),
        ("fence", Unfenced, "no wgmma.fence"),
        ("past", OutOfBounds, "of shared memory, and the block has"),
    ];
    for (arch, module) in kernels("sm90_products", ARCHS).iter() {
        for (name, kind, says) in cases {
            for seed in 0..4 {
                for async_copies in [AsyncCopies::Late, AsyncCopies::Early] {
                    let config = Config { async_copies, ..config(seed) };
                    let right = rule(module, &format!("{name}_right"), config.clone());
                    right.unwrap_or_else(|e| panic!("{arch} {name} right, seed {seed}: {e}"));
                    let fault = rule(module, &format!("{name}_broken"), config).expect_err(name);
                    assert_eq!(fault.kind, kind, "{arch} {name} seed {seed}: {fault}");
                    assert!(fault.message.contains(says), "{arch} {name}: {fault}");
                }
            }
        }
    }
}
