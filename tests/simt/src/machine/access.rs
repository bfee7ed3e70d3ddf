//! Loads and stores: addresses, the state space of each lane, registers to memory and back.
//!
//! Values pass through units of 1, 2 or 4 bytes: a `v2.f64` is four units of 4.

use super::cluster::Cluster;
use super::order::Order;
use super::regs::{Bits, FULL, LANES};
use super::trouble::{Step, trouble};
use super::warp::Warp;
use crate::code::{Access, Address, Class, Extend, Space};
use crate::fault::FaultKind;
use crate::ptx::body::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};

/// In an address of shared memory of the cluster: where the block's rank plus one begins, as `mapa` puts it there.
/// Addresses without are of the block itself.
pub(crate) const RANK_SHIFT: u32 = 24;

/// Which block of its cluster a warp is in, and of how many.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Here {
    pub rank: usize,
    pub blocks: usize,
}

impl Here {
    /// The block that a 32-bit address of shared memory is of, and the address in its own.
    pub fn owner(self, address: u64) -> (usize, u64) {
        match (address as u32 >> RANK_SHIFT) as usize {
            0 => (self.rank, address),
            rank => (rank - 1, address & ((1 << RANK_SHIFT) - 1)),
        }
    }
}

/// The units of all lanes.
pub(crate) type Units = [[u32; LANES]; 8];

/// What the memories need to know about an access.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes of a unit, and units of a lane.
    pub unit: u32,
    pub count: u32,
    pub strong: bool,
    /// `ld.global.nc`.
    pub constant: bool,
}

impl Shape {
    pub fn bytes(self) -> u32 {
        self.unit * self.count
    }
}

/// The address of every lane.
#[inline(always)]
pub(crate) fn addresses(warp: &Warp, address: &Address) -> [u64; LANES] {
    let mut out = [address.offset as u64; LANES];
    match address.base {
        None => {}
        Some(base) if base.class == Class::Word => {
            // Shared addresses: 32 bits, wrapping like them.
            let base = &warp.regs.word[base.reg as usize];
            for i in 0..LANES {
                out[i] = u64::from(base[i].wrapping_add(address.offset as u32));
            }
        }
        Some(base) => {
            let base = &warp.regs.long[base.reg as usize];
            for i in 0..LANES {
                out[i] = base[i].wrapping_add(address.offset as u64);
            }
        }
    }
    out
}

/// Checks that addresses are multiples of the access's width.
#[inline(always)]
pub(crate) fn check_aligned(at: &[u64; LANES], m: u32, bytes: u32, what: &str) -> Step {
    let low = u64::from(bytes - 1);
    let mut any = 0;
    for i in 0..LANES {
        any |= if m >> i & 1 == 1 { at[i] & low } else { 0 };
    }
    if any == 0 { Ok(()) } else { misaligned(at, m, bytes, what) }
}

#[cold]
fn misaligned(at: &[u64; LANES], m: u32, bytes: u32, what: &str) -> Step {
    let lane = Bits(m).find(|&l| !at[l].is_multiple_of(u64::from(bytes))).unwrap_or(0);
    let over = at[lane] % u64::from(bytes);
    let text =
        format!("{what} of {bytes} bytes at address {:#x}, which is {over} past a multiple of {bytes}", at[lane]);
    trouble(FaultKind::Misaligned, lane, text)
}

/// The space that generic addresses are in.
fn window(address: u64) -> Space {
    match (address >> 56) as i64 {
        w if w == LOCAL_WINDOW >> 56 => Space::Local,
        w if w == SHARED_WINDOW >> 56 => Space::Shared,
        w if w == PARAM_WINDOW >> 56 => Space::Param,
        _ => Space::Global,
    }
}

/// Calls `f` for every space that occurs among the lanes, with the block whose shared memory it is, the addresses in
/// that space and the lanes.
pub(crate) fn by_space(
    here: Here,
    space: Space,
    at: &mut [u64; LANES],
    m: u32,
    mut f: impl FnMut(Space, usize, &[u64; LANES], u32) -> Step,
) -> Step {
    if !matches!(space, Space::Generic | Space::Cluster) {
        return f(space, here.rank, at, m);
    }
    let place = |address: u64| {
        let space = if space == Space::Cluster { Space::Shared } else { window(address) };
        (space, if space == Space::Shared { here.owner(address & u64::from(u32::MAX)).0 } else { 0 })
    };
    let mut left = m;
    while left != 0 {
        let lane = left.trailing_zeros() as usize;
        let (space, block) = place(at[lane]);
        let part = Bits(left).filter(|&l| place(at[l]) == (space, block)).fold(0, |p, l| p | 1 << l);
        if space == Space::Shared {
            if block >= here.blocks {
                let text = format!("shared memory of block {block} of a cluster of {}", here.blocks);
                return trouble(FaultKind::OutOfBounds, lane, text);
            }
            Bits(part).for_each(|l| at[l] = here.owner(at[l] & u64::from(u32::MAX)).1);
        }
        f(space, block, at, part)?;
        left &= !part;
    }
    Ok(())
}

#[inline(never)]
pub(crate) fn load(cluster: &mut Cluster, warp: &mut Warp, sync: &mut Order, access: &Access, m: u32) -> Step {
    let shape = shape(access);
    if access.space == Space::Param && access.address.base.is_none() {
        return load_param(cluster, warp, access, m);
    }
    let mut at = addresses(warp, &access.address);
    // Every call starts anew with what an earlier one left: only lanes that load are looked at.
    let mut units = cluster.units.take().unwrap_or_default();
    check_aligned(&at, m, shape.bytes(), "a load")?;
    by_space(warp.here, access.space, &mut at, m, |space, block, at, m| match space {
        Space::Shared => super::shared::load(cluster, warp, block, at, m, shape, &mut units),
        Space::Local => local(cluster, warp, at, m, shape, &mut units, false),
        Space::Param => params(cluster, at, m, shape, &mut units),
        _ => super::global::load(cluster, warp, sync, at, m, shape, &mut units),
    })?;
    if access.order.strong {
        let address = |lane: usize| (access.space, at[lane]);
        super::atomic::strong_read(cluster, warp, sync, m, address, access.order.acquire);
    }
    to_registers(warp, access, m, &units);
    cluster.units = Some(units);
    Ok(())
}

#[inline(never)]
pub(crate) fn store(cluster: &mut Cluster, warp: &mut Warp, sync: &mut Order, access: &Access, m: u32) -> Step {
    let shape = shape(access);
    let mut at = addresses(warp, &access.address);
    let mut units = cluster.units.take().unwrap_or_default();
    check_aligned(&at, m, shape.bytes(), "a store")?;
    from_registers(warp, access, &mut units);
    sync.progress += 1;
    if access.order.strong {
        let address = |lane: usize| (access.space, at[lane]);
        super::atomic::strong_write(cluster, warp, sync, m, address, access.order.release);
    }
    by_space(warp.here, access.space, &mut at, m, |space, block, at, m| match space {
        Space::Shared => super::shared::store(cluster, warp, block, at, m, shape, &units),
        Space::Local => local(cluster, warp, at, m, shape, &mut units, true),
        Space::Param => trouble(FaultKind::ReadOnly, m.trailing_zeros() as usize, "writes a kernel parameter"),
        _ => super::global::store(cluster, warp, sync, at, m, shape, &units),
    })?;
    cluster.units = Some(units);
    Ok(())
}

fn shape(access: &Access) -> Shape {
    let unit = access.width.min(4);
    let count = access.width / unit * access.regs.len() as u32;
    Shape { unit, count, strong: access.order.strong, constant: access.constant }
}

#[inline(always)]
fn to_registers(warp: &mut Warp, access: &Access, m: u32, units: &Units) {
    let regs = &mut warp.regs;
    if access.width == 8 {
        for (i, place) in access.regs.iter().enumerate() {
            let (lo, hi) = (&units[2 * i], &units[2 * i + 1]);
            let d = &mut regs.long[place.reg as usize];
            for lane in 0..LANES {
                let value = u64::from(hi[lane]) << 32 | u64::from(lo[lane]);
                d[lane] = if m >> lane & 1 == 1 { value } else { d[lane] };
            }
        }
        return;
    }
    for (unit, place) in units.iter().zip(&access.regs) {
        if place.class == Class::Word && access.extend == Extend::Zero {
            let d = &mut regs.word[place.reg as usize];
            if m == FULL {
                *d = *unit;
            } else {
                for lane in 0..LANES {
                    d[lane] = if m >> lane & 1 == 1 { unit[lane] } else { d[lane] };
                }
            }
            continue;
        }
        let bits = 8 * access.width;
        for lane in Bits(m) {
            let signed = crate::lower::scalar::sign_extend(unit[lane].into(), bits);
            let value = match access.extend {
                Extend::Zero => unit[lane].into(),
                Extend::SignHalf => signed as u64 & 0xFFFF,
                Extend::Sign => u64::from(signed as u32),
                Extend::SignLong => signed as u64,
            };
            regs.put(*place, lane, value);
        }
    }
}

#[inline(always)]
fn from_registers(warp: &Warp, access: &Access, units: &mut Units) {
    let regs = &warp.regs;
    for (i, place) in access.regs.iter().enumerate() {
        match (place.class, access.width) {
            (Class::Word, _) => units[i] = regs.word[place.reg as usize],
            (_, 8) => {
                let a = &regs.long[place.reg as usize];
                for lane in 0..LANES {
                    units[2 * i][lane] = a[lane] as u32;
                    units[2 * i + 1][lane] = (a[lane] >> 32) as u32;
                }
            }
            _ => (0..LANES).for_each(|lane| units[i][lane] = regs.get(*place, lane) as u32),
        }
    }
}

/// A parameter at a known place: the same for all lanes.
fn load_param(cluster: &Cluster, warp: &mut Warp, access: &Access, m: u32) -> Step {
    let shape = shape(access);
    let at = [access.address.offset as u64; LANES];
    check_aligned(&at, m, shape.bytes(), "a load")?;
    let mut units: Units = [[0; LANES]; 8];
    let one = m & m.wrapping_neg();
    params(cluster, &at, one, shape, &mut units)?;
    let lane = one.trailing_zeros() as usize;
    for unit in &mut units[..shape.count as usize] {
        *unit = [unit[lane]; LANES];
    }
    to_registers(warp, access, m, &units);
    Ok(())
}

fn read_units(bytes: &[u8], shape: Shape, lane: usize, units: &mut Units) {
    for (unit, part) in units.iter_mut().zip(bytes.chunks_exact(shape.unit as usize)) {
        unit[lane] = part.iter().rev().fold(0, |v, &b| v << 8 | u32::from(b));
    }
}

fn params(cluster: &Cluster, at: &[u64; LANES], m: u32, shape: Shape, units: &mut Units) -> Step {
    for lane in Bits(m) {
        let offset = at[lane].wrapping_sub(PARAM_WINDOW as u64);
        let end = offset.checked_add(shape.bytes().into());
        let params = cluster.context.params;
        match end.filter(|&end| end <= params.len() as u64) {
            Some(end) => read_units(&params[offset as usize..end as usize], shape, lane, units),
            None => {
                let text = format!("reads at byte {offset} of the {} bytes of parameters", params.len());
                return trouble(FaultKind::OutOfBounds, lane, text);
            }
        }
    }
    Ok(())
}

/// A thread's own memory: arrays that do not fit registers.
fn local(
    cluster: &Cluster,
    warp: &mut Warp,
    at: &[u64; LANES],
    m: u32,
    shape: Shape,
    units: &mut Units,
    write: bool,
) -> Step {
    let size = warp.local_bytes as u64;
    for lane in Bits(m) {
        let offset = at[lane].wrapping_sub(LOCAL_WINDOW as u64);
        let end = offset.checked_add(shape.bytes().into());
        let Some(end) = end.filter(|&end| end <= size) else {
            let text = format!(
                "{} bytes at byte {offset} of the thread's local memory of {size} bytes (kernel `{}`): an index past \
                 the end of a local array?",
                shape.bytes(),
                cluster.context.name
            );
            return trouble(FaultKind::OutOfBounds, lane, text);
        };
        let base = lane * warp.local_bytes;
        let range = base + offset as usize..base + end as usize;
        if write {
            for (unit, part) in units.iter().zip(warp.local[range.clone()].chunks_exact_mut(shape.unit as usize)) {
                part.copy_from_slice(&unit[lane].to_le_bytes()[..shape.unit as usize]);
            }
            warp.local_written[range].fill(true);
        } else {
            if let Some(first) = warp.local_written[range.clone()].iter().position(|w| !w) {
                let text = format!("reads byte {} of its local memory, never written", offset + first as u64);
                return trouble(FaultKind::UninitialisedMemory, lane, text);
            }
            read_units(&warp.local[range], shape, lane, units);
        }
    }
    Ok(())
}
