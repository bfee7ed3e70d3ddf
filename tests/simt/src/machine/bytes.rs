//! Stretches of global memory that one lane reads or writes: asynchronous copies.

use super::access::{Shape, Units};
use super::cluster::Cluster;
use super::global::{read, write};
use super::order::Order;
use super::regs::LANES;
use super::trouble::Step;
use super::warp::Warp;

/// Reads bytes for one lane, in as large steps as alignment allows.
pub(crate) fn load(
    cluster: &mut Cluster,
    warp: &Warp,
    sync: &mut Order,
    from: u64,
    bytes: &mut [u8],
    lane: usize,
) -> Step {
    let mut units: Units = [[0; LANES]; 8];
    by_steps(from, bytes.len(), |at, range, shape| {
        let hint = read(cluster, warp, sync, &[at; LANES], 1 << lane, shape, &mut units)?;
        cluster.hints[warp.pc] = hint;
        for (unit, part) in units.iter().zip(bytes[range].chunks_exact_mut(shape.unit as usize)) {
            part.copy_from_slice(&unit[lane].to_le_bytes()[..shape.unit as usize]);
        }
        Ok(())
    })
}

/// Writes bytes for one lane.
pub(crate) fn store(cluster: &mut Cluster, warp: &Warp, sync: &mut Order, to: u64, bytes: &[u8], lane: usize) -> Step {
    let mut units: Units = [[0; LANES]; 8];
    by_steps(to, bytes.len(), |at, range, shape| {
        for (unit, part) in units.iter_mut().zip(bytes[range].chunks_exact(shape.unit as usize)) {
            unit[lane] = part.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
        }
        let hint = write(cluster, warp, sync, &[at; LANES], 1 << lane, shape, &units)?;
        cluster.hints[warp.pc] = hint;
        Ok(())
    })
}

/// Calls `f` for stretches of 16, 4 and 1 bytes.
fn by_steps(start: u64, bytes: usize, mut f: impl FnMut(u64, std::ops::Range<usize>, Shape) -> Step) -> Step {
    let mut done = 0;
    while done < bytes {
        let at = start.wrapping_add(done as u64);
        let fits = |step: usize| at.is_multiple_of(step as u64) && bytes - done >= step;
        let (unit, count) = if fits(16) { (4, 4) } else { (if fits(4) { 4 } else { 1 }, 1) };
        let step = (unit * count) as usize;
        f(at, done..done + step, Shape { unit, count, strong: false, constant: false })?;
        done += step;
    }
    Ok(())
}
