//! Collectives of a warp: shuffles, votes, matches, reductions, `bar.warp.sync`.

use super::cluster::Cluster;
use super::regs::{Bits, FULL, LANES};
use super::trouble::{Step, trouble};
use super::warp::{Flow, Warp, together};
use crate::code::{Collective, ReduxOp, ShflMode, VoteMode};
use crate::fault::FaultKind;

pub(crate) fn run(cluster: &mut Cluster, warp: &mut Warp, members: u32, op: &Collective, m: u32) -> Step<Flow> {
    let masks = warp.regs.word[members as usize];
    // Lanes that name the same members act together; most often all do.
    let mut left = m;
    let mut parts: [u32; LANES] = [0; LANES];
    let mut count = 0;
    while left != 0 {
        let lane = left.trailing_zeros() as usize;
        let members = masks[lane];
        let same = Bits(left).filter(|&l| masks[l] == members).fold(0, |s, l| s | 1 << l);
        if members >> lane & 1 == 0 {
            let text = format!("takes part, but is not among the members that it names, {members:#010x}");
            return trouble(FaultKind::Divergence, lane, text);
        }
        let dead = members & !warp.live;
        // Lanes that have returned or never existed cannot come any more.
        if dead != 0 {
            let text =
                format!("names lanes {} as members, and those have returned or do not exist", Cluster::lanes(dead));
            return trouble(FaultKind::Divergence, lane, text);
        }
        if let Some(wait) = together(warp, same, members) {
            return wait;
        }
        parts[count] = same;
        count += 1;
        left &= !same;
    }
    for &part in &parts[..count] {
        part_of_warp(cluster, warp, op, part);
    }
    Ok(Flow::Next)
}

fn part_of_warp(cluster: &mut Cluster, warp: &mut Warp, op: &Collective, part: u32) {
    let regs = &mut warp.regs;
    match *op {
        Collective::Sync => super::barrier::warp_sync(cluster, warp, part),
        Collective::Shfl { mode, d, p, a, b, c } => {
            let [a, b, c] = [a, b, c].map(|r| regs.word[r as usize]);
            for lane in Bits(part) {
                let (source, valid) = shuffle_source(mode, lane as u32, b[lane], c[lane]);
                // Reading a lane outside of the members is undefined: poison shows it.
                let value = if part >> source & 1 == 1 { a[source as usize] } else { u32::MAX };
                regs.word[d as usize][lane] = value;
                let bit = 1 << lane;
                regs.pred[p as usize] = regs.pred[p as usize] & !bit | if valid { bit } else { 0 };
            }
        }
        Collective::Vote { mode, d, a, flip } => {
            let votes = (regs.pred[a as usize] ^ if flip { FULL } else { 0 }) & part;
            let value = match mode {
                VoteMode::All => u64::from(votes == part),
                VoteMode::Any => u64::from(votes != 0),
                VoteMode::Uni => u64::from(votes == part || votes == 0),
                VoteMode::Ballot => u64::from(votes),
            };
            Bits(part).for_each(|lane| regs.put(d, lane, value));
        }
        Collective::MatchAny { d, a } => {
            let mut same = [0; LANES];
            for lane in Bits(part) {
                let value = regs.get(a, lane);
                same[lane] = Bits(part).filter(|&l| regs.get(a, l) == value).fold(0, |s, l| s | 1 << l);
            }
            Bits(part).for_each(|lane| regs.word[d as usize][lane] = same[lane]);
        }
        Collective::MatchAll { d, p, a } => {
            let first = regs.get(a, part.trailing_zeros() as usize);
            let all = Bits(part).all(|lane| regs.get(a, lane) == first);
            for lane in Bits(part) {
                regs.word[d as usize][lane] = if all { part } else { 0 };
            }
            regs.pred[p as usize] = regs.pred[p as usize] & !part | if all { part } else { 0 };
        }
        Collective::Redux { op, d, a } => {
            let a = regs.word[a as usize];
            let all = Bits(part).map(|lane| a[lane]);
            let value = match op {
                ReduxOp::AddU => all.fold(0, u32::wrapping_add),
                ReduxOp::MinU => all.fold(u32::MAX, u32::min),
                ReduxOp::MaxU => all.fold(0, u32::max),
                ReduxOp::MinS => all.fold(i32::MAX as u32, |x, y| (x as i32).min(y as i32) as u32),
                ReduxOp::MaxS => all.fold(i32::MIN as u32, |x, y| (x as i32).max(y as i32) as u32),
                ReduxOp::And => all.fold(u32::MAX, |x, y| x & y),
                ReduxOp::Or => all.fold(0, |x, y| x | y),
                ReduxOp::Xor => all.fold(0, |x, y| x ^ y),
            };
            Bits(part).for_each(|lane| regs.word[d as usize][lane] = value);
        }
        Collective::Elect { d, p } => {
            let leader = part.trailing_zeros();
            Bits(part).for_each(|lane| regs.word[d as usize][lane] = leader);
            regs.pred[p as usize] = regs.pred[p as usize] & !part | 1 << leader;
        }
    }
}

/// The lane that a shuffle reads, and whether it is in range; as PTX defines it.
fn shuffle_source(mode: ShflMode, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let max = (lane & segment) | (clamp & !segment);
    let min = lane & segment;
    let (source, valid) = match mode {
        ShflMode::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= max as i32),
        ShflMode::Down => (lane + b, lane + b <= max),
        ShflMode::Bfly => (lane ^ b, lane ^ b <= max),
        ShflMode::Idx => {
            let source = min | (b & !segment);
            (source, source <= max)
        }
    };
    (if valid { source & 31 } else { lane }, valid)
}
