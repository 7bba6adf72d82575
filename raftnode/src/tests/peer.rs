//! The peer transport over real sockets, with real consensus and real storage on both sides, and with bad ones.
#![allow(clippy::unwrap_used)]

#[path = "peer_bad.rs"]
mod bad;
#[path = "peer_calls.rs"]
mod calls;
#[path = "peer_cluster.rs"]
mod cluster;
#[path = "peer_frame.rs"]
mod frame;
#[path = "peer_hello.rs"]
mod hello;
#[path = "peer_install.rs"]
mod install;
#[path = "peer_sessions.rs"]
mod sessions;
#[path = "peer_snapshot.rs"]
mod snapshot;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Version};
use bytes::Bytes;
use futures_util::FutureExt;
use openraft::Raft;
use tally_backend::Failpoints;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::connect::{Connection, connect};
use super::frame::{Address, Frame, Limits};
use super::hello::Hello;
use super::inbound::Inbound;
use super::outgoing::{Task, outgoing};
use super::{
    BoxFuture, ForwardRefusal, Host, Local, Net, NetConfig, NetworkEvent, NetworkObserver, RefusedSender, Standing,
    Verdict,
};
use crate::barrier::BarrierError;
use crate::command::{EncodedCommand, LogPayload, Stamp};
use crate::config::{ApplyLimits, Config};
use crate::member::{ClusterView, MemberChange, MemberError, PeerMember};
use crate::node::RaftHandle;
use crate::progress::Shared;
use crate::start::{Assembled, assemble};
use crate::state_machine::{Live, SharedLive};
use crate::storage::{StorageOptions, open_storage};

pub(super) const CLUSTER: u64 = 0xc1;
/// Longer than anything here takes; only failures wait for it.
pub(super) const SOON: Duration = Duration::from_secs(30);

/// The node's place, with answers that a test chooses.
pub(super) struct Double {
    pub(super) standing: Mutex<BTreeMap<u64, Standing>>,
    pub(super) read_index: Mutex<Option<Result<u64, BarrierError>>>,
    /// How often a read index was asked for.
    pub(super) asked: AtomicU64,
    pub(super) changed: Mutex<Option<Result<(), MemberError>>>,
    /// What was forwarded, with where to refuse it.
    pub(super) forwarded: Mutex<Vec<(u64, Vec<Bytes>, RefusedSender)>>,
    pub(super) forward_refusal: Mutex<Option<ForwardRefusal>>,
    pub(super) view: Mutex<ClusterView>,
    /// Taken from what the log really says.
    pub(super) log_cut: AtomicU64,
    told: mpsc::UnboundedSender<(Verdict, u64)>,
    raft: RaftHandle,
    shared: Arc<Shared>,
    live: SharedLive,
}

impl Host for Double {
    fn raft(&self) -> RaftHandle {
        self.raft.clone()
    }

    fn standing(&self, member: u64) -> Standing {
        self.standing.lock().unwrap().get(&member).copied().unwrap_or(Standing::Unknown)
    }

    fn log_last(&self) -> u64 {
        self.shared.last.load(Ordering::Acquire) - self.log_cut.load(Ordering::Relaxed)
    }

    fn applied(&self) -> u64 {
        self.shared.applied.get().saturating_sub(self.log_cut.load(Ordering::Relaxed))
    }

    fn told(&self, verdict: Verdict, by: u64) {
        self.told.send((verdict, by)).unwrap();
    }

    fn read_index(&self) -> BoxFuture<Result<u64, BarrierError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.read_index.lock().unwrap().clone() {
            Some(answer) => async move { answer }.boxed(),
            None => std::future::pending().boxed(),
        }
    }

    fn change_members(&self, _change: MemberChange) -> BoxFuture<Result<(), MemberError>> {
        match self.changed.lock().unwrap().clone() {
            Some(answer) => async move { answer }.boxed(),
            None => std::future::pending().boxed(),
        }
    }

    fn ask(&self, kind: u8, question: Bytes) -> BoxFuture<Option<Bytes>> {
        let answer = (kind != 0).then(|| Bytes::from([&[kind][..], &question].concat()));
        async move { answer }.boxed()
    }

    fn forwarded(&self, from: u64, payloads: Vec<Bytes>, refused: RefusedSender) -> Result<(), ForwardRefusal> {
        if let Some(refusal) = *self.forward_refusal.lock().unwrap() {
            return Err(refusal);
        }
        self.forwarded.lock().unwrap().push((from, payloads, refused));
        Ok(())
    }

    fn view(&self) -> ClusterView {
        self.view.lock().unwrap().clone()
    }

    fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }
}

/// Keeps every event.
#[derive(Default)]
pub(super) struct Events(Mutex<Vec<NetworkEvent>>);

impl NetworkObserver for Events {
    fn observe(&self, event: NetworkEvent) {
        self.0.lock().unwrap().push(event);
    }
}

impl Events {
    pub(super) fn count(&self, wanted: impl Fn(&NetworkEvent) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|event| wanted(event)).count()
    }
}

/// A member: real consensus over real storage, served on a port of its own.
pub(super) struct Member {
    pub(super) id: u64,
    pub(super) net: Net,
    pub(super) host: Arc<Double>,
    pub(super) raft: RaftHandle,
    pub(super) live: SharedLive,
    pub(super) shared: Arc<Shared>,
    pub(super) log: tally_wal::Reader,
    pub(super) url: String,
    pub(super) events: Arc<Events>,
    pub(super) told: mpsc::UnboundedReceiver<(Verdict, u64)>,
    _dir: TempDir,
    _serving: Task<()>,
}

pub(super) fn directory_of(id: u64) -> [u8; 16] {
    [id as u8; 16]
}

pub(super) fn storage_options(dir: &std::path::Path, id: u64) -> StorageOptions {
    let mut options = StorageOptions::new(dir, CLUSTER, id, directory_of(id));
    options.wal.segment_bytes = 1 << 20;
    options.backend.memtable_bytes = 4 << 20;
    options
}

pub(super) async fn member(id: u64) -> Member {
    member_with(id, |_, _| {}).await
}

/// A member with settings of its own.
pub(super) async fn member_with(id: u64, change: impl FnOnce(&mut Config, &mut NetConfig)) -> Member {
    member_on(id, Failpoints::none(), change).await
}

/// The same, with a store that can be made to fail or to wait.
pub(super) async fn member_on(
    id: u64,
    failpoints: Failpoints,
    change: impl FnOnce(&mut Config, &mut NetConfig),
) -> Member {
    let dir = tempfile::tempdir().unwrap();
    let mut options = storage_options(dir.path(), id);
    options.backend.failpoints = failpoints;
    let Assembled { log, machine, shared, live, .. } =
        assemble(open_storage(options).unwrap(), ApplyLimits::default()).unwrap();
    let reader = log.reader().clone();
    let mut config = Config { cluster_id: CLUSTER, member_id: id, catchup_entries: 10, ..Config::default() };
    let events = Arc::new(Events::default());
    let observer: Arc<dyn NetworkObserver> = Arc::clone(&events) as _;
    let mut limits = NetConfig { observer: Some(observer), ..NetConfig::default() };
    change(&mut config, &mut limits);
    let local = Local { cluster_id: CLUSTER, member_id: id, directory: directory_of(id), start_id: id + 100 };
    let net = Net::new(limits, local);
    let consensus = Arc::new(config.consensus().unwrap());
    let raft: RaftHandle = Raft::new(id, consensus, net.transport(), log, machine).await.unwrap();
    let (told_sender, told) = mpsc::unbounded_channel();
    let view =
        ClusterView { cluster_id: CLUSTER, member_id: id, leader: None, members: Vec::new(), removed: Vec::new() };
    let host = Arc::new(Double {
        standing: Mutex::default(),
        read_index: Mutex::default(),
        asked: AtomicU64::new(0),
        changed: Mutex::default(),
        forwarded: Mutex::default(),
        forward_refusal: Mutex::default(),
        view: Mutex::new(view),
        log_cut: AtomicU64::new(0),
        told: told_sender,
        raft: raft.clone(),
        shared: Arc::clone(&shared),
        live: Arc::clone(&live),
    });
    net.set_host(Arc::clone(&host) as _);
    let (url, serving) = listen(net.router()).await;
    Member { id, net, host, raft, live, shared, log: reader, url, events, told, _dir: dir, _serving: serving }
}

/// Serves a router on a free port.
pub(super) async fn listen(router: Router) -> (String, Task<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (url, Task::spawn(async move { axum::serve(listener, router).await.unwrap() }))
}

/// Makes members know each other's addresses.
pub(super) fn introduce(members: &[&Member]) {
    for member in members {
        for other in members.iter().filter(|other| other.id != member.id) {
            member.net.set_addresses(other.id, std::slice::from_ref(&other.url));
        }
    }
}

/// A channel spoken by hand.
pub(super) struct Raw {
    pub(super) out: mpsc::Sender<Bytes>,
    pub(super) inbound: Inbound,
    _connection: Connection,
}

impl Raw {
    /// Opens a channel and sends `first`.
    pub(super) async fn open(url: &str, path: &str, first: Bytes) -> Raw {
        let mut connection = connect(url, SOON).await.unwrap();
        let (out, body) = outgoing();
        out.send(first).await.unwrap();
        let uri = format!("http://{}{path}", connection.authority);
        let request = Request::builder().method(Method::POST).version(Version::HTTP_2).uri(uri).body(body).unwrap();
        let response = connection.requests.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let inbound = Inbound::new(Body::new(response.into_body()), Limits::MEMBER);
        Raw { out, inbound, _connection: connection }
    }

    /// Opens a channel as member `from` of the cluster, and reads the answer to the Hello.
    pub(super) async fn greeted(to: &Member, from: u64, path: &str) -> Raw {
        let address = Address { cluster: CLUSTER, from, to: to.id };
        let mut raw = Raw::open(&to.url, path, hello(from, 0).frame(address)).await;
        raw.next().await;
        raw
    }

    pub(super) async fn next(&mut self) -> Frame {
        self.try_next().await.expect("a frame")
    }

    /// The next frame; none if the channel ended.
    pub(super) async fn try_next(&mut self) -> Option<Frame> {
        tokio::time::timeout(SOON, self.inbound.next()).await.expect("something happens").ok()
    }
}

pub(super) fn hello(of: u64, last: u64) -> Hello {
    Hello { directory: directory_of(of), start_id: of + 100, last, applied: 0 }
}

/// A put as an entry's payload.
pub(super) fn put(key: &str, value: &str, seq: u64, term: u64) -> LogPayload {
    let put = tally_mvcc::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..tally_mvcc::PutRequest::default()
    };
    EncodedCommand::encode(&tally_apply::Command::Put(put)).stamp(Stamp { origin: 1, seq, term })
}

/// Waits until something holds.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(SOON, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("in {SOON:?}: {what}"));
}

pub(super) fn some_view() -> ClusterView {
    let member = |id, is_learner| PeerMember { id, peer_urls: vec![format!("http://h:{id}")], is_learner };
    ClusterView {
        cluster_id: CLUSTER,
        member_id: 1,
        leader: Some(2),
        members: vec![(member(1, false), "one".to_owned()), (member(2, true), String::new())],
        removed: vec![7, 9],
    }
}
