//! Clusters of real processes on loopback.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use tempfile::TempDir;

pub use super::ports::free_ports;
use super::{Answer, Launch, PATIENCE, Tally, directory, program};

/// Between two looks at something that can only be asked for.
const LOOK: Duration = Duration::from_millis(20);
/// How often a cluster is begun anew because a port was taken between choosing it and using it.
const ATTEMPTS: usize = 5;

/// `--initial-cluster-token`, where it is not given.
const DEFAULT_TOKEN: &str = "etcd-cluster";

/// Some members, each with its own directory and ports, which it keeps.
pub struct Cluster {
    pub root: TempDir,
    pub members: Vec<Member>,
    /// Flags of all members.
    pub flags: Vec<String>,
    /// `--initial-cluster` of the founders.
    pub founders: String,
    /// What members run.
    pub program: PathBuf,
}

/// One member, running or not.
pub struct Member {
    pub name: String,
    pub client: u16,
    pub peer: u16,
    pub data: PathBuf,
    program: PathBuf,
    process: Option<Tally>,
}

/// Waits until `found` finds something.
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(LOOK);
    }
}

impl Member {
    fn new(root: &Path, program: &Path, number: usize) -> Member {
        let ports = free_ports(2);
        let name = format!("n{number}");
        let data = root.join(&name);
        Member { name, client: ports[0], peer: ports[1], data, program: program.to_owned(), process: None }
    }

    pub fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }

    /// As in `--initial-cluster`.
    pub fn named_url(&self) -> String {
        format!("{}={}", self.name, self.peer_url())
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Tally {
        self.process.as_mut().unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Its command line without what says which cluster it belongs to.
    pub fn launch(&self) -> Launch {
        let client = format!("http://127.0.0.1:{}", self.client);
        program(&self.program)
            .arg(&format!("--name={}", self.name))
            .arg(&format!("--data-dir={}", self.data.display()))
            .arg(&format!("--listen-client-urls={client}"))
            .arg(&format!("--advertise-client-urls={client}"))
            .arg(&format!("--listen-peer-urls={}", self.peer_url()))
            .arg(&format!("--initial-advertise-peer-urls={}", self.peer_url()))
    }
}

/// Gives the founders their ports so that the order of their names is that of their ids, which is the order of every list that a
/// server makes of them: so the answers of two clusters can be compared. (Ids come of the peer URL and the cluster's token.)
fn order_by_id(members: &mut [Member]) {
    let mut ports: Vec<(u16, u16)> = members.iter().map(|member| (member.peer, member.client)).collect();
    ports.sort_by_key(|(peer, _)| Sha1::digest(format!("http://127.0.0.1:{peer}{DEFAULT_TOKEN}")).to_vec());
    for (member, (peer, client)) in members.iter_mut().zip(ports) {
        (member.peer, member.client) = (peer, client);
    }
}

impl Cluster {
    /// A cluster of so many members, all of which serve.
    pub fn start(size: usize) -> Cluster {
        Cluster::with(size, &[])
    }

    /// The same with more flags.
    pub fn with(size: usize, flags: &[&str]) -> Cluster {
        Cluster::of(Path::new(env!("CARGO_BIN_EXE_tally")), size, flags)
    }

    /// The same of another program that takes etcd's flags, such as etcd.
    pub fn of(program: &Path, size: usize, flags: &[&str]) -> Cluster {
        for _ in 0..ATTEMPTS {
            if let Some(cluster) = Cluster::try_start(program, size, flags) {
                return cluster;
            }
        }
        panic!("no cluster could be started: every time a port was taken");
    }

    fn try_start(program: &Path, size: usize, flags: &[&str]) -> Option<Cluster> {
        let mut cluster = Cluster::prepare_of(program, size, flags);
        for at in 0..size {
            cluster.spawn(at);
        }
        for at in 0..size {
            let taken = |line: &String| line.contains("cannot listen on") || line.contains("address already in use");
            match cluster.members[at].process().try_ready() {
                Ok(()) => {}
                Err(log) if log.iter().any(taken) => return None,
                Err(log) => panic!("a member did not start:\n{}", log.join("\n")),
            }
        }
        Some(cluster)
    }

    /// A cluster of which nothing runs yet.
    pub fn prepare(size: usize, flags: &[&str]) -> Cluster {
        Cluster::prepare_of(Path::new(env!("CARGO_BIN_EXE_tally")), size, flags)
    }

    fn prepare_of(program: &Path, size: usize, flags: &[&str]) -> Cluster {
        let root = directory();
        let mut members: Vec<Member> = (0..size).map(|number| Member::new(root.path(), program, number)).collect();
        order_by_id(&mut members);
        let founders = members.iter().map(Member::named_url).collect::<Vec<_>>().join(",");
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Cluster { root, members, flags, founders, program: program.to_owned() }
    }

    fn flagged(&self, launch: Launch) -> Launch {
        self.flags.iter().fold(launch, |launch, flag| launch.arg(flag))
    }

    /// The command line of a founder.
    pub fn launch(&self, at: usize) -> Launch {
        self.flagged(self.members[at].launch()).arg(&format!("--initial-cluster={}", self.founders))
    }

    /// The command line of a member that joins the cluster as it is now.
    pub fn launch_joining(&self, at: usize) -> Launch {
        let asked = self.any_running();
        // Without a quorum only what it has applied itself can be asked for, and a second voter is not a quorum before it runs.
        let answer = self.node(asked).ok("/v3/cluster/member/list", &json!({}));
        let members = answer["members"].as_array().unwrap();
        let named: Vec<String> = members
            .iter()
            .flat_map(|member| {
                let known = self.members.iter().find(|known| member["peerURLs"][0] == known.peer_url());
                let name = known.map_or_else(|| format!("m{}", member["ID"]), |known| known.name.clone());
                let urls = member["peerURLs"].as_array().unwrap().clone();
                urls.into_iter().map(move |url| format!("{name}={}", url.as_str().unwrap()))
            })
            .collect();
        self.flagged(self.members[at].launch())
            .arg(&format!("--initial-cluster={}", named.join(",")))
            .arg("--initial-cluster-state=existing")
    }

    pub fn spawn(&mut self, at: usize) {
        let process = self.launch(at).spawn();
        self.run(at, process);
    }

    /// Takes over a process as the one of a member.
    pub fn run(&mut self, at: usize, mut process: Tally) {
        process.address = format!("127.0.0.1:{}", self.members[at].client);
        self.members[at].process = Some(process);
    }

    /// Starts a founder that was stopped, and waits until it serves.
    pub fn restart(&mut self, at: usize) {
        self.spawn(at);
        self.members[at].process().ready();
    }

    /// A place for one more member, which does not run yet.
    pub fn grow(&mut self) -> usize {
        let at = self.members.len();
        let member = Member::new(self.root.path(), &self.program, at);
        self.members.push(member);
        at
    }

    /// Ends a process at once.
    pub fn kill(&mut self, at: usize) {
        self.members[at].process.take().unwrap().kill();
    }

    /// Asks a process to stop, waits until it has, and returns its log.
    pub fn stop(&mut self, at: usize) -> Vec<String> {
        self.members[at].process.take().unwrap().stop()
    }

    /// Waits for a process that ends by itself: its exit code, and its log.
    pub fn ended(&mut self, at: usize) -> (Option<i32>, Vec<String>) {
        let mut process = self.members[at].process.take().unwrap();
        let status = process.wait();
        (status.code(), std::mem::take(&mut process.log))
    }

    pub fn node(&self, at: usize) -> &Tally {
        self.members[at].process.as_ref().unwrap_or_else(|| panic!("member {at} does not run"))
    }

    pub fn running(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|at| self.members[*at].is_running()).collect()
    }

    fn any_running(&self) -> usize {
        *self.running().first().expect("a member runs")
    }

    pub fn status(&self, at: usize) -> Value {
        self.node(at).ok("/v3/maintenance/status", &json!({}))
    }

    /// The id of a member, as etcd writes it.
    pub fn id(&self, at: usize) -> String {
        self.status(at)["header"]["member_id"].as_str().unwrap().to_owned()
    }

    pub fn term(&self, at: usize) -> u64 {
        self.status(at)["raftTerm"].as_str().unwrap().parse().unwrap()
    }

    /// The leader, as soon as all running members agree on it.
    pub fn leader(&self) -> usize {
        let running = self.running();
        let ids: Vec<String> = running.iter().map(|at| self.id(*at)).collect();
        eventually("one leader that all know", || {
            let leaders: Vec<Value> = running.iter().map(|at| self.status(*at)["leader"].clone()).collect();
            let first = leaders[0].as_str()?.to_owned();
            leaders.iter().all(|leader| *leader == first).then_some(())?;
            running.iter().zip(&ids).find(|(_, id)| **id == first).map(|(at, _)| *at)
        })
    }

    /// A running member that does not lead.
    pub fn follower(&self) -> usize {
        let leader = self.leader();
        self.running().into_iter().find(|at| *at != leader).unwrap()
    }

    pub fn applied(&self, at: usize) -> u64 {
        self.status(at)["raftAppliedIndex"].as_str().unwrap().parse().unwrap()
    }

    /// Waits until a member has applied all that anybody has applied now.
    pub fn wait_level(&self, at: usize) {
        let goal = self.running().into_iter().map(|at| self.applied(at)).max().unwrap();
        eventually("a member catches up", || (self.applied(at) >= goal).then_some(()));
    }

    /// What a member says about who is in the cluster.
    pub fn list(&self, at: usize) -> Vec<Value> {
        let answer = self.node(at).ok("/v3/cluster/member/list", &json!({"linearizable": true}));
        assert!(answer["header"]["revision"].is_null(), "{answer}");
        answer["members"].as_array().unwrap().clone()
    }

    /// Adds a member through another one, and returns its id.
    pub fn add(&self, asked: usize, added: usize, is_learner: bool) -> String {
        let body = json!({"peerURLs": [self.members[added].peer_url()], "isLearner": is_learner});
        let answer = eventually_ok(self.node(asked), "/v3/cluster/member/add", &body);
        answer["member"]["ID"].as_str().unwrap().to_owned()
    }

    /// Adds a learner and waits until it serves.
    pub fn join_learner(&mut self) -> (usize, String) {
        let (asked, at) = (self.leader(), self.grow());
        let id = self.add(asked, at, true);
        let process = self.launch_joining(at).spawn();
        self.run(at, process);
        self.members[at].process().ready();
        (at, id)
    }

    /// The state of all running members is the same, now that nobody writes.
    pub fn same_state(&self) {
        let running = self.running();
        running.iter().for_each(|at| self.wait_level(*at));
        let state = |at: &usize| {
            let answer = self.node(*at).ok("/v3/maintenance/hashkv", &json!({}));
            (answer["header"]["revision"].clone(), answer["hash"].clone())
        };
        let states: Vec<(Value, Value)> = running.iter().map(state).collect();
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "{states:?}");
    }
}

/// A request that is refused as long as the cluster is not healthy enough for it.
pub fn eventually_ok(tally: &Tally, path: &str, body: &Value) -> Value {
    let mut last = None;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = tally.post(path, &body.to_string());
        if answer.status == 200 {
            return answer.json();
        }
        let retryable = ["unhealthy cluster", "in sync with leader", "too many requests"];
        assert!(retryable.iter().any(|text| answer.body.contains(text)), "{path} {body}: {}", answer.body);
        assert!(Instant::now() < deadline, "{path} {body}: {last:?}");
        last = Some(answer.body);
        std::thread::sleep(LOOK);
    }
}

/// A refusal with etcd's status, code and text.
pub fn refused(answer: &Answer, status: u16, code: u64, text: &str) {
    assert_eq!(answer.status, status, "{}", answer.body);
    let body = answer.json();
    assert_eq!((body["code"].as_u64(), body["message"].as_str()), (Some(code), Some(text)), "{}", answer.body);
    assert_eq!(body["error"], body["message"]);
}

/// Copies a directory that nobody writes to.
pub fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}
