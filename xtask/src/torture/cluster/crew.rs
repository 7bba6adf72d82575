//! Everybody who takes part in a run: clients, lessees, watchers, observers, and the nemesis.
//!
//! The order of their ends matters: first the nemesis heals everything, then those who write stop, then leases run out, then
//! the store stands still, and only then do the watchers hear what the last revision is and wait until they have been told.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use super::clients::{self, Shared};
use super::fleet::Fleet;
use super::lessees::{self, Lived};
use super::nemesis::{Done, Nemesis};
use super::observer::{self, Seen};
use super::watchers::{self, PER_STREAM, Temper, Watch};
use super::{Setup, audit};
use crate::error::{Error, Result};
use crate::linear::Op;
use crate::linear::leases::LeaseOp;

/// How long clients go on after the last fault is healed.
const AFTERGLOW: Duration = Duration::from_millis(500);

/// Everything that was recorded.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) history: Vec<Op>,
    pub(crate) leases: Vec<LeaseOp>,
    pub(crate) watches: Vec<Watch>,
    pub(crate) done: Done,
    /// When the last fault was healed, in nanoseconds since the run began.
    pub(crate) healed: u64,
    /// Where the store stood still: revision and applied index.
    pub(crate) last: (i64, u64),
    /// How long clients were at work.
    pub(crate) loaded: Duration,
}

type Handle<'scope, T> = ScopedJoinHandle<'scope, Result<T>>;

/// Those who write.
struct Writers<'scope> {
    clients: Vec<Handle<'scope, Vec<Op>>>,
    lessees: Vec<Handle<'scope, Lived>>,
}

/// Runs everybody, side by side.
pub(crate) fn run(
    setup: &Setup,
    seed: u64,
    fleet: &mut Fleet,
    shared: &Shared,
    seen: &Mutex<Seen>,
) -> Result<Recorded> {
    let addresses: Vec<SocketAddr> = (0..fleet.slots()).map(|slot| fleet.client(slot)).collect();
    let addresses = &addresses;
    thread::scope(|scope| {
        let writers = write(scope, setup, shared, addresses, seed);
        let tempers = tempers(setup.nodes, setup.watchers);
        let watchers: Vec<Handle<'_, Watch>> = (tempers.into_iter().enumerate())
            .map(|(number, (node, temper))| {
                scope.spawn(move || watchers::run(shared, number as u32, node, &addresses[..setup.nodes], temper, seed))
            })
            .collect();
        let observers: Vec<Handle<'_, ()>> = (addresses.iter().enumerate())
            .map(|(slot, address)| scope.spawn(move || observer::watch(shared, seen, slot, *address)))
            .collect();
        // On this thread, because a server ends with the thread that started it.
        let mut recorded = Recorded::default();
        let mut failed = conduct(setup, seed, fleet, shared, writers, &mut recorded).err();
        if failed.is_some() {
            shared.failed.store(true, Ordering::Relaxed);
        }
        for watcher in watchers {
            let watch = joined(watcher);
            failed = watch.map(|watch| recorded.watches.push(watch)).err().or(failed);
        }
        for observer in observers {
            failed = joined(observer).err().or(failed);
        }
        failed.map_or(Ok(recorded), Err)
    })
}

fn write<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    setup: &'env Setup,
    shared: &'env Shared,
    addresses: &'env [SocketAddr],
    seed: u64,
) -> Writers<'scope> {
    let clients = (0..setup.clients).map(|number| {
        let node = number % setup.nodes;
        scope.spawn(move || clients::run(shared, number as u32, node as u32, addresses[node], seed))
    });
    let clients = clients.collect();
    let lessees = (setup.clients..setup.clients + setup.lessees).map(|number| {
        let node = number % setup.nodes;
        scope.spawn(move || lessees::run(shared, number as u32, node as u32, addresses[node], seed))
    });
    Writers { clients, lessees: lessees.collect() }
}

/// The faults, and the ends in their order.
fn conduct(
    setup: &Setup,
    seed: u64,
    fleet: &mut Fleet,
    shared: &Shared,
    writers: Writers<'_>,
    recorded: &mut Recorded,
) -> Result<()> {
    let done = Nemesis::new(fleet, shared, seed, &setup.faults).run(setup.seconds);
    recorded.healed = shared.now();
    if done.is_err() {
        shared.failed.store(true, Ordering::Relaxed);
    } else {
        thread::sleep(AFTERGLOW);
    }
    shared.stop.store(true, Ordering::Relaxed);
    recorded.loaded = shared.begun.elapsed();
    let mut failed = None;
    for client in writers.clients {
        failed = joined(client).map(|ops| recorded.history.extend(ops)).err().or(failed);
    }
    for lessee in writers.lessees {
        let lived = joined(lessee).map(|lived| {
            recorded.history.extend(lived.history);
            recorded.leases.extend(lived.leases);
        });
        failed = lived.err().or(failed);
    }
    recorded.done = done?;
    failed.map_or(Ok(()), Err)?;
    audit::run_out(fleet, shared, &mut recorded.leases)?;
    recorded.last = audit::stand_still(fleet)?;
    shared.last.store(recorded.last.0, Ordering::Release);
    Ok(())
}

fn joined<T>(handle: Handle<'_, T>) -> Result<T> {
    handle.join().map_err(|_| Error::Check("a thread panicked".to_owned()))?
}

/// Streams that are alike: more than a server needs to tell them of changes together.
const ALIKE: usize = 20;

/// Which streams there are: on every node one that is steady, one that is slow, and enough of the others for all watchers; and on
/// the first those that are alike.
fn tempers(nodes: usize, watchers: usize) -> Vec<(usize, Temper)> {
    let per_node = watchers.div_ceil(nodes * PER_STREAM);
    let of_keys = (0..per_node).map(|place| if place % 3 == 0 { Temper::Restless } else { Temper::Fresh });
    let one: Vec<Temper> = [Temper::Steady, Temper::Slow].into_iter().chain(of_keys).collect();
    let alike = std::iter::repeat_n((0, Temper::Alike), ALIKE);
    let every = (0..nodes).flat_map(|node| one.iter().map(move |temper| (node, *temper))).chain(alike);
    if watchers == 0 { Vec::new() } else { every.collect() }
}
