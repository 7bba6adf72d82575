//! Clusters of whole nodes in one process, on ports of their own, and gates that hold back chosen frames between them.
#![allow(clippy::unwrap_used, dead_code)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tally_apply::Outcome;
use tally_backend::Applied;
use tally_raftnode::{
    Config, EncodedCommand, Founder, NetworkEvent, NetworkObserver, Node, OpenError, ProposeError, Storage,
    StorageOptions, open_storage,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const CLUSTER: u64 = 0xc1;
/// Far longer than anything here takes.
const SOON: Duration = Duration::from_secs(60);
/// Between two looks at something that can only be asked for.
const LOOK: Duration = Duration::from_millis(5);

/// Bytes of a frame in front of its body, and of the body of an append in front of its entries.
const HEADER_BYTES: usize = 36;
const APPEND_BYTES: usize = 61;
/// Kinds of frames.
const APPEND: u8 = 3;
const READ_INDEX: u8 = 10;
const READ_AT: u8 = 11;

/// Frames of one sort: counted when they come by, and held back, with what comes behind them, while the gate is closed.
#[derive(Clone)]
pub(crate) struct Gate {
    chosen: fn(u8, usize) -> bool,
    closed: Arc<watch::Sender<bool>>,
    seen: Arc<watch::Sender<usize>>,
}

impl Gate {
    fn new(chosen: fn(u8, usize) -> bool) -> Gate {
        Gate { chosen, closed: Arc::new(watch::Sender::new(false)), seen: Arc::new(watch::Sender::new(0)) }
    }

    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    pub(crate) fn open(&self) {
        self.closed.send_replace(false);
    }

    pub(crate) fn seen(&self) -> usize {
        *self.seen.borrow()
    }

    /// Waits until more than `count` frames have come by.
    pub(crate) async fn more_than(&self, count: usize) {
        let mut seen = self.seen.subscribe();
        within("a frame comes to the gate", seen.wait_for(|seen| *seen > count)).await.unwrap();
    }

    /// The same bytes, frame by frame.
    fn pass(&self, body: Body) -> Body {
        let begin = (body.into_data_stream(), BytesMut::new(), self.clone());
        Body::from_stream(stream::unfold(begin, |(mut input, mut waiting, gate)| async move {
            loop {
                if let Some((kind, frame)) = next_frame(&mut waiting) {
                    if (gate.chosen)(kind, frame.len() - HEADER_BYTES) {
                        gate.seen.send_modify(|seen| *seen += 1);
                        gate.closed.subscribe().wait_for(|closed| !closed).await.unwrap();
                    }
                    return Some((Ok(frame), (input, waiting, gate)));
                }
                match input.next().await? {
                    Ok(bytes) => waiting.extend_from_slice(&bytes),
                    Err(error) => return Some((Err(error), (input, waiting, gate))),
                }
            }
        }))
    }
}

/// A whole frame and its kind.
fn next_frame(waiting: &mut BytesMut) -> Option<(u8, Bytes)> {
    let length = waiting.get(..4)?.get_u32() as usize;
    let kind = *waiting.get(5)?;
    let total = HEADER_BYTES + length;
    (waiting.len() >= total).then(|| (kind, waiting.split_to(total).freeze()))
}

/// What can be held back at one member.
#[derive(Clone)]
pub(crate) struct Gates {
    /// Entries on their way to it. Heartbeats pass.
    pub(crate) entries: Gate,
    /// Questions for a read index that come to it.
    pub(crate) asked: Gate,
    /// Its answers to them.
    pub(crate) answered: Gate,
}

impl Gates {
    fn new() -> Gates {
        Gates {
            entries: Gate::new(|kind, bytes| kind == APPEND && bytes > APPEND_BYTES),
            asked: Gate::new(|kind, _| kind == READ_INDEX),
            answered: Gate::new(|kind, _| kind == READ_AT),
        }
    }

    async fn serve(self, listener: TcpListener, node: Node) {
        let around = from_fn(move |request: Request, next: Next| {
            let gates = self.clone();
            async move {
                let path = request.uri().path().to_owned();
                if path.ends_with("/append") {
                    next.run(request.map(|body| gates.entries.pass(body))).await
                } else if path.ends_with("/control") {
                    let response = next.run(request.map(|body| gates.asked.pass(body))).await;
                    response.map(|body| gates.answered.pass(body))
                } else {
                    next.run(request).await
                }
            }
        });
        axum::serve(listener, node.peer_router().layer(around)).await.unwrap();
    }
}

/// Remembers what happened between a member and its peers.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<NetworkEvent>>);

impl NetworkObserver for Events {
    fn observe(&self, event: NetworkEvent) {
        self.0.lock().unwrap().push(event);
    }
}

impl Events {
    pub(crate) fn count(&self, counted: impl Fn(&NetworkEvent) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|event| counted(event)).count()
    }
}

/// One member, running or not.
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) gates: Gates,
    pub(crate) events: Arc<Events>,
    pub(crate) dir: TempDir,
    address: SocketAddr,
    config: Config,
    running: Option<(Node, JoinHandle<()>)>,
}

impl Member {
    pub(crate) fn node(&self) -> &Node {
        &self.running.as_ref().expect("it runs").0
    }

    /// Stops it; its directory is free then.
    pub(crate) async fn stop(&mut self) {
        let (node, serving) = self.running.take().expect("it runs");
        node.shutdown().await.unwrap();
        serving.abort();
        drop((serving.await, node));
    }

    pub(crate) async fn start(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.start_on(listener).await;
    }

    async fn start_on(&mut self, listener: TcpListener) {
        let options = || {
            let mut options = StorageOptions::new(self.dir.path(), CLUSTER, self.id, [self.id as u8; 16]);
            options.wal.segment_bytes = 1 << 20;
            options.backend.memtable_bytes = 4 << 20;
            options
        };
        let node = Node::start(self.config.clone(), opened(options).await).await.unwrap();
        let serving = tokio::spawn(self.gates.clone().serve(listener, node.clone()));
        self.running = Some((node, serving));
    }

    pub(crate) fn applied(&self) -> Applied {
        self.node().reads().applied()
    }

    /// Proposes until the outcome is known: a snapshot that a member installs may pass over what it has proposed, whose
    /// outcome it then cannot know. So a command may be carried out twice.
    pub(crate) async fn propose(&self, command: impl Into<EncodedCommand>) -> Outcome {
        let command = command.into();
        let known = async {
            loop {
                match self.node().propose(command.clone()).await {
                    Err(ProposeError::Discarded) => {}
                    outcome => return outcome.unwrap(),
                }
            }
        };
        within("a proposal", known).await
    }

    /// Waits until it has applied this entry.
    pub(crate) async fn wait_applied(&self, index: u64) {
        eventually("an entry is applied", || self.applied().index >= index).await;
    }
}

/// Opens a directory. Connections of the process's earlier life may hold it for a moment longer.
async fn opened(options: impl Fn() -> StorageOptions) -> Storage {
    let opening = async {
        loop {
            match open_storage(options()) {
                Ok(storage) => return storage,
                Err(OpenError::Locked { .. }) => {}
                Err(OpenError::Backend { source, .. })
                    if matches!(*source, tally_backend::OpenError::Locked { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    within("the directory is free", opening).await
}

/// Members 1, 2 and 3.
pub(crate) struct Cluster(pub(crate) Vec<Member>);

impl Cluster {
    /// Three members that all serve; `change` may change the settings of each.
    pub(crate) async fn start(change: impl Fn(u64, &mut Config)) -> Cluster {
        let mut members = Vec::new();
        let mut listeners = Vec::new();
        for id in 1..=3 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (dir, events) = (tempfile::tempdir().unwrap(), Arc::new(Events::default()));
            let config = Config { cluster_id: CLUSTER, member_id: id, ..Config::default() };
            members.push(Member { id, gates: Gates::new(), events, dir, address, config, running: None });
            listeners.push(listener);
        }
        let founder =
            |member: &Member| Founder { id: member.id, peer_urls: vec![format!("http://{}", member.address)] };
        let founders: Vec<Founder> = members.iter().map(founder).collect();
        for (member, listener) in members.iter_mut().zip(listeners) {
            member.config.founders.clone_from(&founders);
            member.config.network = Some(Arc::clone(&member.events) as _);
            change(member.id, &mut member.config);
            member.start_on(listener).await;
        }
        for member in &members {
            within("a member is ready", member.node().ready()).await.unwrap();
        }
        Cluster(members)
    }

    pub(crate) fn member(&self, id: u64) -> &Member {
        &self.0[id as usize - 1]
    }

    pub(crate) fn member_mut(&mut self, id: u64) -> &mut Member {
        &mut self.0[id as usize - 1]
    }

    fn running(&self) -> impl Iterator<Item = &Member> {
        self.0.iter().filter(|member| member.running.is_some())
    }

    /// The member that leads, once it knows.
    pub(crate) async fn leader(&self) -> u64 {
        let leads = || self.running().find(|member| member.node().status().borrow().is_leader).map(|member| member.id);
        eventually("a leader", || leads().is_some()).await;
        leads().unwrap()
    }

    /// Makes a member lead.
    pub(crate) async fn lead(&self, id: u64) {
        let led = async {
            while !self.member(id).node().status().borrow().is_leader {
                // Refused while somebody else is about to lead, or not yet: then it is asked for again.
                let leader = self.leader().await;
                if leader == id || self.member(leader).node().transfer_leader(id).await.is_err() {
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        within("a leader is made", led).await;
    }

    /// Waits until all running members have applied all that any of them knows to be committed: then their states are
    /// equal. Nobody may write meanwhile.
    pub(crate) async fn level(&self) -> Applied {
        let indexes = || self.running().map(|member| member.node().progress());
        let is_level = || {
            let goal = indexes().map(|progress| progress.committed.max(progress.applied)).max();
            self.running().all(|member| Some(member.applied().index) == goal)
        };
        let looking = async {
            while !is_level() {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(SOON, looking).await.is_err() {
            let status = |member: &Member| member.node().status().borrow().clone();
            panic!("the members are not level: {:#?}", self.running().map(status).collect::<Vec<_>>());
        }
        let states: Vec<Applied> = self.running().map(Member::applied).collect();
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "{states:?}");
        states[0].clone()
    }

    /// Makes the log of a member begin behind `index`.
    pub(crate) async fn purge_beyond(&self, id: u64, index: u64) {
        let node = self.member(id).node();
        node.snapshot().await.unwrap();
        eventually("the log is cut", || node.progress().purged > index).await;
    }

    pub(crate) async fn stop(mut self) {
        for member in &mut self.0 {
            if member.running.is_some() {
                member.stop().await;
            }
        }
    }
}

/// Waits for something that happens soon.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("not in {SOON:?}: {what}"))
}

/// Waits until something holds that can only be asked for.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let looking = async {
        while !holds() {
            tokio::time::sleep(LOOK).await;
        }
    };
    within(what, looking).await;
}
