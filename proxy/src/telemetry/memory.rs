//! How much memory the process has: what the allocator says, and the kernel.

use tikv_jemalloc_ctl::{epoch, stats};

/// Bytes, at one moment. What cannot be told is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// In use: Envoy's `server.memory_allocated`.
    pub allocated: u64,
    /// Had from the kernel by the allocator: Envoy's `server.memory_heap_size`.
    pub heap_size: u64,
    /// Resident, code included: Envoy's `server.memory_physical_size`.
    pub physical_size: u64,
    /// Of the heap, kept for reuse and still resident.
    pub free: u64,
    /// Given back to the kernel, but with addresses still.
    pub unmapped: u64,
}

impl Memory {
    /// Reads it; some microseconds.
    pub fn read() -> Self {
        // The allocator's figures are of the last epoch.
        let _ = epoch::advance();
        let bytes = |read: Result<usize, tikv_jemalloc_ctl::Error>| read.map_or(0, to_u64);
        let (allocated, resident) = (bytes(stats::allocated::read()), bytes(stats::resident::read()));
        Self {
            allocated,
            heap_size: resident,
            physical_size: physical_size(),
            free: resident.saturating_sub(bytes(stats::active::read())),
            unmapped: bytes(stats::retained::read()),
        }
    }
}

/// The second figure of `/proc/self/statm`, in pages.
fn physical_size() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok());
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let page = page.ok().flatten().and_then(|page| u64::try_from(page).ok());
    pages.unwrap_or(0) * page.unwrap_or(4096)
}

fn to_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_resident_is_told() {
        assert!(Memory::read().physical_size > 1 << 20);
    }
}
