//! `wgmma`: matrix products of four warps, with factors in shared memory as descriptors say.
//!
//! Each warp computes its 16 of the 64 rows. The fragments are those of `mma` (see `matrix`), repeated for each 8
//! columns. Layouts in shared memory are made of chunks of 16 bytes; with e the elements of a chunk and s the swizzle's
//! chunks (1 without), chunk (i, j) of a factor is at
//!
//! - K-major, row or column i, elements e·j … of k: `(i mod 8)·16s + (i / 8)·stride + j·16`, without swizzle
//!   `… + j·leading`;
//! - MN-major, rows or columns e·j …, element i of k: `(j mod s)·16 + (j / s)·leading + (i mod 8)·16s + (i / 8)·stride`,
//!   without swizzle `j·stride + (i mod 8)·16 + (i / 8)·leading`;
//!
//! from the start on, bits 4 to 6 of the address then exchanged as [`Swizzle`] says.

use std::rc::Rc;

use super::cluster::Cluster;
use super::flight::{Reader, begin_read};
use super::matrix::element;
use super::regs::{FULL, LANES};
use super::shadow::{Spot, check_proxy, check_read};
use super::trouble::{Step, trouble};
use super::warp::{Flow, Warp, together};
use super::warpgroup;
use crate::code::asynchronous::{Asynchronous, Factor, Wgmma};
use crate::code::{Inst, MmaType, Op};
use crate::fault::FaultKind;
use crate::tensor::Swizzle;

/// Rows of a warp.
const ROWS: usize = 16;

/// A shared memory descriptor.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
    swizzle: Swizzle,
    /// The fastest direction in memory is that of rows or columns, not of k.
    transposed: bool,
}

impl Descriptor {
    fn new(bits: u64, transposed: bool) -> Step<Descriptor> {
        let field = |from: u32| (bits >> from & 0x3FFF) << 4;
        if bits >> 49 & 7 != 0 {
            let text = "a matrix descriptor with a base offset: only layouts that begin at multiples of their pattern are modelled";
            return trouble(FaultKind::Unsupported, None, text);
        }
        let swizzle = [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][(bits >> 62) as usize];
        Ok(Descriptor { start: field(0), leading: field(16), stride: field(32), swizzle, transposed })
    }

    /// The address of chunk (i, j).
    fn chunk(&self, i: usize, j: usize) -> u64 {
        let (i, j) = (i as u64, j as u64);
        let chunks = (self.swizzle.bytes() / 16) as u64;
        let plain = self.swizzle == Swizzle::None;
        let offset = match (self.transposed, plain) {
            (false, true) => i % 8 * 16 + i / 8 * self.stride + j * self.leading,
            (false, false) => i % 8 * 16 * chunks + i / 8 * self.stride + j * 16,
            (true, true) => j * self.stride + i % 8 * 16 + i / 8 * self.leading,
            (true, false) => j % chunks * 16 + j / chunks * self.leading + i % 8 * 16 * chunks + i / 8 * self.stride,
        };
        self.swizzle.apply((self.start + offset) & 0x3_FFFF)
    }
}

/// Reads the rows `first..first + count` of a factor (columns of `b`) as `k` numbers each.
fn read(
    cluster: &Cluster,
    warp: &Warp,
    ty: MmaType,
    descriptor: &Descriptor,
    (first, count, k): (usize, usize, usize),
    spots: &mut Vec<Spot>,
) -> Step<Vec<f32>> {
    let block = warp.rank;
    let shared = &cluster.shared[block];
    let parts = if ty == MmaType::Tf32 { 1 } else { 2 };
    let each = 4 * parts;
    let mut out = vec![0.0; count * k];
    let (lines, chunks) = if descriptor.transposed {
        (0..k, first / each..(first + count) / each)
    } else {
        (first..first + count, 0..k / each)
    };
    for i in lines {
        for j in chunks.clone() {
            let offset = shared.offset(descriptor.chunk(i, j), 16, 0)?;
            for granule in offset >> shared.shift..(offset + 16) >> shared.shift {
                let spot = Spot { block, granule };
                check_read(cluster, warp, spot, 0, false)?;
                check_proxy(cluster, warp, spot, 0)?;
                spots.push(spot);
            }
            for (at, &word) in shared.words[offset / 4..offset / 4 + 4].iter().enumerate() {
                for part in 0..parts {
                    let along = each * j + parts * at + part;
                    let place = if descriptor.transposed { (along - first) * k + i } else { (i - first) * k + along };
                    out[place] = element(ty, word, part);
                }
            }
        }
    }
    Ok(out)
}

/// The factor `a` of a warp's rows, from its registers.
fn from_registers(warp: &Warp, ty: MmaType, regs: &[u32], k: usize) -> Vec<f32> {
    let parts = if ty == MmaType::Tf32 { 1 } else { 2 };
    let mut out = vec![0.0; ROWS * k];
    for lane in 0..LANES {
        let (group, t) = (lane / 4, lane % 4);
        for (i, &reg) in regs.iter().enumerate() {
            for part in 0..parts {
                let (row, column) = (group + 8 * (i % 2), parts * t + part + 4 * parts * (i / 2));
                out[row * k + column] = element(ty, warp.regs.word[reg as usize][lane], part);
            }
        }
    }
    out
}

/// The registers that an instruction names as sources and does not read: those that `wgmma` sets without adding.
pub(crate) fn replaced<'i>(warp: &Warp, inst: &'i Inst) -> &'i [u32] {
    match &inst.op {
        Op::Asynchronous(op) => match &**op {
            Asynchronous::Wgmma(wgmma) if adds(warp, wgmma) == 0 => &wgmma.c,
            _ => &[],
        },
        _ => &[],
    }
}

/// The lanes that add to what is there.
fn adds(warp: &Warp, wgmma: &Wgmma) -> u32 {
    warp.regs.pred[wgmma.add.0 as usize] ^ if wgmma.add.1 { FULL } else { 0 }
}

pub(crate) fn run(cluster: &mut Cluster, warp: &mut Warp, wgmma: &Wgmma, m: u32) -> Step<Flow> {
    if let Some(wait) = together(warp, m, FULL) {
        return wait;
    }
    let uniform = |warp: &Warp, reg: u32| -> Step<u64> {
        let values = &warp.regs.long[reg as usize];
        match values.iter().position(|v| *v != values[0]) {
            None => Ok(values[0]),
            Some(lane) => trouble(FaultKind::Divergence, lane, "lanes of one warp name different matrix descriptors"),
        }
    };
    let b = uniform(warp, wgmma.b)?;
    let a = match &wgmma.a {
        Factor::Registers(_) => None,
        Factor::Shared { descriptor, transposed } => Some((uniform(warp, *descriptor)?, *transposed)),
    };
    let add = adds(warp, wgmma);
    if add != 0 && add != FULL {
        return trouble(FaultKind::Divergence, None, "lanes of one warp disagree on whether wgmma adds to its result");
    }
    if warpgroup::join(cluster, warp, [a.map_or(0, |a| a.0), b, u64::from(add)])? {
        cluster.counters.wgmma += 1;
        let k = if wgmma.ty == MmaType::Tf32 { 8 } else { 16 };
        cluster.counters.wgmma_products += 64 * u64::from(wgmma.n) * k;
    }
    let number = warp.flight.begin(wgmma)?;
    let (n, k) = (wgmma.n as usize, if wgmma.ty == MmaType::Tf32 { 8 } else { 16 });
    let mut spots = Vec::new();
    let a = match (&wgmma.a, a) {
        (Factor::Registers(regs), _) => from_registers(warp, wgmma.ty, regs, k),
        (_, Some((bits, transposed))) => {
            let descriptor = Descriptor::new(bits, transposed)?;
            let first = ROWS * (warp.index % 4);
            read(cluster, warp, wgmma.ty, &descriptor, (first, ROWS, k), &mut spots)?
        }
        _ => Vec::new(),
    };
    let b = read(cluster, warp, wgmma.ty, &Descriptor::new(b, wgmma.b_transposed)?, (0, n, k), &mut spots)?;
    begin_read(cluster, warp, Reader::Wgmma(number), Rc::from(spots));
    let sign = if wgmma.negate_a != wgmma.negate_b { -1.0 } else { 1.0 };
    // Products are exact in f64; the sum is rounded once to the accumulator. Hardware rounds in other places.
    let sum = |row: usize, column: usize| -> f64 {
        let pairs = a[row * k..][..k].iter().zip(&b[column * k..][..k]);
        pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() * sign
    };
    for (i, &reg) in wgmma.d.iter().enumerate() {
        let d = &mut warp.regs.word[reg as usize];
        for (lane, d) in d.iter_mut().enumerate() {
            let (row, column) = (lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2);
            let old = if add == 0 { 0.0 } else { f64::from(f32::from_bits(*d)) };
            let value = (sum(row, column) + old) as f32;
            *d = if value.is_nan() { 0x7FFF_FFFF } else { value.to_bits() };
        }
    }
    Ok(Flow::Next)
}
