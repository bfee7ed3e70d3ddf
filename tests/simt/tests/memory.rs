//! The host's side: allocations, parts of them, limits, launches that a device would refuse, module variables.

mod common;

use common::*;
use simt::{Config, Fault, FaultKind, Gpu, Launch, Module};

fn kind<T>(result: Result<T, Fault>) -> FaultKind {
    result.map(|_| ()).expect_err("a fault").kind
}

/// Copies `n` words from `from` to `to`, one per thread.
const COPY: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry copy(.param .u64 from, .param .u64 to, .param .u32 n)
{
    .reg .pred %p; .reg .b32 %r<8>; .reg .b64 %rd<4>;
    mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x;
    mad.lo.u32 %r1, %r2, %r3, %r1;
    ld.param.u32 %r4, [n];
    setp.ge.u32 %p, %r1, %r4;
    @%p ret;
    ld.param.u64 %rd1, [from]; ld.param.u64 %rd2, [to];
    mad.wide.u32 %rd1, %r1, 4, %rd1; mad.wide.u32 %rd2, %r1, 4, %rd2;
    ld.global.u32 %r5, [%rd1];
    st.global.u32 [%rd2], %r5;
    ret;
}
.global .align 4 .u32 total = 5;
.const .align 4 .b8 table[8] = {1, 0, 0, 0, 2, 0, 0, 0};
.visible .entry variables(.param .u64 to)
{
    .reg .b32 %r<4>; .reg .b64 %rd;
    ld.param.u64 %rd, [to];
    ld.global.u32 %r1, [total]; ld.const.u32 %r2, [table+4];
    add.u32 %r1, %r1, %r2;
    st.global.u32 [total], %r1; st.global.u32 [%rd], %r1;
    ret;
}
.visible .entry spoil()
{
    .reg .b32 %r; .reg .b64 %rd;
    mov.u64 %rd, table; mov.u32 %r, 1;
    st.global.u32 [%rd], %r;
    ret;
}
.visible .entry late(.param .u64 to, .param .u32 spins, .param .u32 who, .param .u32 words)
{
    .reg .pred %p; .reg .b32 %r<5>; .reg .b64 %rd;
    ld.param.u32 %r1, [spins]; ld.param.u32 %r2, [who]; ld.param.u32 %r4, [words]; ld.param.u64 %rd, [to];
spin:
    sub.u32 %r1, %r1, 1;
    setp.ne.u32 %p, %r1, 0;
    @%p bra spin;
    mov.u32 %r3, %tid.x;
    setp.ne.u32 %p, %r3, %r2;
    @%p ret;
write:
    st.global.u32 [%rd], %r3;
    add.u64 %rd, %rd, 4;
    sub.u32 %r4, %r4, 1;
    setp.ne.u32 %p, %r4, 0;
    @%p bra write;
    ret;
}
.visible .entry exactly() .reqntid 64, 1, 1 { ret; }
";

fn copy(gpu: &Gpu, module: &Module, from: u64, to: u64, n: u32) -> Result<(), Fault> {
    launch(gpu, module, "copy", n.div_ceil(64), 64, Params::default().u64(from).u64(to).u32(n)).map(|_| ())
}

#[test]
fn allocations() {
    let module = Module::parse(COPY).unwrap();
    let gpu = Gpu::new(Config { capacity: Some(1000), ..config(0) });
    let (a, b) = (gpu.alloc(400, "a").unwrap(), gpu.alloc(400, "b").unwrap());
    assert!(a % 512 == 0 && b % 512 == 0 && a.abs_diff(b) > 1 << 16);
    let fault = gpu.alloc(300, "c").expect_err("no room");
    assert!(fault.kind == FaultKind::OutOfMemory && fault.message.contains("300 bytes wanted for `c`, 200 left"));
    gpu.write(a, &[7; 400]).unwrap();
    copy(&gpu, &module, a, b, 50).unwrap();
    let mut bytes = vec![0; 400];
    gpu.read(b, &mut bytes[..200]).unwrap();
    assert!(bytes[..200].iter().all(|&x| x == 7));
    let fault = gpu.read(b, &mut bytes).expect_err("half is unwritten");
    assert!(fault.message.contains("byte 200 of buffer `b`"), "{fault}");
    // What is not initialised stays so when copied.
    let c = gpu.alloc(200, "c").unwrap();
    gpu.copy(b + 100, c, 200).unwrap();
    assert!(gpu.read(c, &mut bytes[..200]).expect_err("a copy").message.contains("byte 100 of buffer `c`"));
    gpu.fill(c, 3, 200).unwrap();
    gpu.read(c, &mut bytes[..200]).unwrap();
    assert_eq!(gpu.live_bytes(), 1000);
    gpu.free(b).unwrap();
    assert_eq!(gpu.live_bytes(), 600);
    assert_eq!(kind(gpu.free(b)), FaultKind::Host);
    assert_eq!(kind(gpu.write(a + 399, &[1, 2])), FaultKind::Host);
    let fault = copy(&gpu, &module, a, b, 1).expect_err("use after free");
    assert!(fault.kind == FaultKind::UseAfterFree && fault.message.contains("`b`, which has been freed"), "{fault}");
    let fault = copy(&gpu, &module, a, c + 200, 1).expect_err("past the end");
    assert!(fault.message.contains("0 bytes past the end of buffer `c`"), "{fault}");
    assert_eq!(kind(copy(&gpu, &module, a, 0, 1)), FaultKind::OutOfBounds);
    assert_eq!(kind(copy(&gpu, &module, a, u64::MAX - 3, 1)), FaultKind::OutOfBounds);
}

#[test]
fn parts_of_an_allocation() {
    let module = Module::parse(COPY).unwrap();
    let gpu = Gpu::new(config(0));
    let pool = gpu.alloc(4096, "pool").unwrap();
    gpu.carve(pool, 256, "x").unwrap();
    gpu.carve(pool + 256, 256, "y").unwrap();
    gpu.write(pool, &[1; 256]).unwrap();
    copy(&gpu, &module, pool, pool + 256, 64).unwrap();
    // The last thread reads the neighbour, which the first one writes.
    let fault = copy(&gpu, &module, pool + 4, pool + 256, 64).expect_err("into the neighbour");
    assert!(fault.kind == FaultKind::Race && fault.message.contains("buffer `y`"), "{fault}");
    // Outside of live parts.
    let fault = copy(&gpu, &module, pool, pool + 512, 1).expect_err("outside of parts");
    assert!(fault.message.contains("0 bytes past the end of buffer `y`"), "{fault}");
    assert_eq!(kind(gpu.write(pool + 200, &[0; 100])), FaultKind::Host);
    assert_eq!(kind(gpu.carve(pool + 300, 16, "z")), FaultKind::Host);
    assert_eq!(kind(gpu.carve(pool + 4090, 16, "z")), FaultKind::Host);
    gpu.release(pool + 256).unwrap();
    assert_eq!(kind(gpu.release(pool + 256)), FaultKind::Host);
    let fault = copy(&gpu, &module, pool, pool + 256, 1).expect_err("released");
    assert!(fault.kind == FaultKind::UseAfterFree && fault.message.contains("`y`"), "{fault}");
    // Dealt out again, the memory counts as fresh.
    gpu.carve(pool + 256, 64, "again").unwrap();
    let mut bytes = [0; 64];
    assert!(gpu.read(pool + 256, &mut bytes).expect_err("fresh").message.contains("byte 0 of buffer `again`"));
    gpu.release(pool).unwrap();
    gpu.release(pool + 256).unwrap();
    gpu.free(pool).unwrap();
    assert_eq!(gpu.live_bytes(), 0);
}

#[test]
fn refused_launches() {
    let module = Module::parse(COPY).unwrap();
    let gpu = Gpu::new(Config { max_shared: 1000, max_cooperative_blocks: 4, ..config(0) });
    let run = |entry: &str, launch: Launch, params: usize| gpu.launch(&module, entry, &launch, &vec![0; params]);
    let good = Launch::linear(1, 64);
    run("copy", good, 20).unwrap();
    run("exactly", good, 0).unwrap();
    let refused = [
        ("nothing", good, 20, "no kernel `nothing`"),
        ("copy", good, 16, "16 bytes of parameters, and the kernel takes 20"),
        ("copy", Launch::linear(0, 64), 20, "empty grid"),
        ("copy", Launch::linear(1, 1025), 20, "at most 1024"),
        ("copy", Launch { grid: [1, 70000, 1], ..good }, 20, "exceeds"),
        ("copy", Launch { dynamic_shared: 1001, ..good }, 20, "1001 bytes of shared memory"),
        ("copy", Launch { grid: [5, 1, 1], cooperative: true, ..good }, 20, "cooperative launch of 5 blocks"),
        ("exactly", Launch::linear(1, 32), 0, "the kernel requires 64"),
    ];
    for (entry, launch, params, says) in refused {
        let fault = run(entry, launch, params).expect_err(says);
        assert!(fault.kind == FaultKind::Launch && fault.message.contains(says), "{fault}");
    }
    assert_eq!((module.param_bytes("copy"), module.static_shared("copy")), (Some(20), Some(0)));
    assert_eq!(module.param_bytes("nothing"), None);
}

#[test]
fn variables_of_a_module() {
    let module = Module::parse(COPY).unwrap();
    let gpu = Gpu::new(config(0));
    let out = gpu.alloc(4, "out").unwrap();
    for expected in [7, 9] {
        launch(&gpu, &module, "variables", 1, 1, Params::default().u64(out)).unwrap();
        assert_eq!(download_u32(&gpu, out, 1).unwrap(), [expected]);
    }
    assert_eq!(kind(launch(&gpu, &module, "spoil", 1, 1, Params::default())), FaultKind::ReadOnly);
}

/// Numbers of launches come again after a while; what ran when they did is not taken for a launch of its number.
#[test]
fn a_launch_that_runs_long_races_with_none_that_comes_later() {
    let module = Module::parse(COPY).unwrap();
    let gpu = Gpu::new(config(0));
    let late = |to: u64, spins: u32, who: u32, words: u32| {
        launch(&gpu, &module, "late", 1, 2, Params::default().u64(to).u32(spins).u32(who).u32(words)).unwrap();
    };
    let (to, other) = (gpu.alloc(4 * 1000, "to").unwrap(), gpu.alloc(4, "other").unwrap());
    // There are 1023 numbers.
    (0..1000).for_each(|_| late(other, 1, 0, 1));
    std::thread::scope(|scope| {
        scope.spawn(|| late(to, 1_000_000, 1, 1000));
        (0..100).for_each(|_| late(other, 1, 0, 1));
    });
    // A launch of each number that the long one may have had meets what that wrote.
    (0..1000).for_each(|word| late(to + 4 * word, 1, 0, 1));
}
