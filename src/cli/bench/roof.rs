//! What the device at hand could do at most.

use std::time::Instant;

use clap::Args;
use rayon::prelude::*;
use serde_json::{Value, json};
use unfreeze::{Device, Precision, Result, Tensor, nn::cost::Roof, ops::linear};

/// The share of a data sheet's operations per second that counts as the roof: what cuBLAS' bf16 products reach on an
/// H200 (790 of 989 TFLOP/s), times 0.8 for the shapes of these networks.
const ATTAINABLE: f64 = 0.64;

/// Bytes that a copy reads: far more than a cache holds.
const COPIED: usize = 256 << 20;

/// Side of the matrices by which a processor's operations per second are measured.
const SIDE: usize = 1024;

/// Seconds that a probe takes at least, and how often it is repeated.
const PROBE: (f64, usize) = (0.05, 5);

/// What data sheets say of a product: dense, with sums in f32.
struct Product {
    /// What its name contains; the first that fits counts.
    name: &'static str,
    /// Teraflops in bf16, TF32 and f32; 0 where there is no such unit.
    tflops: [f64; 3],
    /// Gigabytes per second.
    bandwidth: f64,
}

const fn product(name: &'static str, tflops: [f64; 3], bandwidth: f64) -> Product {
    Product { name, tflops, bandwidth }
}

const PRODUCTS: &[Product] = &[
    product("B200", [2250.0, 1100.0, 80.0], 8000.0),
    product("GH200", [989.4, 494.7, 66.9], 4000.0),
    product("H200", [989.4, 494.7, 66.9], 4800.0),
    product("H100 PCIe", [756.0, 378.0, 51.2], 2000.0),
    product("H100 NVL", [835.0, 417.5, 60.0], 3900.0),
    product("H100", [989.4, 494.7, 66.9], 3350.0),
    product("A100-SXM4-40GB", [312.0, 156.0, 19.5], 1555.0),
    product("A100-PCIE-40GB", [312.0, 156.0, 19.5], 1555.0),
    product("A100", [312.0, 156.0, 19.5], 2039.0),
    product("A10G", [70.0, 35.0, 31.5], 600.0),
    product("A10", [125.0, 62.5, 31.2], 600.0),
    product("L40S", [362.0, 183.0, 91.6], 864.0),
    product("L40", [181.0, 90.5, 90.5], 864.0),
    product("L4", [121.0, 60.0, 30.3], 300.0),
    product("RTX 5090", [209.5, 104.8, 104.8], 1792.0),
    product("RTX 4090", [165.2, 82.6, 82.6], 1008.0),
    product("RTX 4080", [97.5, 48.7, 48.7], 717.0),
    product("RTX 3090", [71.0, 35.6, 35.6], 936.0),
    product("RTX 3080", [59.5, 29.8, 29.8], 760.0),
    product("T4", [0.0, 0.0, 8.1], 320.0),
];

/// What is known better than from tables and probes.
#[derive(Args, Clone, Copy, Default)]
pub struct RoofFlags {
    /// Teraflops that the device can do at most [default: 0.64 of the data sheet of known GPUs; measured on processors]
    #[arg(long, value_name = "X", value_parser = positive)]
    roof_tflops: Option<f64>,
    /// Gigabytes that it can move per second at most [default: measured by a copy]
    #[arg(long, value_name = "X", value_parser = positive)]
    roof_gbs: Option<f64>,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && f64::is_finite(number) => Ok(number),
        _ => Err("give a positive number".into()),
    }
}

impl RoofFlags {
    /// The device's roof in `precision`; `None` for a GPU that is not in the table.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](unfreeze::Error::OutOfMemory); [`Error::Device`](unfreeze::Error::Device).
    pub fn roof(&self, device: &Device, precision: Precision) -> Result<Option<Roof>> {
        let flops = match (self.roof_tflops, device) {
            (Some(tflops), _) => Some(tflops * 1e12),
            (None, Device::Cuda(cuda)) => {
                data_sheet(&cuda.properties().name, precision).map(|flops| flops * ATTAINABLE)
            }
            (None, _) => Some(product_rate(device)?),
        };
        let bytes = match self.roof_gbs {
            Some(gigabytes) => gigabytes * 1e9,
            None => copy_rate(device)?,
        };
        Ok(flops.map(|flops| Roof { flops, bytes }))
    }
}

/// Operations per second of a product by name.
fn data_sheet(name: &str, precision: Precision) -> Option<f64> {
    let [bf16, tf32, f32] = find(name)?.tflops;
    let tflops = match precision {
        Precision::Bf16 => bf16,
        Precision::Tf32 => tf32,
        _ => f32,
    };
    (tflops > 0.0).then_some(tflops * 1e12)
}

fn find(name: &str) -> Option<&'static Product> {
    PRODUCTS.iter().find(|product| name.contains(product.name))
}

/// The product's name.
pub fn product_name(device: &Device) -> String {
    match device {
        Device::Cuda(cuda) => cuda.properties().name.clone(),
        other => format!("{other}, {} threads", other.threads()),
    }
}

/// The roof and where it stands to the data sheet.
pub fn describe(device: &Device, roof: &Roof) -> String {
    let sheet = match device {
        Device::Cuda(cuda) => find(&cuda.properties().name)
            .map(|product| format!(" (data sheet: {:.0} GB/s)", product.bandwidth))
            .unwrap_or_default(),
        _ => String::new(),
    };
    format!("roof: {:.3} TFLOP/s, {:.1} GB/s{sheet}", roof.flops / 1e12, roof.bytes / 1e9)
}

/// The roof as an object.
pub fn object(roof: Option<&Roof>) -> Value {
    roof.map_or(Value::Null, |roof| json!({ "flops": roof.flops, "bytes": roof.bytes }))
}

/// Bytes per second that a copy reads and writes.
fn copy_rate(device: &Device) -> Result<f64> {
    let moved = 2.0 * COPIED as f64;
    if let Device::Cuda(cuda) = device {
        let driver = cuda.driver();
        let from = driver.alloc(COPIED)?;
        let to = driver.alloc(COPIED).inspect_err(|_| driver.free(from))?;
        let rate = driver.fill(from, 0, COPIED).and_then(|()| best(device, moved, || driver.copy(from, to, COPIED)));
        driver.free(from);
        driver.free(to);
        return rate;
    }
    let (from, mut to) = (vec![1u8; COPIED], vec![0u8; COPIED]);
    let part = COPIED / device.threads().max(1);
    best(device, moved, || {
        device.install(|| {
            to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from))
        });
        Ok(())
    })
}

/// Operations per second of a matrix product.
fn product_rate(device: &Device) -> Result<f64> {
    let matrix = Tensor::full([SIDE, SIDE], 0.5, device)?;
    let bias = Tensor::zeros([SIDE], device)?;
    let operations = 2.0 * (SIDE * SIDE * SIDE) as f64;
    best(device, operations, || linear::forward(&matrix, &matrix, &bias).map(drop))
}

/// The best rate of `work`, of which one call does `amount`.
fn best(device: &Device, amount: f64, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let (shortest, repeats) = PROBE;
    let queued = if matches!(device, Device::Cuda(_)) { 10 } else { 1 };
    let mut best = 0f64;
    for _ in 0..=repeats {
        device.synchronize()?;
        let (start, mut calls) = (Instant::now(), 0);
        while calls == 0 || start.elapsed().as_secs_f64() < shortest {
            // A GPU queues them: many before it is waited for.
            for _ in 0..queued {
                work()?;
                calls += 1;
            }
            device.synchronize()?;
        }
        best = best.max(f64::from(calls) * amount / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_told_by_their_drivers_names() {
        for (name, precision, expected) in [
            ("NVIDIA H200", Precision::Bf16, Some(989.4e12)),
            ("NVIDIA H100 80GB HBM3", Precision::Tf32, Some(494.7e12)),
            ("NVIDIA H100 PCIe", Precision::F32, Some(51.2e12)),
            ("NVIDIA GH200 480GB", Precision::Bf16, Some(989.4e12)),
            ("NVIDIA A100-SXM4-80GB", Precision::Bf16, Some(312e12)),
            ("NVIDIA A10G", Precision::Bf16, Some(70e12)),
            ("NVIDIA L40S", Precision::Bf16, Some(362e12)),
            ("NVIDIA L4", Precision::Bf16, Some(121e12)),
            ("NVIDIA GeForce RTX 4090", Precision::F32, Some(82.6e12)),
            ("Tesla T4", Precision::Bf16, None),
            ("Tesla T4", Precision::F32, Some(8.1e12)),
            ("emulated GPU", Precision::F32, None),
        ] {
            assert_eq!(data_sheet(name, precision), expected, "{name}");
        }
        // No product hides another behind it.
        for (index, product) in PRODUCTS.iter().enumerate() {
            assert!(PRODUCTS[..index].iter().all(|before| !product.name.contains(before.name)), "{}", product.name);
        }
    }

    #[test]
    fn a_processor_is_measured_unless_it_is_known() {
        let device = Device::cpu(2).unwrap();
        let measured = RoofFlags::default().roof(&device, Precision::F32).unwrap().unwrap();
        assert!(measured.flops > 1e8 && measured.bytes > 1e8, "{measured:?}");
        let known = RoofFlags { roof_tflops: Some(2.0), roof_gbs: Some(3.0) };
        let roof = known.roof(&device, Precision::F32).unwrap();
        assert_eq!(roof, Some(Roof { flops: 2e12, bytes: 3e9 }));
    }
}
