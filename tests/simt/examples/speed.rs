//! Warp instructions per second: `cargo run --release --example speed [threads]`.

use std::time::Instant;

use simt::{Config, Counters, Fault, Gpu, Launch, Module};

fn measure(name: &str, run: impl Fn() -> Result<Counters, Fault>) -> Result<(), Fault> {
    let (start, mut total) = (Instant::now(), Counters::default());
    while start.elapsed().as_secs_f64() < 1.0 {
        total += run()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let (instructions, fma) = (total.instructions as f64 / seconds / 1e6, total.fma as f64 / seconds / 1e6);
    println!("{name:12} {instructions:6.1} M warp instructions/s, {fma:6.0} M fma/s");
    Ok(())
}

fn params(pointers: &[u64], numbers: &[u32]) -> Vec<u8> {
    let words = pointers.iter().flat_map(|p| p.to_le_bytes());
    words.chain(numbers.iter().flat_map(|n| n.to_le_bytes())).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).and_then(|t| t.parse().ok()).unwrap_or(1);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/compute.ptx");
    let module = Module::parse(&std::fs::read_to_string(path)?)?;
    let gpu = Gpu::new(Config { threads, ..Config::default() });
    let bytes = 1 << 20;
    let [x, y, z] = [gpu.alloc(bytes, "x")?, gpu.alloc(bytes, "y")?, gpu.alloc(bytes, "z")?];
    gpu.fill(x, 0, bytes)?;
    gpu.fill(y, 0, bytes)?;
    measure("arithmetic", || gpu.launch(&module, "arithmetic", &Launch::linear(8, 256), &params(&[x, z], &[1000])))?;
    measure("conv3x3", || {
        gpu.launch(&module, "conv3x3", &Launch::linear(256, 64), &params(&[x, y, z], &[16, 16, 64, 64]))
    })?;
    let grid = Launch { grid: [16, 16, 1], ..Launch::linear(1, 256) };
    measure("matmul", || gpu.launch(&module, "matmul", &grid, &params(&[x, y, z], &[256, 256, 256, 0])))?;
    measure("saxpy", || {
        gpu.launch(&module, "saxpy", &Launch::linear(1024, 256), &params(&[x, y], &[1f32.to_bits(), 1 << 18]))
    })?;
    Ok(())
}
