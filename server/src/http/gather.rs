//! When a connection with many streams writes: at once, or after the answers that are about to be ready.
//!
//! Requests that waited for the same fsync, read index or message of their client are answered together, but whoever answers them does so
//! one after the other, and the first would be written, and the client woken, before the next is there. A connection that lets the tasks
//! that are ready have their turn first writes all of them at once. Where that gains nothing, such as for a client that asks for one thing
//! after the other, it is done ever more seldom.

/// So many writes at most go out at once before it is tried again whether waiting gains something.
const PASSED_MAX: u8 = 63;

/// What has been learnt of one connection.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// Writes that still go out at once.
    pass: u8,
    /// So many did so before the last attempt.
    passed: u8,
}

impl Gather {
    /// Something is to be written. Whether the tasks that are ready should have their turn before; then [`Gather::learn`] what came of it.
    pub(super) fn waits(&mut self) -> bool {
        let waits = self.pass == 0;
        self.pass = self.pass.saturating_sub(1);
        waits
    }

    /// Whether there was more to write after waiting.
    pub(super) fn learn(&mut self, gained: bool) {
        self.passed = if gained { 0 } else { (2 * self.passed + 1).min(PASSED_MAX) };
        self.pass = self.passed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of so many writes waited, if that gains something or not.
    fn waited(gather: &mut Gather, writes: usize, gains: bool) -> Vec<usize> {
        let wait = |_: &usize| {
            let waits = gather.waits();
            if waits {
                gather.learn(gains);
            }
            waits
        };
        (0..writes).filter(wait).collect()
    }

    #[test]
    fn where_something_is_gained_every_write_waits() {
        assert_eq!(waited(&mut Gather::default(), 100, true), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn where_nothing_is_gained_writes_wait_ever_more_seldom() {
        let mut gather = Gather::default();
        assert_eq!(waited(&mut gather, 250, false), [0, 2, 6, 14, 30, 62, 126, 190]);
        // It is tried again at last, and then goes on.
        assert_eq!(waited(&mut gather, 10, true), [4, 5, 6, 7, 8, 9]);
    }
}
