//! Asynchronous copies, matrix instructions and cooperative launches: right results, and planted bugs caught.

mod common;

use common::*;
use half::{bf16, f16};
use simt::{AsyncCopies, Config, Counters, Fault, FaultKind, Gpu, Launch, Module};

const ARCHS: &[&str] = &["sm_80", "sm_90a", "sm_120"];

fn configs() -> impl Iterator<Item = Config> {
    (0..4).flat_map(|seed| {
        let with = move |async_copies| Config { seed, async_copies, patience: 200_000, ..Config::default() };
        [with(AsyncCopies::Late), with(AsyncCopies::Early)]
    })
}

fn run(module: &Module, entry: &str, config: Config) -> Result<Vec<u32>, Fault> {
    let gpu = Gpu::new(config);
    let x = upload(&gpu, "x", &numbers(384, 9));
    let out = gpu.alloc(4 * 64, "out")?;
    launch(&gpu, module, entry, 1, 64, Params::default().u64(x).u64(out))?;
    download_u32(&gpu, out, 64)
}

#[test]
fn copies() {
    use FaultKind::*;
    let cases: [(&str, &[FaultKind], &str); 7] = [
        ("no_wait", &[InFlight, UninitialisedMemory], "shared memory"),
        ("no_barrier", &[InFlight, Race, UninitialisedMemory], "shared memory"),
        ("stages", &[InFlight], "cp.async"),
        ("overwrite", &[InFlight, Race], "shared memory"),
        ("copy_misaligned", &[Misaligned], "an asynchronous copy from global memory of 16 bytes"),
        ("copy_past", &[OutOfBounds], "past the end of buffer `x`"),
        ("store_in_flight", &[InFlight], "writes byte"),
    ];
    for (arch, module) in kernels("sm80", ARCHS).iter() {
        for (name, kinds, says) in cases {
            let mut results = Vec::new();
            for config in configs() {
                let out = run(module, &format!("{name}_right"), config.clone());
                results.push(out.unwrap_or_else(|e| panic!("{arch} {name} right: {e}")));
                let fault = run(module, &format!("{name}_broken"), config.clone()).expect_err(name);
                assert!(kinds.contains(&fault.kind), "{arch} {name} {config:?}: {fault}");
                assert!(fault.message.contains(says), "{arch} {name}: {fault}");
            }
            assert!(results.windows(2).all(|w| w[0] == w[1]), "{arch} {name}: results differ");
        }
    }
}

type Product = Result<(Vec<f32>, Counters), Fault>;

fn gemm(module: &Module, entry: &str, a: &[u16], b: &[u16], config: Config) -> Product {
    let gpu = Gpu::new(config);
    let bytes = |v: &[u16]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let (da, db) = (upload_bytes(&gpu, "a", &bytes(a)), upload_bytes(&gpu, "b", &bytes(b)));
    let out = gpu.alloc(4 * 128, "out")?;
    let counters = launch(&gpu, module, entry, 1, 32, Params::default().u64(da).u64(db).u64(out))?;
    Ok((download(&gpu, out, 128)?, counters))
}

fn product(a: &[f32], b: &[f32], k: usize) -> Vec<f64> {
    let dot = |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * 8 + j])).sum();
    (0..128).map(|at| dot(at / 8, at % 8)).collect()
}

fn close(got: &[f32], right: &[f64], tolerance: f64) -> bool {
    got.iter().zip(right).all(|(&g, &r)| (f64::from(g) - r).abs() <= tolerance)
}

#[test]
fn matrices() {
    let (a, b) = (numbers(256, 11), numbers(128, 12));
    let of = |v: &[f32], f: fn(f32) -> u16| v.iter().map(|&v| f(v)).collect::<Vec<_>>();
    let from_bf16 = |v: &[u16]| v.iter().map(|&v| bf16::from_bits(v).to_f32()).collect::<Vec<_>>();
    let from_f16 = |v: &[u16]| v.iter().map(|&v| f16::from_bits(v).to_f32()).collect::<Vec<_>>();
    let to_bf16 = |v| bf16::from_f32(v).to_bits();
    let to_f16 = |v| f16::from_f32(v).to_bits();
    for (arch, module) in kernels("sm80", ARCHS).iter() {
        let run = |entry: &str, a: &[u16], b: &[u16]| gemm(module, entry, a, b, config(0));
        let (a16, b16) = (of(&a, to_bf16), of(&b, to_bf16));
        let right = product(&from_bf16(&a16), &from_bf16(&b16), 16);
        let (out, counters) = run("gemm_bf16", &a16, &b16).unwrap_or_else(|e| panic!("{arch}: {e}"));
        assert!(close(&out, &right, 1e-5), "{arch}: bf16");
        assert_eq!(counters.mma, 1);
        let (conflicting, more) = run("gemm_conflicts", &a16, &b16).unwrap();
        assert!(close(&conflicting, &right, 1e-5), "{arch}: conflicts change no result");
        assert!(more.bank_conflicts() > counters.bank_conflicts() + 20, "{arch}: {more:?} {counters:?}");
        let (swapped, _) = run("gemm_swapped", &a16, &b16).unwrap();
        assert!(!close(&swapped, &right, 1e-2), "{arch}: swapped operands must show");
        for config in configs() {
            let fault = gemm(module, "gemm_race", &a16, &b16, config).expect_err("a race");
            assert_eq!(fault.kind, FaultKind::Race, "{fault}");
        }
        let fault = run("gemm_misaligned", &a16, &b16).expect_err("misaligned rows");
        assert_eq!(fault.kind, FaultKind::Misaligned, "{fault}");
        let (a16, b16) = (of(&a, to_f16), of(&b, to_f16));
        let (out, _) = run("gemm_f16", &a16, &b16).unwrap();
        assert!(close(&out, &product(&from_f16(&a16), &from_f16(&b16), 16), 1e-5), "{arch}: f16");
    }
}

#[test]
fn tf32() {
    let (a, b) = (numbers(128, 13), numbers(64, 14));
    // Rounded to ten bits of fraction, ties away.
    let round = |v: &f32| f32::from_bits((v.to_bits() + 0x1000) & !0x1FFF);
    let (ra, rb) = (a.iter().map(round).collect::<Vec<_>>(), b.iter().map(round).collect::<Vec<_>>());
    for (arch, module) in kernels("sm80", ARCHS).iter() {
        let gpu = Gpu::new(config(0));
        let (da, db) = (upload(&gpu, "a", &a), upload(&gpu, "b", &b));
        let out = gpu.alloc(4 * 128, "out").unwrap();
        let params = Params::default().u64(da).u64(db).u64(out);
        launch(&gpu, module, "gemm_tf32", 1, 32, params).unwrap_or_else(|e| panic!("{arch}: {e}"));
        assert!(close(&download(&gpu, out, 128).unwrap(), &product(&ra, &rb, 8), 1e-6), "{arch}");
    }
}

#[test]
fn matrix_in_branch() {
    for (_, module) in kernels("sm80", ARCHS).iter() {
        let run = |entry: &str| {
            let gpu = Gpu::new(config(0));
            let (x, out) = (upload(&gpu, "x", &numbers(32, 1)), gpu.alloc(128, "out")?);
            launch(&gpu, module, entry, 1, 32, Params::default().u64(x).u64(out))
        };
        run("matrix_in_branch_right").unwrap();
        let fault = run("matrix_in_branch_broken").expect_err("a partial warp");
        assert_eq!(fault.kind, FaultKind::Divergence, "{fault}");
    }
}

fn grid(module: &Module, entry: &str, config: Config, cooperative: bool) -> Result<Vec<f32>, Fault> {
    let blocks = 4;
    let gpu = Gpu::new(config);
    let x = upload(&gpu, "x", &numbers(64, 15));
    let (out, scratch) = (gpu.alloc(4 * 64 * blocks, "out")?, gpu.alloc(4 * 64 * blocks, "scratch")?);
    let counter = upload_u32(&gpu, "counter", &[0]);
    let params = Params::default().u64(x).u64(out).u64(scratch).u64(counter);
    let launch = Launch { cooperative, ..Launch::linear(blocks as u32, 64) };
    gpu.launch(module, entry, &launch, &params.0)?;
    download(&gpu, out, 64 * blocks)
}

#[test]
fn cooperative() {
    use FaultKind::*;
    let x = numbers(64, 15);
    let mut right: Vec<f32> = (0..256).map(|i| x[i % 64]).collect();
    for _ in 0..3 {
        right = (0..256).map(|i| right[(i + 64) % 256] + right[i % 64]).collect();
    }
    for (arch, module) in kernels("sm80", ARCHS).iter() {
        for config in configs() {
            let out = grid(module, "grid_right", config.clone(), true).unwrap_or_else(|e| panic!("{arch}: {e}"));
            assert_eq!(out, right, "{arch}");
            grid(module, "grid_acquire", config.clone(), true).unwrap_or_else(|e| panic!("{arch}: {e}"));
            let cases: [(&str, &[FaultKind]); 3] = [
                ("grid_no_wait", &[Race, UninitialisedMemory]),
                ("grid_no_fence", &[Race]),
                ("grid_missing", &[Deadlock]),
            ];
            for (entry, kinds) in cases {
                let fault = grid(module, entry, config.clone(), true).expect_err(entry);
                assert!(kinds.contains(&fault.kind), "{arch} {entry} seed {}: {fault}", config.seed);
            }
        }
        let fault = grid(module, "grid_right", config(0), false).expect_err("blocks that wait for each other");
        assert_eq!(fault.kind, Deadlock, "{fault}");
        assert!(fault.message.contains("ordinary launch"), "{fault}");
    }
}
