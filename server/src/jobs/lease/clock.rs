//! The clock that leases are kept by: it never goes back, and it goes on while the machine sleeps.
//!
//! Linux's boot time does both; it is read from `/proc/uptime`, in hundredths of a second. `std`'s `Instant` stands still
//! while the machine sleeps, which would let leases live longer; it is used where there is no boot time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Longer than the file ever is.
const UPTIME_BYTES: usize = 64;

/// Milliseconds of a clock of its own; two clocks cannot be compared.
#[derive(Debug)]
pub(super) struct Clock {
    uptime: Option<File>,
    began: Instant,
    /// The latest time that was read: what is answered never goes back.
    latest_ms: AtomicU64,
}

impl Clock {
    pub(super) fn new() -> Clock {
        let uptime = File::open("/proc/uptime").ok().filter(|file| read(file).is_some());
        if uptime.is_none() {
            tracing::warn!("there is no /proc/uptime: while this machine sleeps, leases do not grow older");
        }
        Clock { uptime, began: Instant::now(), latest_ms: AtomicU64::new(0) }
    }

    /// The time now. A few microseconds.
    pub(super) fn now_ms(&self) -> u64 {
        let read = match &self.uptime {
            // If it cannot be read any more the clock stands still, and no lease ends because of it.
            Some(file) => read(file).unwrap_or(0),
            None => u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.latest_ms.fetch_max(read, Ordering::AcqRel).max(read)
    }
}

fn read(uptime: &File) -> Option<u64> {
    let mut bytes = [0; UPTIME_BYTES];
    let length = uptime.read_at(&mut bytes, 0).ok()?;
    parse(std::str::from_utf8(&bytes[..length]).ok()?)
}

/// `12345.67 890.12` is 12,345,670 ms.
fn parse(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    let hundredths = hundredths.get(..2)?;
    seconds.parse::<u64>().ok()?.checked_mul(1_000)?.checked_add(hundredths.parse::<u64>().ok()? * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uptime_is_read_in_milliseconds() {
        assert_eq!(parse("12345.67 890.12\n"), Some(12_345_670));
        assert_eq!(parse("0.05 0.00"), Some(50));
        for bad in ["", "12", "12.", "12.x5", "x.05", "99999999999999999999.00"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn it_goes_on_and_never_back() {
        let clock = Clock::new();
        let first = clock.now_ms();
        while clock.now_ms() == first {}
        assert!(clock.now_ms() > first);
        clock.latest_ms.store(u64::MAX / 2, Ordering::Release);
        assert_eq!(clock.now_ms(), u64::MAX / 2);
    }
}
