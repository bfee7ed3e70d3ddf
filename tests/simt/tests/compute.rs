//! Ordinary kernels give the right numbers, whatever the schedule and the number of threads.

mod common;

use common::*;
use simt::{Config, Gpu, Launch};

const ARCHS: &[&str] = &["sm_75", "sm_80", "sm_90a", "sm_120"];

#[test]
fn matmul() {
    let (m, n, k) = (45usize, 37usize, 50usize);
    let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
    for (arch, module) in kernels("compute", ARCHS).iter() {
        let mut all = Vec::new();
        for (seed, threads) in [(0, 1), (1, 1), (7, 2), (8, 3)] {
            let gpu = Gpu::new(Config { seed, threads, ..Config::default() });
            let (da, db) = (upload(&gpu, "a", &a), upload(&gpu, "b", &b));
            let dc = gpu.alloc(4 * m * n, "c").unwrap();
            let params = Params::default().u64(da).u64(db).u64(dc).u32(m as u32).u32(n as u32).u32(k as u32).u32(0);
            let grid = [n.div_ceil(16) as u32, m.div_ceil(16) as u32, 1];
            let launch = Launch { grid, block: [256, 1, 1], ..Launch::default() };
            let counters = gpu.launch(module, "matmul", &launch, &params.0).unwrap_or_else(|e| panic!("{arch}: {e}"));
            let c = download(&gpu, dc, m * n).unwrap();
            for i in 0..m {
                for j in 0..n {
                    let sum = (0..k).fold(0f32, |s, l| a[i * k + l].mul_add(b[l * n + j], s));
                    assert_eq!(c[i * n + j], sum, "{arch} seed {seed} at {i}, {j}");
                }
            }
            all.push((counters, c));
        }
        assert!(all.windows(2).all(|w| w[0] == w[1]), "{arch}: results or counters differ");
    }
}

#[test]
fn reduce() {
    let x = numbers(5000, 3);
    for (arch, module) in kernels("compute", ARCHS).iter() {
        for seed in 0..4 {
            let gpu = Gpu::new(config(seed));
            let (dx, out) = (upload(&gpu, "x", &x), gpu.alloc(20, "out").unwrap());
            let params = Params::default().u64(dx).u64(out).u32(5000);
            common::launch(&gpu, module, "reduce", 5, 256, params).unwrap_or_else(|e| panic!("{arch}: {e}"));
            for (i, sum) in download(&gpu, out, 5).unwrap().into_iter().enumerate() {
                let right: f64 = x[i * 1024..5000.min((i + 1) * 1024)].iter().map(|&v| f64::from(v)).sum();
                assert!((f64::from(sum) - right).abs() < 1e-4, "{arch}: {sum} for {right}");
            }
        }
    }
}

#[test]
fn saxpy() {
    let (x, y) = (numbers(1000, 4), numbers(1000, 5));
    for (_, module) in kernels("compute", ARCHS).iter() {
        let gpu = Gpu::new(config(0));
        let (dx, dy) = (upload(&gpu, "x", &x), upload(&gpu, "y", &y));
        let params = Params::default().u64(dx).u64(dy).f32(2.5).u32(1000);
        let counters = common::launch(&gpu, module, "saxpy", 8, 128, params).unwrap();
        let out = download(&gpu, dy, 1000).unwrap();
        assert!((0..1000).all(|i| out[i] == 2.5f32.mul_add(x[i], y[i])));
        // 1000 floats are 125 sectors; each of the two loads and the store touches each once.
        assert_eq!((counters.global_load_sectors, counters.global_store_sectors), (250, 125));
        assert_eq!(counters.fma, 1000);
    }
}

#[test]
fn mixed() {
    let n = 300;
    let x = numbers(n, 6);
    for (arch, module) in kernels("compute", ARCHS).iter() {
        let gpu = Gpu::new(config(2));
        let (dx, out) = (upload(&gpu, "x", &x), gpu.alloc(4 * n, "out").unwrap());
        let params = Params::default().u64(dx).u64(out).u32(n as u32);
        common::launch(&gpu, module, "mixed", 3, 128, params).unwrap_or_else(|e| panic!("{arch}: {e}"));
        for (i, got) in download(&gpu, out, n).unwrap().into_iter().enumerate() {
            let table = [1f32, 2., 3., 4.];
            let y = (i % 5) as f32;
            let q = f64::from(x[i] * y);
            let first = if x[i] > 0.0 { x[i].sqrt() * y } else { x[i] - y };
            let s = first + (i & 7) as f32 * table[i & 3] + table[i >> 3 & 3];
            let s = match i & 7 {
                0 => s + 1.0,
                1 => s * 3.0,
                2 => (s * 0.1).exp(),
                3 => (s.abs() + 1.0).ln(),
                4 => s.tanh(),
                5 => s.min(2.5),
                6 => s.trunc(),
                _ => s / 7.3,
            };
            let right = s + (q * 0.5 + q.abs().sqrt()) as f32;
            assert!((got - right).abs() <= 2e-6 * right.abs().max(1.0), "{arch} at {i}: {got} for {right}");
        }
    }
}

#[test]
fn random64() {
    for (_, module) in kernels("compute", ARCHS).iter() {
        let gpu = Gpu::new(config(0));
        let out = gpu.alloc(8 * 64, "out").unwrap();
        common::launch(&gpu, module, "random64", 2, 32, Params::default().u64(42).u64(out)).unwrap();
        let words = download_u32(&gpu, out, 128).unwrap();
        for i in 0..64u64 {
            let mut z = 42u64.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z = (z ^ (z >> 31)).rotate_left(13);
            let got = u64::from(words[2 * i as usize]) | u64::from(words[2 * i as usize + 1]) << 32;
            assert_eq!(got, z);
        }
    }
}
