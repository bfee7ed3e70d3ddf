//! A GEMM in the manner of Hopper (TMA, mbarriers, clusters, `wgmma`): right under every schedule, and each mistake in
//! it caught.

mod common;

use common::*;
use half::bf16;
use simt::{
    AsyncCopies, Config, Counters, Fault, FaultKind, Gpu, Launch, Module, Swizzle, TensorMap, TensorMode, TensorType,
};

const ARCHS: &[&str] = &["sm_90a"];
const TILE: u32 = 128;
const DEPTH: u32 = 64;
const STAGES: u32 = 3;

fn configs(seeds: std::ops::Range<u64>) -> impl Iterator<Item = Config> {
    seeds.flat_map(|seed| {
        let with = move |async_copies| Config { seed, async_copies, patience: 200_000, ..Config::default() };
        [with(AsyncCopies::Late), with(AsyncCopies::Early)]
    })
}

/// Numbers that bf16 holds, as bits and as they are.
fn halves(count: usize, seed: u32) -> (Vec<u8>, Vec<f32>) {
    let bits: Vec<bf16> = numbers(count, seed).into_iter().map(bf16::from_f32).collect();
    (bits.iter().flat_map(|b| b.to_le_bytes()).collect(), bits.iter().map(|b| b.to_f32()).collect())
}

/// Boxes of 64 columns and so many rows, of a matrix of bf16.
fn tiles(address: u64, rows: usize, columns: usize, height: u32) -> [u8; 128] {
    let map = TensorMap {
        element: TensorType::BF16,
        address,
        extents: vec![columns as u64, rows as u64],
        strides: vec![2 * columns as u64],
        steps: vec![1, 1],
        mode: TensorMode::Tiled { extents: vec![DEPTH, height] },
        swizzle: Swizzle::B128,
    };
    map.encode().unwrap()
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    a: Vec<u8>,
    b: Vec<u8>,
    right: Vec<f64>,
}

impl Case {
    fn new(m: usize, n: usize, k: usize) -> Case {
        let ((a, fa), (b, fb)) = (halves(m * k, 3), halves(n * k, 4));
        let dot = |row: usize, column: usize| -> f64 {
            let pairs = fa[row * k..][..k].iter().zip(&fb[column * k..][..k]);
            pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let right = (0..m * n).map(|at| dot(at / n, at % n)).collect();
        Case { m, n, k, a, b, right }
    }

    fn run(&self, module: &Module, mistake: u32, config: Config) -> Result<(Vec<f32>, Counters), Fault> {
        let entry = if mistake == 0 { "gemm_right" } else { "gemm_mistake" };
        let gpu = Gpu::new(config);
        let (a, b) = (upload_bytes(&gpu, "a", &self.a), upload_bytes(&gpu, "b", &self.b));
        let out = gpu.alloc(4 * self.m * self.n, "out")?;
        let params = Params::default()
            .map(&tiles(a, self.m, self.k, TILE))
            .map(&tiles(b, self.n, self.k, TILE / 2))
            .u64(out)
            .u32(self.k as u32)
            .u32(self.m as u32)
            .u32(self.n as u32)
            .u32(mistake);
        let mut params = params.0;
        params.resize(module.param_bytes(entry).unwrap(), 0);
        let grid = [(self.m as u32).div_ceil(2 * TILE) * 2, (self.n as u32).div_ceil(TILE), 1];
        let dynamic_shared = STAGES * 2 * 2 * TILE * DEPTH;
        let launch = Launch { grid, block: [384, 1, 1], dynamic_shared, cluster: [2, 1, 1], ..Launch::default() };
        let counters = gpu.launch(module, entry, &launch, &params)?;
        Ok((download(&gpu, out, self.m * self.n)?, counters))
    }

    fn fits(&self, out: &[f32]) -> bool {
        out.iter().zip(&self.right).all(|(&got, &right)| (f64::from(got) - right).abs() <= 1e-4)
    }
}

#[test]
fn right() {
    for (m, n, k) in [(200, 136, 328), (128, 64, 64)] {
        let case = Case::new(m, n, k);
        for (arch, module) in kernels("sm90_gemm", ARCHS).iter() {
            let mut seen = None;
            let threaded = Config { threads: 3, ..config(2) };
            for config in configs(0..5).chain([threaded]) {
                let (out, counters) =
                    case.run(module, 0, config.clone()).unwrap_or_else(|e| panic!("{arch} {config:?}: {e}"));
                assert!(case.fits(&out), "{arch} {config:?}");
                let steps = k.div_ceil(64) as u64;
                let tiles = 2 * m.div_ceil(256) as u64 * n.div_ceil(128) as u64;
                assert_eq!(counters.wgmma, tiles * steps * 2 * 4, "{arch}");
                assert_eq!(counters.wgmma_products, tiles * steps * 128 * 128 * 64, "{arch}");
                assert_eq!(counters.bulk_load_bytes, tiles * steps * (16384 + 8192), "{arch}");
                assert_eq!(counters.bulk_delivered_bytes, tiles * steps * 32768, "{arch}");
                assert_eq!(*seen.get_or_insert(counters), counters, "{arch} {config:?}: counters differ");
            }
        }
    }
}

#[test]
fn mistakes() {
    use FaultKind::*;
    // In the order of the kernel's `Mistake`.
    let cases: [(&str, &[FaultKind], &str); 13] = [
        ("no full wait", &[InFlight, UninitialisedMemory], "shared memory"),
        ("expects less", &[Mbarrier], "more have come"),
        ("expects more", &[Deadlock], "lacking 0 arrivals of 1 and 1024 bytes"),
        ("no product wait", &[InFlight], "still"),
        ("no product fence", &[Unfenced], "no wgmma.fence"),
        ("no empty wait", &[InFlight, Mbarrier, Race], ""),
        ("early release", &[InFlight, Race], "shared memory"),
        ("no init fence", &[Unfenced], "mbarrier"),
        ("no cluster sync", &[Race, Mbarrier], "mbarrier"),
        ("early exit", &[Race, InFlight], "block"),
        ("wrong swizzle", &[], ""),
        ("lane descriptors", &[Divergence], "different matrix descriptors"),
        ("three warps", &[Divergence, Deadlock], ""),
    ];
    let case = Case::new(256, 128, 448);
    for (arch, module) in kernels("sm90_gemm", ARCHS).iter() {
        for (number, (name, kinds, says)) in (1..).zip(cases) {
            for config in configs(0..3) {
                match case.run(module, number, config.clone()) {
                    Ok((out, _)) => {
                        assert!(kinds.is_empty() && !case.fits(&out), "{arch} {name} {config:?}: not caught")
                    }
                    Err(fault) => {
                        assert!(kinds.contains(&fault.kind), "{arch} {name} {config:?}: {fault}");
                        assert!(fault.message.contains(says), "{arch} {name}: {fault}");
                    }
                }
            }
        }
    }
}
