//! When a connection with many streams writes: at once, or after the answers that are about to be ready.
//!
//! Requests that waited for the same fsync, read index or message of their client are answered together. The first of their tasks that
//! runs wakes the connection, which would then write that one answer and wake the client for it, and so on for each of them. A connection
//! that lets the tasks that are ready have their turn first writes all of them at once. Where that gains nothing, such as for a client that
//! asks for one thing after the other, it is done ever more seldom.

/// So many writes at most go out at once before it is tried again whether waiting gains something.
const PASSED_MAX: u8 = 63;

/// What has been learnt of one connection.
#[derive(Debug, Default)]
pub(super) struct Gather {
    burst: Burst,
    /// Bursts that still go out at once.
    pass: u8,
    /// So many did so before the last attempt.
    passed: u8,
}

/// From the first attempt to write until all is written.
#[derive(Debug, Default)]
enum Burst {
    /// Nothing is to be written.
    #[default]
    Done,
    /// So many bytes wait while other tasks have their turn.
    Waits(usize),
    Written,
}

impl Gather {
    /// `bytes` are to be written. Whether the tasks that are ready should have their turn before.
    pub(super) fn waits(&mut self, bytes: usize) -> bool {
        match self.burst {
            Burst::Done if self.pass == 0 => {
                self.burst = Burst::Waits(bytes);
                return true;
            }
            Burst::Done => self.pass -= 1,
            Burst::Waits(before) => {
                self.passed = if bytes > before { 0 } else { (2 * self.passed + 1).min(PASSED_MAX) };
                self.pass = self.passed;
            }
            Burst::Written => {}
        }
        self.burst = Burst::Written;
        false
    }

    /// All is written.
    pub(super) fn done(&mut self) {
        self.burst = Burst::Done;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of so many bursts waited; each grows meanwhile by `growth`.
    fn waited(gather: &mut Gather, bursts: usize, growth: usize) -> Vec<bool> {
        let burst = |_| {
            let waits = gather.waits(10);
            assert!(!gather.waits(10 + growth), "once is enough");
            gather.done();
            waits
        };
        (0..bursts).map(burst).collect()
    }

    #[test]
    fn bursts_that_grow_wait() {
        assert_eq!(waited(&mut Gather::default(), 100, 1), [true; 100]);
    }

    #[test]
    fn bursts_that_do_not_grow_wait_ever_more_seldom() {
        let mut gather = Gather::default();
        let waited_at = |waited: &[bool]| -> Vec<usize> {
            waited.iter().enumerate().filter(|(_, waits)| **waits).map(|(at, _)| at).collect()
        };
        assert_eq!(waited_at(&waited(&mut gather, 250, 0)), [0, 2, 6, 14, 30, 62, 126, 190]);
        // It is tried again at last, and then goes on.
        assert_eq!(waited_at(&waited(&mut gather, 10, 1)), [4, 5, 6, 7, 8, 9]);
    }
}
