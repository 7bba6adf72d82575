//! The clock that leases are kept by: it never goes back, and it goes on while the machine sleeps.
//!
//! Linux's boot time does both. Elsewhere it is `std`'s `Instant`, which may stand still while the machine sleeps: leases
//! then live longer by that time.

use std::sync::atomic::{AtomicU64, Ordering};

/// Milliseconds since some moment; two clocks cannot be compared.
#[derive(Debug)]
pub(super) struct Clock {
    source: Source,
    /// The latest time that was read: what is answered never goes back.
    latest_ms: AtomicU64,
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Source;

#[cfg(target_os = "linux")]
impl Source {
    fn new() -> Source {
        Source
    }

    fn read_ms(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // Neither is negative: the time is counted from the start of the machine.
        now.tv_sec.cast_unsigned() * 1_000 + now.tv_nsec.cast_unsigned() / 1_000_000
    }
}

#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
struct Source(std::time::Instant);

#[cfg(not(target_os = "linux"))]
impl Source {
    fn new() -> Source {
        Source(std::time::Instant::now())
    }

    fn read_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Clock {
    pub(super) fn new() -> Clock {
        Clock { source: Source::new(), latest_ms: AtomicU64::new(0) }
    }

    /// The time now, rounded down: what is judged to have ended by it has ended.
    pub(super) fn now_ms(&self) -> u64 {
        let read = self.source.read_ms();
        self.latest_ms.fetch_max(read, Ordering::AcqRel).max(read)
    }

    /// The time now, rounded up: what is given a time to live from it has all of that time.
    pub(super) fn begin_ms(&self) -> u64 {
        self.now_ms() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_and_never_back() {
        let clock = Clock::new();
        let first = clock.now_ms();
        while clock.now_ms() == first {}
        assert!(clock.now_ms() > first && clock.begin_ms() > clock.now_ms() - 1);
        clock.latest_ms.store(u64::MAX / 2, Ordering::Release);
        assert_eq!((clock.now_ms(), clock.begin_ms()), (u64::MAX / 2, u64::MAX / 2 + 1));
    }
}
