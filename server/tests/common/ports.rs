//! Ports for servers that cannot choose their own, because others are told of them before they run.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Different ports that are free now. They lie below those that systems give to outgoing connections, so that they stay
/// free; whoever starts a server on one still has to try others if it was taken meanwhile.
pub fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // All are held until all are known, so they differ.
    let mut held = Vec::new();
    while held.len() < count {
        // Another process that does the same walks elsewhere.
        let step = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 37;
        let port = 10_000 + (step * 7 % 20_000) as u16;
        held.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}
