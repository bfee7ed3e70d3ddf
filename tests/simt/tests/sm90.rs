//! Clusters, mbarriers, registers handed on, `stmatrix`: right results, and planted bugs caught.

mod common;

use common::*;
use simt::FaultKind::{Deadlock, Divergence, InFlight, Mbarrier, Race, UninitialisedMemory};
use simt::{AsyncCopies, Config, Fault, FaultKind, Gpu, Launch, Module};

const ARCHS: &[&str] = &["sm_90a"];

fn configs() -> impl Iterator<Item = Config> {
    (0..4).flat_map(|seed| {
        let with = move |async_copies| Config { seed, async_copies, patience: 200_000, ..Config::default() };
        [with(AsyncCopies::Late), with(AsyncCopies::Early)]
    })
}

/// Runs a kernel of `x` (192 numbers) and `out`: so many numbers for each thread.
fn run(module: &Module, entry: &str, launch: &Launch, each: usize, config: Config) -> Result<Vec<u32>, Fault> {
    let gpu = Gpu::new(config);
    let x = upload_u32(&gpu, "x", &(0..192).map(|i| i * i + 3).collect::<Vec<_>>());
    let count = launch.grid.iter().chain(&launch.block).product::<u32>() as usize * each;
    let out = gpu.alloc(4 * count, "out")?;
    gpu.launch(module, entry, launch, &Params::default().u64(x).u64(out).0)?;
    download_u32(&gpu, out, count)
}

fn x(i: u32) -> u32 {
    i * i + 3
}

#[test]
fn special_registers() {
    let launch = Launch { grid: [4, 3, 2], block: [1, 1, 1], cluster: [2, 1, 2], ..Launch::default() };
    for (arch, module) in kernels("sm90", ARCHS).iter() {
        let gpu = Gpu::new(config(2));
        let out = gpu.alloc(4 * 13 * 24, "out").unwrap();
        gpu.launch(module, "registers", &launch, &out.to_le_bytes()).unwrap_or_else(|e| panic!("{arch}: {e}"));
        let got = download_u32(&gpu, out, 13 * 24).unwrap();
        for (block, got) in (0..).zip(got.chunks_exact(13)) {
            let (bx, bz): (u32, u32) = (block % 4, block / 12);
            let right = [bx % 2, 0, bz % 2, 2, 1, 2, bx / 2, bz / 2, 2, 3, bx % 2 + 2 * (bz % 2), 4, 1];
            assert_eq!(got, right, "{arch} block {block}");
        }
        // Without clusters every block is one.
        gpu.launch(module, "registers", &Launch::linear(3, 1), &out.to_le_bytes()).unwrap();
        let got = download_u32(&gpu, out, 39).unwrap();
        assert_eq!(got[26..], [0, 0, 0, 1, 1, 1, 2, 0, 3, 1, 0, 1, 0], "{arch}");
    }
}

#[test]
fn clusters() {
    let launch = Launch { grid: [4, 2, 1], block: [64, 1, 1], ..Launch::default() };
    let cases: [(&str, &[FaultKind], &str); 6] = [
        ("neighbour_early", &[Race, UninitialisedMemory], "of the shared memory of block ("),
        ("neighbour_gone", &[Race], "block ("),
        ("gather_broken", &[Race], "shared memory"),
        ("arrives_broken", &[Divergence], "again without having waited"),
        ("away_broken", &[Deadlock], "waits for the other blocks of its cluster"),
        ("multicast_broken", &[Race, InFlight, Mbarrier], "block"),
    ];
    for (arch, module) in kernels("sm90", ARCHS).iter() {
        for config in configs() {
            let run = |entry: &str| run(module, entry, &launch, 1, config.clone());
            let right = |entry: &str| run(entry).unwrap_or_else(|e| panic!("{arch} {entry} {config:?}: {e}"));
            let block_of = |rank: u32, cluster: u32| 2 * cluster + rank % 2 + 4 * (rank / 2);
            let (neighbours, gathered) = (right("neighbour_right"), right("gather_right"));
            for i in 0..512u32 {
                let (block, thread) = (i / 64, i % 64);
                let (rank, cluster) = (block % 4 % 2 + 2 * (block / 4), block % 4 / 2);
                let next = x(63 - thread) + block_of((rank + 1) % 4, cluster);
                assert_eq!(neighbours[i as usize], next, "{arch} {config:?}");
                let sum = 2 * (0..4).map(|rank| x(thread) + block_of(rank, cluster)).sum::<u32>();
                assert_eq!(gathered[i as usize], if rank == 0 { sum } else { 0 }, "{arch} {config:?}");
            }
            for entry in ["arrives_right", "away_right", "multicast_right"] {
                assert!((0..).zip(right(entry)).all(|(i, got)| got == x(i % 64)), "{arch} {entry}");
            }
            for (entry, kinds, says) in cases {
                let fault = run(entry).expect_err(entry);
                assert!(kinds.contains(&fault.kind), "{arch} {entry} {config:?}: {fault}");
                assert!(fault.message.contains(says), "{arch} {entry} {config:?}: {fault}");
            }
        }
    }
}

#[test]
fn mbarriers() {
    let cases: [(&str, &[FaultKind], &str); 8] = [
        ("no_wait", &[Race, UninitialisedMemory], "shared memory"),
        ("no_empty_wait", &[Race, Mbarrier, Deadlock], ""),
        ("no_arrival", &[Deadlock], "waits at the mbarrier at byte"),
        ("relaxed", &[Race], "shared memory"),
        ("as_memory", &[Mbarrier], "where an mbarrier lives"),
        ("no_sync", &[Race, Mbarrier], "mbarrier"),
        ("thrice", &[Mbarrier], "one too many"),
        ("no_count", &[Mbarrier], "0 arrivals"),
    ];
    for (arch, module) in kernels("sm90", ARCHS).iter() {
        for config in configs() {
            let run = |entry: &str| run(module, entry, &Launch::linear(1, 96), 1, config.clone());
            let out = run("pipeline_right").unwrap_or_else(|e| panic!("{arch} {config:?}: {e}"));
            for i in 32..96u32 {
                let sum = (0..6).map(|step| x(32 * step + 31 - i % 32)).sum::<u32>();
                assert_eq!(out[i as usize], sum, "{arch} {config:?}");
            }
            let out = run("states").unwrap_or_else(|e| panic!("{arch} {config:?}: {e}"));
            assert!((0..).zip(out).all(|(i, got)| got == 3 * x(95 - i) + 3), "{arch} {config:?}");
            for (name, kinds, says) in cases {
                let fault = run(&format!("pipeline_{name}")).expect_err(name);
                assert!(kinds.contains(&fault.kind), "{arch} {name} {config:?}: {fault}");
                assert!(fault.message.contains(says), "{arch} {name}: {fault}");
            }
        }
    }
}

#[test]
fn registers_handed_on() {
    let cases = [
        ("too_many", Deadlock, "waits for registers"),
        ("not_more", Divergence, "setmaxnreg.inc to 120"),
        ("not_all", Divergence, "the warpgroup"),
    ];
    for (arch, module) in kernels("sm90", ARCHS).iter() {
        for config in configs() {
            let run = |name: &str| run(module, &format!("hand_on_{name}"), &Launch::linear(1, 256), 1, config.clone());
            run("right").unwrap_or_else(|e| panic!("{arch} {config:?}: {e}"));
            for (name, kind, says) in cases {
                let fault = run(name).expect_err(name);
                assert_eq!(fault.kind, kind, "{arch} {name} {config:?}: {fault}");
                assert!(fault.message.contains(says), "{arch} {name}: {fault}");
            }
        }
    }
}

#[test]
fn warps() {
    for (arch, module) in kernels("sm90", ARCHS).iter() {
        let run = |entry: &str, each: usize| {
            run(module, entry, &Launch::linear(1, 32), each, config(0))
                .unwrap_or_else(|e| panic!("{arch} {entry}: {e}"))
        };
        let (plain, transposed) = (run("stmatrix", 4), run("stmatrix_transposed", 4));
        let half = |words: &[u32], at: usize| words[at / 2] >> (16 * (at % 2)) & 0xFFFF;
        for (matrix, row, column) in (0..256).map(|i| (i / 64, i / 8 % 8, i % 8)) {
            // Element (row, column) is in lane 4·row + column / 2, half column % 2.
            let of = |row: usize, column: usize| {
                x((4 * (4 * row + column / 2) + matrix) as u32) >> (16 * (column % 2)) & 0xFFFF
            };
            let at = 64 * matrix + 8 * row + column;
            assert_eq!(half(&plain, at), of(row, column), "{arch}");
            assert_eq!(half(&transposed, at), of(column, row), "{arch}");
        }
        let elected = run("elected", 1);
        assert_eq!(elected.iter().filter(|&&got| got != 0).count(), 1, "{arch}");
    }
}

#[test]
fn refused_clusters() {
    for (arch, module) in kernels("sm90", ARCHS).iter() {
        let refused = |entry: &str, grid: [u32; 3], cluster: [u32; 3], says: &str| {
            let launch = Launch { grid, block: [64, 1, 1], cluster, ..Launch::default() };
            let fault = run(module, entry, &launch, 1, config(0)).expect_err(says);
            assert_eq!(fault.kind, FaultKind::Launch, "{arch}: {fault}");
            assert!(fault.message.contains(says), "{arch}: {fault}");
        };
        refused("neighbour_right", [4, 3, 1], [1, 1, 1], "no multiple of clusters");
        refused("neighbour_right", [4, 4, 1], [4, 1, 1], "the kernel requires [2, 2, 1]");
        refused("stmatrix", [16, 1, 1], [16, 1, 1], "at most 8");
        refused("stmatrix", [4, 1, 1], [0, 1, 1], "and not 0");
    }
}
