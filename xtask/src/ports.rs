//! Ports for servers that are started more than once: free now, and not such as the kernel hands out meanwhile.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::rng::mix;

/// The lowest port that is tried.
const LOWEST: u16 = 10_000;
/// The highest, where the kernel does not say which ones it hands out.
const HIGHEST: u16 = 32_000;

/// A port for clients and one for peers.
pub(crate) fn free_pair() -> Result<(SocketAddr, SocketAddr)> {
    Ok(free_pairs(1)?.remove(0))
}

/// Pairs of different ports, all free.
///
/// They lie below the range from which the kernel takes ports for outgoing connections: while a server is down, any
/// client's connection could otherwise take its port, and it could not come back.
pub(crate) fn free_pairs(count: usize) -> Result<Vec<(SocketAddr, SocketAddr)>> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let highest = highest(&range);
    let span = u64::from(highest - LOWEST);
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    // Another run that looks for ports at this moment should look elsewhere.
    let begin = mix(clock ^ u64::from(std::process::id()));
    // All are held until all are known, so they differ.
    let (mut held, mut found) = (Vec::new(), Vec::new());
    for offset in 0..span {
        if found.len() == count * 2 {
            break;
        }
        let port = LOWEST + (begin.wrapping_add(offset) % span) as u16;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push(listener);
            found.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
    }
    if found.len() < count * 2 {
        return Err(Error::Missing(format!("no {} ports between {LOWEST} and {highest} are free", count * 2)));
    }
    Ok(found.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Those of the addresses on which something listens already.
pub(crate) fn taken(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<String> {
    let is_taken =
        |address: &SocketAddr| TcpListener::bind(*address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    addresses.into_iter().filter(is_taken).map(|address| address.to_string()).collect()
}

/// The first port above those that may be used.
fn highest(range: &str) -> u16 {
    let first = range.split_ascii_whitespace().next().and_then(|text| text.parse::<u16>().ok());
    // A machine whose range begins low leaves no choice but to use ports from it.
    first.filter(|first| *first > LOWEST + 1000).unwrap_or(HIGHEST)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{HIGHEST, free_pairs, highest};
    use std::collections::BTreeSet;
    use std::net::TcpListener;

    #[test]
    fn ports_differ_and_can_be_listened_on() {
        let pairs = free_pairs(5).unwrap();
        let all: BTreeSet<_> = pairs.iter().flat_map(|(client, peer)| [client, peer]).collect();
        assert_eq!(all.len(), 10);
        // Another test may take one of them, but not most.
        assert!(all.iter().filter(|address| TcpListener::bind(***address).is_ok()).count() >= 5);
    }

    #[test]
    fn the_kernels_range_is_left_alone() {
        assert_eq!(highest("32768\t60999\n"), 32768);
        assert_eq!(highest("1024\t65000\n"), HIGHEST);
        assert_eq!(highest(""), HIGHEST);
    }
}
