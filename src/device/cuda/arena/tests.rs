use std::sync::Mutex;

use super::*;
use crate::{
    Error,
    device::cuda::{
        Attributes, EncodedMap, FunctionId, GraphId, Image, ImageKind, Launch, MemoryInfo, ModuleId, Properties,
        TensorMap,
    },
    random::Random,
};

/// A GPU that has memory and nothing else.
struct Memory {
    properties: Properties,
    capacity: usize,
    /// Address and length of each chunk.
    chunks: Mutex<BTreeMap<u64, usize>>,
}

impl Memory {
    fn new(capacity: usize, guard: usize) -> Self {
        let properties = Properties {
            name: "memory".into(),
            capability: (8, 0),
            multiprocessors: 1,
            shared_per_block: 0,
            driver_version: 13000,
            image: ImageKind::Ptx,
            guard,
        };
        Self { properties, capacity, chunks: Mutex::default() }
    }

    fn held(&self) -> usize {
        self.chunks.lock().unwrap().values().sum()
    }
}

fn refuse<T>() -> Result<T> {
    Err(Error::Device { device: "memory".into(), message: "there is only memory".into() })
}

impl Driver for Memory {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<MemoryInfo> {
        Ok(MemoryInfo { free: self.capacity - self.held(), total: self.capacity })
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let free = self.capacity - self.held();
        if bytes > free {
            let device = "memory".into();
            return Err(Error::OutOfMemory { device, requested: bytes, free, total: self.capacity });
        }
        let mut chunks = self.chunks.lock().unwrap();
        // Chunks touch, so that joining across their border would show.
        let address = chunks.last_key_value().map_or(1 << 20, |(address, length)| address + *length as u64);
        chunks.insert(address, bytes);
        Ok(address)
    }

    fn free(&self, address: u64) {
        assert!(self.chunks.lock().unwrap().remove(&address).is_some(), "{address} is no chunk");
    }

    fn upload(&self, _: u64, _: &[u8]) -> Result<()> {
        refuse()
    }

    fn download(&self, _: u64, _: &mut [u8]) -> Result<()> {
        refuse()
    }

    fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
        refuse()
    }

    fn fill(&self, _: u64, _: u8, _: usize) -> Result<()> {
        refuse()
    }

    fn stage(&self, _: usize, _: &[u8]) -> Result<u64> {
        refuse()
    }

    fn unstage(&self, _: usize) -> Result<()> {
        refuse()
    }

    fn load(&self, _: Image) -> Result<ModuleId> {
        refuse()
    }

    fn function(&self, _: ModuleId, _: &str) -> Result<FunctionId> {
        refuse()
    }

    fn attributes(&self, _: FunctionId) -> Result<Attributes> {
        refuse()
    }

    fn tensor_map(&self, _: &TensorMap) -> Result<EncodedMap> {
        refuse()
    }

    fn launch(&self, _: FunctionId, _: &Launch, _: &[u8]) -> Result<()> {
        refuse()
    }

    fn synchronize(&self) -> Result<()> {
        refuse()
    }

    fn begin_capture(&self) -> Result<()> {
        refuse()
    }

    fn end_capture(&self) -> Result<GraphId> {
        refuse()
    }

    fn replay(&self, _: GraphId) -> Result<()> {
        refuse()
    }

    fn forget(&self, _: GraphId) {}
}

/// A random sequence of blocks that come and go, the same for the same seed; what it allocated, in order.
fn step(arena: &mut Arena, driver: &Memory, seed: u64) -> Vec<u64> {
    let mut random = Random::stream(seed, "step", &[]);
    let (mut addresses, mut live) = (Vec::new(), Vec::new());
    for _ in 0..300 {
        if live.is_empty() || random.chance(0.55) {
            let bytes = random.uniform(0.0, 1.0).powi(3) * 4e6;
            let address = arena.alloc(bytes as usize, driver).unwrap();
            addresses.push(address);
            live.push(address);
        } else {
            let at = (random.uniform(0.0, 1.0) * live.len() as f32) as usize;
            arena.free(live.swap_remove(at), driver);
        }
    }
    live.into_iter().for_each(|address| arena.free(address, driver));
    addresses
}

#[test]
fn a_step_finds_the_same_addresses_every_time() {
    let (driver, mut arena) = (Memory::new(usize::MAX, 0), Arena::default());
    let parameters: Vec<u64> = (1..20).map(|n| arena.alloc(n * 1000, &driver).unwrap()).collect();
    // The first step may add chunks.
    step(&mut arena, &driver, 1);
    let addresses = step(&mut arena, &driver, 1);
    let held = driver.held();
    for other in 0..5 {
        // Whatever happened in between.
        step(&mut arena, &driver, other);
    }
    step(&mut arena, &driver, 1);
    assert_eq!(step(&mut arena, &driver, 1), addresses);
    assert!(driver.held() >= held);
    assert_eq!(arena.memory().live, (1..20).map(|n| n * 1000).sum::<usize>());
    parameters.into_iter().for_each(|address| arena.free(address, &driver));
    assert_eq!(arena.memory().live, 0);
    arena.trim(&driver);
    assert_eq!(driver.held(), 0);
}

#[test]
fn blocks_are_aligned_apart_and_within_their_chunk() {
    for guard in [0, 512] {
        let (driver, mut arena) = (Memory::new(usize::MAX, guard), Arena::default());
        let mut random = Random::stream(7, "blocks", &[]);
        let mut live: BTreeMap<u64, usize> = BTreeMap::new();
        for _ in 0..2000 {
            if random.chance(0.6) || live.is_empty() {
                let bytes = (random.uniform(0.0, 1.0).powi(2) * 1e5) as usize;
                let address = arena.alloc(bytes, &driver).unwrap();
                assert_eq!(address % 256, 0);
                let end = address + (bytes.max(1) + guard) as u64;
                assert!(live.range(..end).next_back().is_none_or(|(a, b)| a + (*b).max(1) as u64 <= address));
                let chunks = driver.chunks.lock().unwrap();
                let (chunk, length) = chunks.range(..=address).next_back().unwrap();
                assert!(end <= chunk + *length as u64);
                live.insert(address, bytes);
            } else {
                let at = (random.uniform(0.0, 1.0) * live.len() as f32) as usize;
                let address = *live.keys().nth(at).unwrap();
                live.remove(&address);
                arena.free(address, &driver);
            }
            assert_eq!(arena.memory().live, live.values().sum::<usize>());
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error_and_unused_chunks_make_room() {
    let (driver, mut arena) = (Memory::new(100 << 20, 0), Arena::default());
    // No room for the usual chunk beside this one, but for the block alone.
    let large = arena.alloc(80 << 20, &driver).unwrap();
    let small = arena.alloc(10 << 20, &driver).unwrap();
    let error = arena.alloc(64 << 20, &driver).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { requested, .. } if requested == 64 << 20), "{error}");
    assert!(error.to_string().contains("64.0 MiB asked for"), "{error}");
    assert_eq!(arena.memory(), MemoryUse { live: 90 << 20, peak: 90 << 20 });
    arena.free(large, &driver);
    // The freed chunk is too small: it goes back to the driver for a larger one.
    arena.alloc(85 << 20, &driver).unwrap();
    arena.free(small, &driver);
    assert_eq!(arena.memory(), MemoryUse { live: 85 << 20, peak: 95 << 20 });
}
