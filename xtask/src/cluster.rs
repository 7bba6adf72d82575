//! `cargo xtask cluster`: a cluster on this machine for trying things out.
//!
//! Its members run beside this program, which shows their logs, says who leads, starts a killed one again, and stops them
//! all on Ctrl-C. They are in process groups of their own, so that a terminal's Ctrl-C reaches only this program and the
//! end is in its hands.

use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, PipeReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::error::{Error, Result};
use crate::http::Client;
use crate::node::{Kind, Plan};
use crate::{api, bench, group, ports, run};

/// The options of this command.
pub(crate) const OPTIONS: &[&str] = &["nodes", "dir", "tally"];

/// Members unless told otherwise, and at most: port numbers end there.
const NODES: usize = 3;
const NODES_MAX: usize = 5;
/// How long a killed member stays away: long enough to see that the others go on without it.
const AWAY: Duration = Duration::from_secs(10);
/// How long the members may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How often members are looked at, and asked for the leader.
const LOOK: Duration = Duration::from_millis(50);
const ASK: Duration = Duration::from_millis(500);
/// How long a member may take to answer; a paused one does not.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);
/// ANSI colours of the members' names: cyan, magenta, yellow, green, blue.
const COLOURS: [u8; NODES_MAX] = [36, 35, 33, 32, 34];
/// Room for the longest name before a log line.
const NAME_WIDTH: usize = 7;

/// Starts a cluster and stays with it until Ctrl-C.
pub(crate) fn run(args: &Args) -> Result<()> {
    let dir = PathBuf::from(args.text("dir").unwrap_or("tally-cluster"));
    let nodes = nodes(args, stored_nodes(&dir))?;
    let addresses: Vec<_> = (0..nodes).map(addresses).collect();
    check_free(&addresses, &dir)?;
    let binary = bench::tally(args)?;
    let mut flags = args.rest().to_vec();
    if !args.passes("log-format") {
        flags.insert(0, "--log-format=console".to_owned());
    }
    let plans = Plan::cluster(Kind::Tally, &binary, &dir, &addresses, &flags)?;
    let interrupted = catch_signals()?;
    let mut cluster = Cluster::start(plans, dir)?;
    while !interrupted.swap(false, Ordering::Relaxed) {
        cluster.look()?;
        thread::sleep(LOOK);
    }
    cluster.stop(&interrupted)
}

/// How many members there are to be; a directory's cluster keeps its size.
fn nodes(args: &Args, stored: usize) -> Result<usize> {
    let nodes = args.number("nodes", if stored == 0 { NODES } else { stored })?;
    if !(1..=NODES_MAX).contains(&nodes) {
        return Err(Error::Usage(format!("--nodes takes 1 to {NODES_MAX}, not {nodes}")));
    }
    if stored != 0 && stored != nodes {
        return Err(Error::Usage(format!(
            "the directory holds a cluster of {stored}, not {nodes}; leave out --nodes, name another --dir, or delete it"
        )));
    }
    Ok(nodes)
}

/// How many members' data a directory holds.
fn stored_nodes(dir: &Path) -> usize {
    (1..=NODES_MAX).filter(|number| dir.join(format!("node{number}/data")).is_dir()).count()
}

/// Where a member serves clients and peers: 2379 and 2380, then 22379 and 22380, 32379 and 32380 …
fn addresses(index: usize) -> (SocketAddr, SocketAddr) {
    let port = if index == 0 { 2379 } else { 12_379 + 10_000 * index as u16 };
    let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    (address(port), address(port + 1))
}

/// Refuses to begin where something else listens; better now than after a long build.
fn check_free(addresses: &[(SocketAddr, SocketAddr)], dir: &Path) -> Result<()> {
    let taken = ports::taken(addresses.iter().flat_map(|(client, peer)| [*client, *peer]));
    if taken.is_empty() {
        return Ok(());
    }
    Err(Error::Missing(format!(
        "{} {} taken; stop what listens there: another cluster, `cargo xtask serve`, an etcd, or members that an earlier \
         run left behind (kill $(cat {}/node*/pid))",
        taken.join(", "),
        if taken.len() == 1 { "is" } else { "are" },
        dir.display(),
    )))
}

/// A flag that Ctrl-C, SIGTERM and a closed terminal set.
fn catch_signals() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(Error::network("catch signals"))?;
    }
    Ok(interrupted)
}

/// The members, and what was last said about them.
struct Cluster {
    dir: PathBuf,
    members: Vec<Member>,
    screen: Screen,
    leader: Leader,
    ask_at: Instant,
}

/// What is known about who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leader {
    /// The cluster has not been ready yet.
    NotYet,
    Nobody,
    Member(usize),
}

struct Member {
    plan: Plan,
    child: Option<Child>,
    /// When it is to be started again, if it was killed.
    again: Option<Instant>,
    /// Shows its log.
    log: Option<JoinHandle<()>>,
}

impl Cluster {
    fn start(plans: Vec<Plan>, dir: PathBuf) -> Result<Cluster> {
        let member = |plan| Member { plan, child: None, again: None, log: None };
        let members = plans.into_iter().map(member).collect();
        let screen = Screen::new();
        let mut cluster = Cluster { dir, members, screen, leader: Leader::NotYet, ask_at: Instant::now() };
        (0..cluster.members.len()).try_for_each(|index| cluster.start_member(index))?;
        Ok(cluster)
    }

    fn start_member(&mut self, index: usize) -> Result<()> {
        let member = &mut self.members[index];
        let (log, output) = io::pipe().map_err(Error::network("make a pipe for a member's log"))?;
        let errors = output.try_clone().map_err(Error::network("make a pipe for a member's log"))?;
        let mut command = member.plan.command();
        let child = command.process_group(0).stdout(output).stderr(errors).spawn();
        let child = child.map_err(|source| Error::Start { program: run::shown(&command), source })?;
        let pid = member.plan.dir.join("pid");
        fs::write(&pid, format!("{}\n", child.id())).map_err(Error::file("write", &pid))?;
        member.child = Some(child);
        member.again = None;
        let (screen, name) = (self.screen, member.plan.name.clone());
        member.log = Some(thread::spawn(move || screen.follow(log, index, &name)));
        Ok(())
    }

    /// Looks after the members.
    fn look(&mut self) -> Result<()> {
        for index in 0..self.members.len() {
            self.note_end(index)?;
            if self.members[index].again.is_some_and(|again| again <= Instant::now()) {
                self.screen.say(&format!("{} is started again", self.members[index].plan.name));
                self.start_member(index)?;
            }
        }
        if self.ask_at <= Instant::now() {
            self.ask_at = Instant::now() + ASK;
            self.note_leader();
        }
        Ok(())
    }

    /// Says so when a member has ended. One that was killed comes back; one that stopped by itself had its reasons.
    fn note_end(&mut self, index: usize) -> Result<()> {
        let member = &mut self.members[index];
        let Some(child) = member.child.as_mut() else { return Ok(()) };
        let Some(status) = child.try_wait().map_err(Error::network("wait for a member"))? else { return Ok(()) };
        member.child = None;
        let name = &member.plan.name;
        if status.signal().is_some() {
            member.again = Some(Instant::now() + AWAY);
            self.screen.say(&format!("{name} was killed ({status}); it is started again in {} s", AWAY.as_secs()));
        } else {
            self.screen.say(&format!("{name} has stopped by itself ({status}); its last lines say why"));
        }
        Ok(())
    }

    /// Says so when the cluster has become ready, or another member leads.
    fn note_leader(&mut self) {
        let running = self.members.iter().enumerate().filter(|(_, member)| member.child.is_some());
        let said: Vec<_> = running
            .filter_map(|(index, member)| {
                let mut client = Client::new(member.plan.client, ANSWER_TIMEOUT);
                Some((index, api::status(&mut client).ok()?))
            })
            .collect();
        let found = group::agreed(&said).map_or(Leader::Nobody, Leader::Member);
        if found == self.leader {
            return;
        }
        match (self.leader, found) {
            // To begin with, all of them.
            (Leader::NotYet, Leader::Member(_)) if said.len() < self.members.len() => return,
            (Leader::NotYet, Leader::Member(leader)) => self.introduce(leader),
            (Leader::NotYet, _) | (_, Leader::NotYet) => return,
            (_, Leader::Nobody) => self.screen.say("no leader; requests wait for one"),
            (_, Leader::Member(leader)) => self.screen.say(&format!("{} leads", self.members[leader].plan.name)),
        }
        self.leader = found;
    }

    fn introduce(&self, leader: usize) {
        let say = |line: &str| self.screen.say(line);
        say(&format!("ready; {} leads", self.members[leader].plan.name));
        for member in &self.members {
            let Plan { name, client, peer, .. } = &member.plan;
            say(&format!("  {name}  clients http://{client:<15}  peers http://{peer}"));
        }
        let last = self.members.last().map_or(2379, |member| member.plan.client.port());
        let first = &self.members[0].plan;
        say("try, in another terminal:");
        let port = first.client.port();
        say(&format!(r#"  curl -s localhost:{port}/v3/kv/put -d '{{"key":"Zm9v","value":"YmFy"}}'"#));
        say(&format!(r#"  curl -s localhost:{last}/v3/kv/range -d '{{"key":"Zm9v"}}'"#));
        let away = AWAY.as_secs();
        say(&format!("  kill -9 $(cat {}/pid)   # it is started again after {away} s", first.dir.display()));
        say(&format!("Ctrl-C stops all; the data stays in {}", self.dir.display()));
    }

    /// SIGTERM to all; what has not stopped in time, or at the next signal, is killed.
    fn stop(mut self, interrupted: &AtomicBool) -> Result<()> {
        self.screen.say("stopping; once more Ctrl-C kills");
        for child in self.members.iter().filter_map(|member| member.child.as_ref()) {
            run::signal(child.id(), "TERM")?;
        }
        let begun = Instant::now();
        let mut odd = Vec::new();
        for member in &mut self.members {
            let Some(mut child) = member.child.take() else { continue };
            let name = &member.plan.name;
            loop {
                match child.try_wait().map_err(Error::network("wait for a member"))? {
                    Some(status) if status.success() => break,
                    Some(status) => {
                        odd.push(format!("{name} ended with {status}"));
                        break;
                    }
                    None if begun.elapsed() > STOP_LIMIT || interrupted.load(Ordering::Relaxed) => {
                        child.kill().map_err(Error::network("kill a member"))?;
                        child.wait().map_err(Error::network("wait for a member"))?;
                        odd.push(format!("{name} was killed"));
                        break;
                    }
                    None => thread::sleep(LOOK),
                }
            }
        }
        for log in self.members.iter_mut().filter_map(|member| member.log.take()) {
            log.join().map_err(|_| Error::Check("showing a log panicked".to_owned()))?;
        }
        if odd.is_empty() {
            self.screen.say(&format!("stopped; the data stays in {}", self.dir.display()));
            return Ok(());
        }
        Err(Error::Check(odd.join(", ")))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = self.child.as_mut() {
            // Only on the way out of an error: nothing is to stay behind that nobody watches.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where the lines of all members come together.
#[derive(Debug, Clone, Copy)]
struct Screen {
    coloured: bool,
}

impl Screen {
    fn new() -> Screen {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen { coloured: wanted && io::stdout().is_terminal() }
    }

    /// Shows a member's log until it ends.
    fn follow(self, log: PipeReader, index: usize, name: &str) {
        let prefix = self.prefix(name, Some(COLOURS[index % COLOURS.len()]));
        for line in BufReader::new(log).split(b'\n').map_while(std::result::Result::ok) {
            show(&prefix, &String::from_utf8_lossy(&line));
        }
    }

    /// Shows a line of this program's own.
    fn say(self, line: &str) {
        show(&self.prefix("cluster", None), line);
    }

    fn prefix(self, name: &str, colour: Option<u8>) -> String {
        match colour.filter(|_| self.coloured) {
            Some(colour) => format!("\x1b[{colour}m{name:<NAME_WIDTH$} |\x1b[0m"),
            None if self.coloured => format!("\x1b[1m{name:<NAME_WIDTH$} |\x1b[0m"),
            None => format!("{name:<NAME_WIDTH$} |"),
        }
    }
}

/// One line in one piece. A closed standard output must not stop the members.
fn show(prefix: &str, line: &str) {
    let _ = writeln!(io::stdout().lock(), "{prefix} {line}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{NODES_MAX, OPTIONS, Screen, addresses, check_free, nodes, stored_nodes};
    use crate::args::Args;
    use std::net::TcpListener;
    use std::path::Path;

    fn args(line: &str) -> Args {
        Args::parse(line.split_whitespace().map(str::to_owned).collect(), OPTIONS, &[]).unwrap()
    }

    #[test]
    fn ports_are_those_people_know() {
        let ports: Vec<_> = (0..NODES_MAX).map(addresses).map(|(client, peer)| (client.port(), peer.port())).collect();
        assert_eq!(ports, [(2379, 2380), (22379, 22380), (32379, 32380), (42379, 42380), (52379, 52380)]);
    }

    #[test]
    fn a_stored_cluster_keeps_its_size() {
        assert_eq!(nodes(&args(""), 0).unwrap(), 3);
        assert_eq!(nodes(&args("--nodes 5"), 0).unwrap(), 5);
        assert_eq!(nodes(&args(""), 5).unwrap(), 5);
        assert_eq!(nodes(&args("--nodes 5"), 5).unwrap(), 5);
        assert!(nodes(&args("--nodes 3"), 5).unwrap_err().to_string().contains("cluster of 5"));
        assert!(nodes(&args("--nodes 0"), 0).is_err() && nodes(&args("--nodes 6"), 0).is_err());
    }

    #[test]
    fn members_data_are_counted() {
        let dir = std::env::temp_dir().join(format!("tally-xtask-stored-{}", std::process::id()));
        assert_eq!(stored_nodes(&dir), 0);
        for number in 1..=3 {
            std::fs::create_dir_all(dir.join(format!("node{number}/data"))).unwrap();
        }
        assert_eq!(stored_nodes(&dir), 3);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn taken_ports_are_named() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap();
        let error = check_free(&[(taken, taken)], Path::new("d")).unwrap_err().to_string();
        assert!(error.contains(&taken.to_string()) && error.contains("kill $(cat d/node*/pid)"), "{error}");
        drop(holder);
        check_free(&[(taken, taken)], Path::new("d")).unwrap();
    }

    #[test]
    fn names_are_aligned_and_coloured_only_on_a_terminal() {
        assert_eq!(Screen { coloured: false }.prefix("node1", Some(36)), "node1   |");
        assert_eq!(Screen { coloured: false }.prefix("cluster", None), "cluster |");
        assert_eq!(Screen { coloured: true }.prefix("node1", Some(36)), "\x1b[36mnode1   |\x1b[0m");
    }
}
