//! How many warp instructions per second: `cargo run --release --example speed [threads]`.

use std::time::Instant;

use simt::{Config, Counters, Fault, Gpu, Launch, Module};

fn report(what: &str, run: impl Fn() -> Result<Counters, Fault>) -> Result<(), Fault> {
    run()?;
    let start = Instant::now();
    let mut counters = Counters::default();
    while start.elapsed().as_secs_f64() < 1.0 {
        counters += run()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{what:10} {:6.1} M warp instructions/s, {:6.2} G fma/s",
        counters.instructions as f64 / seconds / 1e6,
        counters.fma as f64 / seconds / 1e9
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).and_then(|t| t.parse().ok()).unwrap_or(1);
    let ptx = std::fs::read_to_string("/tmp/nv/b.ptx")?;
    let module = Module::parse(&ptx)?;
    let gpu = Gpu::new(Config { threads, ..Config::default() });
    let x = gpu.alloc(4 << 20, "x")?;
    let y = gpu.alloc(4 << 20, "y")?;
    let z = gpu.alloc(4 << 20, "z")?;
    gpu.fill(x, 0, 4 << 20)?;
    gpu.fill(y, 0, 4 << 20)?;
    let mut p = Vec::new();
    p.extend(x.to_le_bytes());
    p.extend(z.to_le_bytes());
    p.extend(1000u32.to_le_bytes());
    report("bench", || gpu.launch(&module, "bench", &Launch::linear(8, 256), &p))?;
    let mut p = Vec::new();
    p.extend(x.to_le_bytes());
    p.extend(y.to_le_bytes());
    p.extend(z.to_le_bytes());
    [16u32, 16, 64, 64].iter().for_each(|v| p.extend(v.to_le_bytes()));
    report("conv", || gpu.launch(&module, "conv", &Launch::linear(256, 64), &p))?;
    let ptx = std::fs::read_to_string("tests/kernels/compute.ptx")?;
    let module = Module::parse(&ptx)?;
    let mut p = Vec::new();
    p.extend(x.to_le_bytes());
    p.extend(y.to_le_bytes());
    p.extend(z.to_le_bytes());
    [256u32, 256, 256, 0].iter().for_each(|v| p.extend(v.to_le_bytes()));
    let launch = Launch { grid: [16, 16, 1], block: [256, 1, 1], dynamic_shared: 0, cooperative: false };
    report("matmul", || gpu.launch(&module, "matmul", &launch, &p))?;
    Ok(())
}
