//! What a launch did, in numbers that tests can assert on.

/// Counts of one launch, or of several added up. The same for every schedule-independent kernel, whatever the seed
/// and the number of threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Warp instructions executed.
    pub instructions: u64,
    /// Fused multiply-adds of f32 and f64, counted by threads.
    pub fma: u64,
    /// Warp instructions that load from global memory.
    pub global_load_requests: u64,
    /// 32-byte sectors that they touch.
    pub global_load_sectors: u64,
    /// Warp instructions that store to global memory.
    pub global_store_requests: u64,
    /// 32-byte sectors that they touch.
    pub global_store_sectors: u64,
    /// Warp instructions that access shared memory (`ldmatrix`: each 8x8 matrix is one).
    pub shared_requests: u64,
    /// Passes over the 32 banks that they take.
    pub shared_wavefronts: u64,
    /// Passes that they would take without bank conflicts.
    pub shared_wavefronts_ideal: u64,
    /// Matrix multiplications (`mma`).
    pub mma: u64,
    /// Matrix multiplications of warpgroups (`wgmma`).
    pub wgmma: u64,
    /// `m · n · k` of each, summed.
    pub wgmma_products: u64,
    /// Arrivals of warps at barriers of their block or cluster.
    pub barriers: u64,
    /// Warp instructions that do an atomic operation.
    pub atomics: u64,
    /// Bytes asked for by asynchronous copies.
    pub async_copy_bytes: u64,
    /// Bytes asked for by bulk loads (TMA), zeros outside of a tensor included: once, however many blocks receive them.
    pub bulk_load_bytes: u64,
    /// The same, once for each block that receives them.
    pub bulk_delivered_bytes: u64,
    /// Bytes of shared memory that bulk stores read.
    pub bulk_store_bytes: u64,
    /// Branches whose lanes went different ways.
    pub divergent_branches: u64,
}

impl Counters {
    /// Extra passes over shared memory's banks.
    pub fn bank_conflicts(&self) -> u64 {
        self.shared_wavefronts - self.shared_wavefronts_ideal
    }
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Counters) {
        self.instructions += other.instructions;
        self.fma += other.fma;
        self.global_load_requests += other.global_load_requests;
        self.global_load_sectors += other.global_load_sectors;
        self.global_store_requests += other.global_store_requests;
        self.global_store_sectors += other.global_store_sectors;
        self.shared_requests += other.shared_requests;
        self.shared_wavefronts += other.shared_wavefronts;
        self.shared_wavefronts_ideal += other.shared_wavefronts_ideal;
        self.mma += other.mma;
        self.wgmma += other.wgmma;
        self.wgmma_products += other.wgmma_products;
        self.bulk_load_bytes += other.bulk_load_bytes;
        self.bulk_delivered_bytes += other.bulk_delivered_bytes;
        self.bulk_store_bytes += other.bulk_store_bytes;
        self.barriers += other.barriers;
        self.atomics += other.atomics;
        self.async_copy_bytes += other.async_copy_bytes;
        self.divergent_branches += other.divergent_branches;
    }
}
