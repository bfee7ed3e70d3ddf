//! The barrier of a cluster: `barrier.cluster.arrive` and `barrier.cluster.wait`.

use super::cluster::Cluster;
use super::order::{Joined, Order};
use super::trouble::{Step, trouble};
use super::warp::{Flow, Group, State, Warp, together};
use crate::fault::FaultKind;

#[derive(Default)]
pub(crate) struct ClusterBarrier {
    /// Lanes of each warp that arrived in the present phase, and in the last one without having waited.
    arrived: Vec<u32>,
    passing: Vec<u32>,
    joined: Joined,
    /// What was known at the end of the last phase.
    over: Joined,
}

impl ClusterBarrier {
    pub fn new(warps: usize) -> ClusterBarrier {
        ClusterBarrier { arrived: vec![0; warps], passing: vec![0; warps], ..ClusterBarrier::default() }
    }
}

pub(crate) fn arrive(
    cluster: &mut Cluster,
    warp: &mut Warp,
    sync: &mut Order,
    release: bool,
    aligned: bool,
    m: u32,
) -> Step<Flow> {
    if aligned && let Some(wait) = together(warp, m, warp.live) {
        return wait;
    }
    let again = (cluster.meeting.arrived[warp.id] | cluster.meeting.passing[warp.id]) & m;
    if again != 0 {
        let text = "arrives at the barrier of the cluster again without having waited at it";
        return trouble(FaultKind::Divergence, again.trailing_zeros() as usize, text);
    }
    cluster.counters.barriers += 1;
    sync.progress += 1;
    cluster.meeting.arrived[warp.id] |= m;
    cluster.now += 1;
    if release {
        cluster.meeting.joined.add(warp.id, &warp.clock, cluster.now, m == warp.live);
    } else {
        // Only what a fence before it released.
        cluster.meeting.joined.add_known(&warp.clock.fenced);
    }
    warp.clock.now = cluster.now;
    complete(cluster, warp);
    Ok(Flow::Next)
}

pub(crate) fn wait(cluster: &mut Cluster, warp: &mut Warp, aligned: bool, mask: u32, m: u32) -> Step<Flow> {
    if aligned && let Some(wait) = together(warp, m, warp.live) {
        return wait;
    }
    let meeting = &mut cluster.meeting;
    let missing = m & !(meeting.arrived[warp.id] | meeting.passing[warp.id]);
    if missing != 0 {
        let text = "waits at the barrier of the cluster without having arrived at it";
        return trouble(FaultKind::Divergence, missing.trailing_zeros() as usize, text);
    }
    if m & !meeting.passing[warp.id] != 0 {
        // The instruction runs anew when all have arrived: it counts once.
        cluster.counters.instructions -= 1;
        let here = warp.pc as u32;
        warp.groups.push(Group { pc: here, mask: m, state: State::ClusterBarrier });
        if mask != m {
            cluster.counters.instructions += 1;
            warp.groups.push(Group { pc: here + 1, mask: mask & !m, state: State::Ready });
        }
        return Ok(Flow::Regrouped);
    }
    meeting.passing[warp.id] &= !m;
    meeting.over.teach(warp.id, &mut warp.clock, cluster.warps.len(), m == warp.live);
    Ok(Flow::Next)
}

/// Lets the warps go if all threads that have not returned have arrived.
fn complete(cluster: &mut Cluster, current: &mut Warp) {
    let meeting = &cluster.meeting;
    let there = |id: usize, warp: &Warp| warp.live & !meeting.arrived[id] == 0;
    let others = cluster.warps.iter().enumerate().all(|(id, warp)| id == current.id || there(id, warp));
    if !others || !there(current.id, current) || meeting.arrived.iter().all(|&a| a == 0) {
        return;
    }
    let meeting = &mut cluster.meeting;
    for (passing, arrived) in meeting.passing.iter_mut().zip(&mut meeting.arrived) {
        *passing |= std::mem::take(arrived);
    }
    meeting.over = std::mem::take(&mut meeting.joined);
    for block in 0..cluster.blocks.len() {
        cluster.wake(Some(&mut *current), block, State::ClusterBarrier);
    }
}

/// Threads have returned: the others need not wait for them.
pub(crate) fn after_exit(cluster: &mut Cluster, warp: &mut Warp) {
    let id = warp.id;
    let live = warp.live;
    let meeting = &mut cluster.meeting;
    meeting.arrived[id] &= live;
    meeting.passing[id] &= live;
    complete(cluster, warp);
}
