//! What connections may cost, and how many of the process's file descriptors they may take.

use std::time::Duration;

/// Descriptors kept for the database, the log and everything else.
const RESERVED: usize = 1_100;
/// Of the descriptors that are left for connections, the part that other members may take at most.
const PEERS_PART: usize = 4;

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

    /// Leaves requests that may take so long the time to be answered: who cuts a connection ends all that goes over it.
    pub(crate) fn for_requests_of(self, request_timeout: Duration) -> Limits {
        Limits { handler_timeout: self.handler_timeout.max(request_timeout * 2), ..self }
    }

    /// For clients and for other members, with connections bounded by the file descriptors that this process may open: both
    /// together leave enough of them for everything else.
    pub(crate) fn within_descriptors() -> (Limits, Limits) {
        let (clients, peers) = (Limits::default(), Limits::for_peers());
        match descriptor_limit() {
            Some(limit) => share(limit, clients, peers),
            None => (clients, peers),
        }
    }
}

/// Shares so many descriptors. Of few, half are for connections.
fn share(limit: usize, mut clients: Limits, mut peers: Limits) -> (Limits, Limits) {
    let available = limit.saturating_sub(RESERVED).max(limit / 2);
    peers.connections_max = peers.connections_max.min(available / PEERS_PART);
    clients.connections_max = clients.connections_max.min(available - peers.connections_max);
    (clients, peers)
}

/// How many files this process may open.
pub(crate) fn descriptor_limit() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Lets this process open as many files as its administrator allows it to, which is often a multiple of what it begins with.
pub(crate) fn raise_descriptor_limit() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current != maximum
            && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        {
            tracing::warn!(%error, ?current, ?maximum, "this process may not open more files than it begins with");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_time_out_before_their_connection_does() {
        for (request_s, handler_s) in [(7, 60), (30, 60), (31, 62), (105, 210)] {
            let limits = Limits::default().for_requests_of(Duration::from_secs(request_s));
            assert_eq!(limits.handler_timeout, Duration::from_secs(handler_s));
        }
    }

    #[test]
    fn connections_of_both_kinds_leave_descriptors_for_the_rest() {
        for (limit, expected) in [
            (400, (150, 50)),
            (1_024, (384, 128)),
            (4_096, (2_247, 749)),
            (20_000, (17_900, 1_000)),
            (1_048_576, (20_000, 1_000)),
        ] {
            let (clients, peers) = share(limit, Limits::default(), Limits::for_peers());
            assert_eq!((clients.connections_max, peers.connections_max), expected, "of {limit}");
            assert!(expected.0 + expected.1 <= limit.saturating_sub(RESERVED).max(limit / 2));
        }
    }
}
