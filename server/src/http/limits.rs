//! What connections may cost.

use std::time::Duration;

/// What connections may cost. The times are kept to within the reaper's tick.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Open connections on all listeners together; further ones are closed at once.
    pub(crate) connections_max: usize,
    /// From the connection, or the first byte of a request, until its head is complete.
    pub(crate) head_timeout: Duration,
    /// From the complete head until the response begins: reading the body, and handling. Twice as long for a request on a
    /// connection where others took long before it.
    pub(crate) handler_timeout: Duration,
    /// Bodies are streams that may go on for long: [`Limits::handler_timeout`] counts from the last byte received, and nobody
    /// looks at who takes what is sent.
    pub(crate) streamed_bodies: bool,
    /// For the client to take any byte of a response, or over HTTP/2 the next part of it.
    pub(crate) stall_timeout: Duration,
    /// Without any request.
    pub(crate) idle_timeout: Duration,
    /// Size of a request's head, and of the buffer that a connection reads into.
    pub(crate) head_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 20_000,
            head_timeout: Duration::from_secs(10),
            handler_timeout: Duration::from_secs(60),
            streamed_bodies: false,
            stall_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(600),
            head_bytes_max: 64 * 1024,
        }
    }
}

impl Limits {
    /// For other members: few connections, which carry streams without an end and whole states.
    pub(crate) fn for_peers() -> Limits {
        Limits {
            connections_max: 1_000,
            // A state that has been received is checked and put in place before it is answered.
            handler_timeout: Duration::from_secs(15 * 60),
            streamed_bodies: true,
            ..Limits::default()
        }
    }

    /// The same, with connections bounded by the file descriptors that this process may open.
    pub(crate) fn within_descriptors(mut self) -> Limits {
        /// Descriptors kept for the database, the log and everything else.
        const RESERVED: usize = 1_100;
        if let Some(limit) = descriptor_limit() {
            let available = limit.saturating_sub(RESERVED).max(limit / 2);
            self.connections_max = self.connections_max.min(available);
        }
        self
    }
}

/// How many files this process may open.
pub(crate) fn descriptor_limit() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}
