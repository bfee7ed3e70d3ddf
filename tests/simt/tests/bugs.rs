//! Every kind of planted bug is caught, by its right name; the kernel without the bug passes under every schedule.

mod common;

use common::*;
use simt::{Config, Fault, FaultKind, Gpu, Launch, Module};

const ARCHS: &[&str] = &["sm_75", "sm_80", "sm_90a", "sm_120"];
const SEEDS: [u64; 5] = [0, 1, 2, 3, 4];

const EARLY: &[FaultKind] = &[FaultKind::Race, FaultKind::UninitialisedMemory];

/// A kernel on `x` (384 numbers) and `out` (`threads` × `blocks` numbers), and `extra`: a third parameter.
struct Case {
    name: &'static str,
    blocks: u32,
    threads: u32,
    shared: u32,
    extra: Extra,
    /// What it may be called: a read too early is one of nothing, if the writer has not run yet.
    kinds: &'static [FaultKind],
    /// Parts of the message.
    says: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Extra {
    None,
    Count,
    Scratch,
}

fn run(module: &Module, case: &Case, right: bool, config: Config) -> Result<Vec<u32>, Fault> {
    let gpu = Gpu::new(config);
    let x = upload(&gpu, "x", &numbers(384, 9));
    let count = (case.blocks * case.threads) as usize;
    let out = gpu.alloc(4 * count, "out")?;
    let mut params = Params::default().u64(x).u64(out);
    match case.extra {
        Extra::None => {}
        Extra::Count => params = params.u32(count as u32),
        Extra::Scratch => {
            let scratch = gpu.alloc(4 * 256, "scratch")?;
            gpu.fill(scratch, 0, 4 * 256)?;
            params = params.u64(scratch);
        }
    }
    let entry = format!("{}_{}", case.name, if right { "right" } else { "broken" });
    params.0.resize(module.param_bytes(&entry).unwrap(), 0);
    let launch = Launch {
        grid: [case.blocks, 1, 1],
        block: [case.threads, 1, 1],
        dynamic_shared: case.shared,
        ..Launch::default()
    };
    gpu.launch(module, &entry, &launch, &params.0)?;
    download_u32(&gpu, out, count)
}

fn check(cases: &[Case]) {
    for (arch, module) in kernels("bugs", ARCHS).iter() {
        for case in cases {
            let mut results = Vec::new();
            for seed in SEEDS {
                for threads in [1, 3] {
                    let config = Config { seed, threads, patience: 200_000, ..Config::default() };
                    let out = run(module, case, true, config.clone());
                    results.push(out.unwrap_or_else(|e| panic!("{arch} {} right, seed {seed}: {e}", case.name)));
                    match run(module, case, false, config) {
                        Ok(_) => panic!("{arch} {} broken, seed {seed}, {threads} threads: not caught", case.name),
                        Err(fault) => {
                            assert!(case.kinds.contains(&fault.kind), "{arch} {} seed {seed}: {fault}", case.name);
                            for part in case.says {
                                let message = &fault.message;
                                assert!(message.contains(part), "{arch} {}: no `{part}` in: {message}", case.name);
                            }
                        }
                    }
                }
            }
            assert!(results.windows(2).all(|w| w[0] == w[1]), "{arch} {}: results differ", case.name);
        }
    }
}

fn case(name: &'static str, threads: u32, kinds: &'static [FaultKind], says: &'static [&'static str]) -> Case {
    Case { name, blocks: 1, threads, shared: 0, extra: Extra::None, kinds, says }
}

fn many(name: &'static str, extra: Extra, kinds: &'static [FaultKind], says: &'static [&'static str]) -> Case {
    Case { name, blocks: 4, threads: 64, shared: 0, extra, kinds, says }
}

#[test]
fn shared_memory() {
    use FaultKind::*;
    check(&[
        case("raw", 128, EARLY, &["kernel `raw_broken`", "bugs.cu:", "reads byte", "shared memory"]),
        case("war", 128, &[Race], &["shared memory", "no barrier"]),
        case("warp", 32, EARLY, &["shared memory"]),
        case("tiles", 32, EARLY, &["shared memory"]),
        case("lanes", 32, &[Race], &["writes byte", "shared memory"]),
        case("unfilled", 64, &[UninitialisedMemory], &["reads byte 2", "shared memory"]),
        case("halves", 64, EARLY, &["reads byte", "shared memory"]),
        Case {
            shared: 512,
            ..case("past_shared", 128, &[OutOfBounds], &["thread (127,0,0)", "byte 512 of shared memory"])
        },
    ]);
}

#[test]
fn global_memory() {
    use Extra::{Count, Scratch};
    use FaultKind::*;
    check(&[
        Case { blocks: 6, ..many("past_load", Count, &[OutOfBounds], &[]) },
        many("past_store", Count, &[OutOfBounds], &["writes", "past the end of buffer `out`"]),
        many("unwritten", Count, &[UninitialisedMemory], &["byte 1020 of buffer `out`", "no kernel wrote"]),
        case("misaligned", 64, &[Misaligned], &["a load of 16 bytes", "4 past a multiple of 16"]),
        many("through_global", Scratch, &[Race], &["buffer `scratch`", "of the same block"]),
        many("after_readers", Scratch, &[Race], &["buffer `scratch`", "of the same block"]),
        many("blocks_write", Scratch, &[Race], &["buffer `out`", "block ("]),
        many("blocks_read", Scratch, &[Race], &["buffer `scratch`", "block ("]),
        many("in_place", Scratch, &[Race], &["buffer `scratch`"]),
        many("counting", Scratch, &[Race], &["byte 0 of buffer `scratch`", "block ("]),
        many("read_only", Scratch, &[Race], &["ld.global.nc"]),
        many("last_block", Scratch, &[Race], &["buffer `scratch`", "block ("]),
    ]);
}

#[test]
fn collectives() {
    use FaultKind::*;
    check(&[
        case("barrier_in_branch", 128, &[Divergence], &[]),
        case("two_barriers", 128, &[Divergence], &["not the same __syncthreads"]),
        case("early_return", 128, &[Divergence], &["return"]),
        case("shuffle", 64, &[Divergence], &["only lanes 0x0000ffff"]),
        case("vote", 64, &[Divergence], &["only lanes 0x0000ffff"]),
        case("spin", 96, &[Deadlock], &["spin", "bugs.cu:"]),
        case("spin_in_warp", 32, &[Deadlock], &[]),
        case("endless", 32, &[Deadlock], &["endless loop"]),
    ]);
}

#[test]
fn named_barriers() {
    use FaultKind::*;
    check(&[
        case("named", 128, &[Deadlock], &["waits at barrier 1"]),
        case("named_race", 96, EARLY, &["shared memory"]),
        case("pipeline", 128, &[Race, UninitialisedMemory, Divergence], &[]),
    ]);
}

#[test]
fn other_state() {
    use FaultKind::*;
    check(&[
        case("local_array", 32, &[UninitialisedMemory], &["local memory"]),
        case("register_", 32, &[UninitialisedRegister], &["reads a register"]),
        case("assertion", 64, &[Trap], &["trap"]),
    ]);
}
