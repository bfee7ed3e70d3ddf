//! Which allocations and parts are alive.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Allocation, Dead, Range, Table};
use crate::fault::{Fault, FaultKind};
use crate::module::Module;

/// Allocations begin at multiples of this.
const ALIGN: u64 = 512;
/// Unmapped bytes between allocations.
const GAP: u64 = 1 << 20;
/// The first allocation.
const START: u64 = 0x7F_0000_0000;
/// Addresses stay below the windows of other state spaces.
const LIMIT: u64 = 1 << 55;
/// So many freed buffers are remembered, to name them in faults.
const REMEMBERED: usize = 1024;

struct State {
    allocation: Arc<Allocation>,
    carved: bool,
    /// Live parts: start address to end and name.
    parts: BTreeMap<u64, (u64, Arc<str>)>,
}

#[derive(Default)]
pub(crate) struct Store {
    allocations: BTreeMap<u64, State>,
    variables: HashMap<(u64, usize), u64>,
    dead: Vec<Dead>,
    next: u64,
    pub live_bytes: usize,
    table: Option<Arc<Table>>,
    /// The number of the last launch, for race records: 1 to 1023.
    launch: u64,
}

fn host<T>(message: String) -> Result<T, Fault> {
    Err(Fault::new(FaultKind::Host, message))
}

impl Store {
    pub fn alloc(&mut self, bytes: usize, name: &str, capacity: Option<usize>) -> Result<u64, Fault> {
        let free = capacity.unwrap_or(usize::MAX).saturating_sub(self.live_bytes);
        if bytes > free {
            return Err(Fault::new(
                FaultKind::OutOfMemory,
                format!(
                    "out of memory: {bytes} bytes wanted for `{name}`, {free} left of {} ({} in use)",
                    capacity.unwrap_or(usize::MAX),
                    self.live_bytes
                ),
            ));
        }
        let address = self.place(bytes, name, false)?;
        self.live_bytes += bytes;
        Ok(address)
    }

    fn place(&mut self, bytes: usize, name: &str, constant: bool) -> Result<u64, Fault> {
        let address = self.next.max(START);
        let end = (bytes as u64).checked_next_multiple_of(ALIGN).and_then(|b| b.checked_add(address + GAP));
        let Some(end) = end.filter(|&end| end < LIMIT) else {
            return Err(Fault::new(
                FaultKind::OutOfMemory,
                format!("out of memory: {bytes} bytes wanted for `{name}`, more than there are addresses"),
            ));
        };
        self.next = end;
        let allocation = Arc::new(Allocation::new(address, bytes, name, constant));
        self.allocations.insert(address, State { allocation, carved: false, parts: BTreeMap::new() });
        self.table = None;
        Ok(address)
    }

    fn bury(&mut self, start: u64, end: u64, name: Arc<str>) {
        if self.dead.len() >= REMEMBERED {
            self.dead.remove(0);
        }
        self.dead.push(Dead { start, end, name });
        self.table = None;
    }

    pub fn free(&mut self, address: u64) -> Result<(), Fault> {
        let Some(state) = self.allocations.remove(&address) else {
            return match self.dead.iter().rev().find(|d| d.start == address) {
                Some(dead) => host(format!("free: buffer `{}` has been freed already", dead.name)),
                None => host(format!("free: {address:#x} is not the start of an allocation")),
            };
        };
        self.live_bytes -= state.allocation.bytes;
        let end = address + state.allocation.bytes as u64;
        self.bury(address, end, state.allocation.name.clone());
        Ok(())
    }

    pub fn carve(&mut self, address: u64, bytes: usize, name: &str) -> Result<(), Fault> {
        let found = self.allocations.range_mut(..=address).next_back();
        let end = address.saturating_add(bytes as u64);
        let Some((_, state)) = found.filter(|(base, s)| end <= **base + s.allocation.bytes as u64) else {
            return host(format!("carve: `{name}`, {bytes} bytes at {address:#x}, is in no allocation"));
        };
        let before = state.parts.range(..end).next_back();
        if let Some((start, (_, other))) =
            before.filter(|(start, (part_end, _))| *part_end > address || **start >= address)
        {
            return host(format!("carve: `{name}` at {address:#x} overlaps `{other}` at {start:#x}, which is live"));
        }
        state.allocation.clear((address - state.allocation.base) as usize, bytes);
        state.carved = true;
        state.parts.insert(address, (end, name.into()));
        self.table = None;
        Ok(())
    }

    pub fn release(&mut self, address: u64) -> Result<(), Fault> {
        let found = self.allocations.range_mut(..=address).next_back();
        match found.and_then(|(_, state)| state.parts.remove(&address)) {
            Some((end, name)) => {
                self.bury(address, end, name);
                Ok(())
            }
            None => host(format!("release: no live part starts at {address:#x}")),
        }
    }

    /// The live buffers as they are now.
    pub fn table(&mut self) -> Arc<Table> {
        if let Some(table) = &self.table {
            return table.clone();
        }
        let mut ranges = Vec::new();
        for (&start, state) in &self.allocations {
            let allocation = &state.allocation;
            let range =
                |start, end, name: &Arc<str>| Range { start, end, name: name.clone(), allocation: allocation.clone() };
            if state.carved {
                ranges.extend(state.parts.iter().map(|(&start, (end, name))| range(start, *end, name)));
            } else {
                ranges.push(range(start, start + allocation.bytes as u64, &allocation.name));
            }
        }
        let table = Arc::new(Table { ranges, dead: self.dead.clone() });
        self.table = Some(table.clone());
        table
    }

    /// The address of a module's variable; made and filled at its first use.
    pub fn variable(&mut self, module: &Module, index: usize) -> Result<u64, Fault> {
        if let Some(&address) = self.variables.get(&(module.id, index)) {
            return Ok(address);
        }
        let var = &module.vars[index];
        if var.align as u64 > ALIGN {
            return Err(Fault::new(
                FaultKind::Unsupported,
                format!("`{}` wants an alignment of {}", var.name, var.align),
            ));
        }
        let address = self.place(var.contents.len(), &var.name, var.constant)?;
        self.allocations[&address].allocation.write(0, &var.contents);
        self.variables.insert((module.id, index), address);
        Ok(address)
    }

    /// A number for a launch's race records, different from those that any record still has; `None` where there is none
    /// left.
    pub fn next_launch(&mut self) -> Option<u64> {
        let next = self.launch + 1;
        (next < 1 << 10).then(|| {
            self.launch = next;
            next
        })
    }

    /// Forgets the records of all launches, none of which may be running, and numbers those to come anew.
    pub fn forget_launches(&mut self) {
        self.launch = 0;
        for state in self.allocations.values() {
            state.allocation.pages().for_each(super::Page::forget_races);
        }
    }
}
