//! `mma`, `ldmatrix` and `stmatrix`.
//!
//! Fragments as PTX lays them out; with group = lane / 4 and t = lane % 4, register i of the accumulator holds row
//! group (+8 for i ≥ 2), column 2t + i % 2.

use super::access::addresses;
use super::banks::count_banks;
use super::cluster::Cluster;
use super::regs::LANES;
use super::shadow::{Spot, check_read, check_write, note_matrix_read, note_write};
use super::trouble::{Step, trouble};
use super::warp::Warp;
use crate::code::{MatrixAccess, Mma, MmaType, Space};
use crate::fault::FaultKind;
use crate::lower::float::{F16, Round, from_f64};
use crate::ptx::body::SHARED_WINDOW;

/// Element `part` of a register of factors.
pub(crate) fn element(ty: MmaType, word: u32, part: usize) -> f32 {
    match ty {
        // The tensor core reads the upper 19 bits.
        MmaType::Tf32 => f32::from_bits(word & !0x1FFF),
        MmaType::Bf16 => f32::from_bits(if part == 0 { word << 16 } else { word & 0xFFFF_0000 }),
        MmaType::F16 => half::f16::from_bits((word >> (16 * part)) as u16).to_f32(),
    }
}

pub(crate) fn mma(warp: &mut Warp, mma: &Mma) {
    let regs = &mut warp.regs;
    let k = mma.k as usize;
    let parts = if mma.ty == MmaType::Tf32 { 1 } else { 2 };
    let mut a = [[0f32; 16]; 16];
    let mut b = [[0f32; 8]; 16];
    for lane in 0..LANES {
        let (group, t) = (lane / 4, lane % 4);
        // Registers of `a`: rows group and group + 8, then the columns of the next half of k.
        for (i, &reg) in mma.a.iter().enumerate() {
            let word = regs.word[reg as usize][lane];
            for part in 0..parts {
                a[group + 8 * (i % 2)][parts * t + part + 4 * parts * (i / 2)] = element(mma.ty, word, part);
            }
        }
        for (i, &reg) in mma.b.iter().enumerate() {
            let word = regs.word[reg as usize][lane];
            for part in 0..parts {
                b[parts * t + part + 4 * parts * i][group] = element(mma.ty, word, part);
            }
        }
    }
    // Products are exact in f64; the sum is rounded once to the accumulator. Hardware rounds in other places.
    let mut sums = [[0f64; 8]; 16];
    for (a, sums) in a.iter().zip(&mut sums) {
        for (b, &a) in b[..k].iter().zip(a) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum += f64::from(a) * f64::from(b);
            }
        }
    }
    let mut out = [[0u32; LANES]; 4];
    for lane in 0..LANES {
        let (group, t) = (lane / 4, lane % 4);
        for i in 0..4 {
            let sum = sums[group + 8 * (i / 2)][2 * t + i % 2];
            if mma.half {
                let c = regs.word[mma.c[i / 2] as usize][lane] >> (16 * (i % 2));
                let c = half::f16::from_bits(c as u16).to_f64();
                out[i / 2][lane] |= (from_f64(sum + c, F16, Round::Nearest) as u32) << (16 * (i % 2));
            } else {
                let c = f32::from_bits(regs.word[mma.c[i] as usize][lane]);
                let value = (sum + f64::from(c)) as f32;
                out[i][lane] = if value.is_nan() { 0x7FFF_FFFF } else { value.to_bits() };
            }
        }
    }
    for (&d, out) in mma.d.iter().zip(&out) {
        regs.word[d as usize] = *out;
    }
}

/// Each matrix has eight rows of 16 bytes, whose addresses eight lanes give.
pub(crate) fn access(cluster: &mut Cluster, warp: &mut Warp, matrix: &MatrixAccess) -> Step {
    let mut at = addresses(warp, &matrix.address);
    let count = matrix.regs.len();
    let block = warp.rank;
    for (lane, at) in at.iter_mut().enumerate().take(8 * count) {
        if matrix.space == Space::Generic {
            *at = at.wrapping_sub(SHARED_WINDOW as u64);
        }
        if *at % 16 != 0 {
            let text = format!("a row of a matrix at address {at:#x}, which is no multiple of 16");
            return trouble(FaultKind::Misaligned, lane, text);
        }
    }
    for (i, &reg) in matrix.regs.iter().enumerate() {
        count_banks(cluster, &at, 0xFF << (8 * i), 16);
        let mut rows = [[0u16; 8]; 8];
        if matrix.store {
            for lane in 0..LANES {
                let word = warp.regs.word[reg as usize][lane];
                for part in 0..2 {
                    let (row, column) = place(lane, part, matrix.trans);
                    rows[row][column] = (word >> (16 * part)) as u16;
                }
            }
        }
        for (row, values) in rows.iter_mut().enumerate() {
            let lane = 8 * i + row;
            let offset = cluster.shared[block].offset(at[lane], 16, lane)?;
            let shift = cluster.shared[block].shift;
            for granule in offset >> shift..(offset + 16) >> shift {
                let spot = Spot { block, granule };
                if matrix.store {
                    check_write(cluster, warp, spot, lane, false, 0)?;
                    note_write(cluster, warp, spot, lane, false);
                } else {
                    check_read(cluster, warp, spot, lane, false)?;
                    note_matrix_read(cluster, warp, spot, lane);
                }
            }
            for (word, pair) in
                cluster.shared[block].words[offset / 4..offset / 4 + 4].iter_mut().zip(values.chunks_exact_mut(2))
            {
                if matrix.store {
                    *word = u32::from(pair[0]) | u32::from(pair[1]) << 16;
                } else {
                    pair.copy_from_slice(&[*word as u16, (*word >> 16) as u16]);
                }
            }
        }
        if !matrix.store {
            for lane in 0..LANES {
                let part = |part| {
                    let (row, column) = place(lane, part, matrix.trans);
                    u32::from(rows[row][column])
                };
                warp.regs.word[reg as usize][lane] = part(0) | part(1) << 16;
            }
        }
    }
    Ok(())
}

/// Row and column of a lane's element.
fn place(lane: usize, part: usize, trans: bool) -> (usize, usize) {
    let (row, column) = (lane / 4, 2 * (lane % 4) + part);
    if trans { (column, row) } else { (row, column) }
}
