//! etcdctl, unmodified, of three releases, on one node and on three: what it says of Tally is what it says of etcd, command by command.
//!
//! The programs come by `TALLY_TEST_ETCDCTL_DEBIAN` (Debian's, 3.4 at the time of writing), `TALLY_TEST_ETCDCTL_3_5` (the official one) and from beside `TALLY_TEST_ETCD`,
//! which is also the etcd that is compared with; `cargo xtask test` sets them. Without one a test says so and passes.
//!
//! Ids, ports, times, terms and sizes are left out of what is compared (see `subject`); everything else, exit codes and error
//! messages included, has to be equal.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod subject;

use std::path::{Path, PathBuf};

use common::cluster::eventually;
use subject::{Said, Subject};

/// Command lines, and what is typed into them.
const KEYS: &[(&str, &str)] = &[
    ("put a 1", ""),
    ("put a 2 --prev-kv", ""),
    ("put b 1 -w json", ""),
    ("put b/1 x -w fields", ""),
    ("put b/2 y", ""),
    ("put c 3", ""),
    ("put d", "from a pipe"),
    ("put -- -dash value", ""),
    ("get a", ""),
    ("get a -w json", ""),
    ("get a -w fields", ""),
    ("get a --hex", ""),
    ("get -- -dash", ""),
    ("get nothing", ""),
    ("get nothing -w json", ""),
    ("get b --prefix", ""),
    ("get b --prefix --limit=2", ""),
    ("get b --prefix --limit=1 -w json", ""),
    ("get b --prefix --keys-only", ""),
    ("get b --prefix --keys-only -w json", ""),
    ("get b --prefix --count-only", ""),
    ("get b --prefix --count-only -w fields", ""),
    ("get b --prefix --print-value-only", ""),
    ("get --from-key b", ""),
    ("get a c", ""),
    ("get a c -w fields", ""),
    ("get '' --prefix", ""),
    ("get '' --prefix --order=DESCEND", ""),
    ("get '' --prefix --sort-by=CREATE --order=ASCEND", ""),
    ("get '' --prefix --sort-by=MODIFY --order=DESCEND", ""),
    ("get '' --prefix --sort-by=VALUE", ""),
    ("get '' --prefix --sort-by=VERSION --order=DESCEND", ""),
    ("get '' --prefix --sort-by=KEY --order=DESCEND --limit=3", ""),
    ("get b --prefix --min-mod-rev=5", ""),
    ("get b --prefix --max-create-rev=4", ""),
    ("get a --rev=2", ""),
    ("get a --rev=3 -w json", ""),
    ("get a --rev=999", ""),
    ("get '' --prefix --rev=4", ""),
    ("get a --consistency=l", ""),
    ("get a --consistency=x", ""),
    ("get a --order=x", ""),
    ("get a --sort-by=x", ""),
    ("get a b c", ""),
    ("get", ""),
    ("put a --ignore-value", ""),
    ("put a 5 --ignore-lease", ""),
    ("put nothing --ignore-value", ""),
    ("put nothing 5 --ignore-lease", ""),
    ("put a x --ignore-value", ""),
    ("put '' x", ""),
    ("put a 1 --lease=123abc", ""),
    ("put a 1 --lease=xyz", ""),
    ("put", ""),
    ("del b/1", ""),
    ("del b/2 --prev-kv", ""),
    ("del nothing", ""),
    ("del nothing --prev-kv -w json", ""),
    ("del b --prefix --prev-kv", ""),
    ("del c d -w fields", ""),
    ("del --from-key d", ""),
    ("del ''", ""),
    ("del", ""),
    ("get '' --prefix -w json", ""),
    ("txn", "mod(\"a\") > \"0\"\nvalue(\"a\") = \"5\"\n\nput a yes\nget a\n\nput a no\nget a\n\n"),
    ("txn", "create(\"a\") = \"0\"\n\nput a yes\n\ndel a\nget a\nput b from-txn\n\n"),
    ("txn -w json", "version(\"b\") < \"1\"\n\n\nget b\n\n"),
    ("txn -w fields", "\nget b\nput c 1\ndel c2\n\n\n"),
    ("txn -i", "mod(\"b\") = \"0\"\n\nput b 1\n\nput b 2\n\n"),
    ("txn", "\nput twice 1\nput twice 2\n\n\n"),
    ("txn", "\nput l 1 --lease=77\n\n\n"),
    ("txn", "wrong(\"a\") = \"0\"\n\nput b 1\n\n\n"),
    ("txn", "mod(\"a\") = \"x\"\n\nput b 1\n\n\n"),
    ("get '' --prefix -w json", ""),
];

/// Watches that end by themselves, or after so many lines.
const WATCHES: &[(&str, usize)] = &[
    ("watch a --rev=2", 3 * 6),
    ("watch a --rev=2 --prev-kv", 3 * 6 + 2 * 5),
    ("watch '' --prefix --rev=8 -w json", 1),
    ("watch '' --prefix --rev=8 -w fields", 102),
    ("watch b c --rev=2", 24),
    (
        "watch a --rev=2 -- sh -c 'echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE $ETCD_WATCH_REVISION'",
        6 * 4,
    ),
];

const COMPACTIONS: &[(&str, &str)] = &[
    ("compaction 5", ""),
    ("compaction 5", ""),
    ("compaction 9999", ""),
    ("compaction x", ""),
    ("get a --rev=3", ""),
    ("get a --rev=5", ""),
    ("watch a --rev=3", ""),
    ("compaction 7 --physical", ""),
    ("put a after", ""),
    ("get a -w json", ""),
];

/// While nothing that chance decides, such as the id of a lease, has been written.
const HASHES: &[(&str, &str)] = &[("endpoint hashkv", ""), ("endpoint hashkv --cluster -w json", "")];

const LEASES: &[(&str, &str)] = &[
    ("lease list", ""),
    ("lease grant 1000", ""),
    ("put leased v --lease={lease}", ""),
    ("get leased -w fields", ""),
    ("put leased w --ignore-lease", ""),
    ("lease timetolive {lease}", ""),
    ("lease timetolive {lease} --keys", ""),
    ("lease timetolive {lease} --keys -w json", ""),
    ("lease timetolive {lease} -w fields", ""),
    ("lease list", ""),
    ("lease list -w json", ""),
    ("lease keep-alive {lease} --once", ""),
    ("lease keep-alive {lease} --once -w json", ""),
    ("lease revoke {lease}", ""),
    ("get leased", ""),
    ("lease revoke {lease}", ""),
    ("lease keep-alive {lease} --once", ""),
    ("lease timetolive {lease}", ""),
    ("lease timetolive {lease} -w json", ""),
    ("lease timetolive xyz", ""),
    ("lease grant 9000000001", ""),
    ("lease grant xyz", ""),
    ("lease grant", ""),
    ("lease grant 500 -w json", ""),
    ("lease list", ""),
];

const LOCKS: &[(&str, &str)] = &[
    ("lock l -- sh -c 'echo $ETCD_LOCK_KEY $ETCD_LOCK_REV'", ""),
    ("lock l --ttl=30 -- sh -c 'exit 3'", ""),
    ("lock", ""),
    ("get l --prefix", ""),
    ("elect", ""),
];

const ADMINISTRATION: &[(&str, &str)] = &[
    ("member list", ""),
    ("member list -w json", ""),
    ("member list -w fields", ""),
    ("member list -w table", ""),
    ("member update {id0} --peer-urls={peer0}", ""),
    ("member update 123 --peer-urls=http://127.0.0.1:1", ""),
    ("member add again --peer-urls={peer0}", ""),
    ("member remove 123", ""),
    ("member promote {id0}", ""),
    ("member promote 123", ""),
    ("member add", ""),
    ("alarm list", ""),
    ("alarm disarm", ""),
    ("endpoint health", ""),
    ("endpoint health --cluster", ""),
    ("endpoint health --cluster -w json", ""),
    ("defrag", ""),
    ("defrag --cluster", ""),
    ("move-leader 123", ""),
];

const LEARNERS: &[(&str, &str)] = &[
    ("member add learner --peer-urls=http://127.0.0.1:1 --learner", ""),
    ("member list", ""),
    ("member promote {added}", ""),
    ("member remove {added}", ""),
    ("member list", ""),
];

/// A program that a variable names, or none.
fn given(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_file());
    if path.is_none() {
        eprintln!("SKIPPED: {variable} is not set; `cargo xtask peers` fetches what it names");
    }
    path
}

/// The etcdctl beside the newest etcd.
fn newest() -> Option<PathBuf> {
    Some(given("TALLY_TEST_ETCD")?.with_file_name("etcdctl")).filter(|etcdctl| etcdctl.is_file())
}

/// Tally and etcd, and what the same etcdctl says of both.
struct Pair {
    tally: Subject,
    etcd: Subject,
    differences: Vec<String>,
}

impl Pair {
    fn start(etcdctl: Option<PathBuf>, size: usize) -> Option<Pair> {
        let (etcdctl, etcd) = (etcdctl?, given("TALLY_TEST_ETCD")?);
        let tally = Path::new(env!("CARGO_BIN_EXE_tally"));
        let start = |program: &Path| Subject::new(&etcdctl, program, size);
        Some(Pair { tally: start(tally), etcd: start(&etcd), differences: Vec::new() })
    }

    fn same<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, tally: &T, etcd: &T) {
        if tally != etcd {
            self.differences.push(format!("{what}\n    tally: {tally:?}\n     etcd: {etcd:?}"));
        }
    }

    fn both(&mut self, line: &str, stdin: &str) -> (Said, Said) {
        (self.tally.run(line, stdin), self.etcd.run(line, stdin))
    }

    /// Commands that end, with the lines of those that ask all members at once in order.
    fn run(&mut self, commands: &[(&str, &str)]) {
        for (line, stdin) in commands {
            let (mut tally, mut etcd) = self.both(line, stdin);
            if line.starts_with("endpoint") || line.contains("--cluster") {
                for said in [&mut tally, &mut etcd] {
                    said.stdout = in_order(&said.stdout);
                    said.stderr = in_order(&said.stderr);
                }
            }
            self.same(line, &tally, &etcd);
        }
    }

    /// A member of another id comes and goes: where it stands among the others, and how wide its id is, is chance.
    fn learners(&mut self) {
        for (line, stdin) in LEARNERS {
            let (tally, etcd) = self.both(line, stdin);
            let [tally, etcd] = [tally, etcd]
                .map(|said| (said.code, in_order(&said.stdout.replace([',', '"', ' '], "\n")), said.stderr));
            self.same(line, &tally, &etcd);
        }
    }

    fn watch(&mut self, watches: &[(&str, usize)]) {
        for (line, count) in watches {
            let [tally, etcd] = [&mut self.tally, &mut self.etcd].map(|subject| {
                let said = subject.start(line, "").lines(*count);
                subject.plain(&said)
            });
            self.same(line, &tally, &etcd);
        }
    }

    /// Several watches, typed in one after the other, and what is told about progress.
    fn watch_interactively(&mut self) {
        let [tally, etcd] = [&mut self.tally, &mut self.etcd].map(|subject| {
            let mut running = subject.start("watch -i", "watch --rev=2 a\n");
            let mut said = running.lines(3 * 6);
            running.write("watch --rev=2 --prefix b\n");
            said += &running.lines(3);
            running.write("progress\n");
            said += &running.lines(1);
            subject.plain(&said)
        });
        self.same("watch -i", &tally, &etcd);
    }

    /// Who waits for a lock gets it when the holder is gone.
    fn locks_pass_on(&mut self) {
        let [tally, etcd] = [&mut self.tally, &mut self.etcd].map(|subject| {
            let mut holder = subject.start("lock m", "");
            let held = subject.plain(&holder.lines(1));
            let mut next = subject.start("lock m", "");
            eventually("the second waits", || {
                (subject.run("get m/ --prefix --keys-only", "").stdout.matches("m/").count() == 2).then_some(())
            });
            holder.interrupt();
            let then = subject.plain(&next.lines(1));
            next.interrupt();
            (held, then, subject.run("get m/ --prefix", ""))
        });
        self.same("lock m, by two", &tally, &etcd);
    }

    /// Observers are told who leads, and a candidate that waits leads when the leader is gone.
    fn elections_pass_on(&mut self) {
        let [tally, etcd] = [&mut self.tally, &mut self.etcd].map(|subject| {
            let mut leader = subject.start("elect e one", "");
            let mut said = subject.plain(&leader.lines(2));
            let mut observer = subject.start("elect --listen e", "");
            said += &subject.plain(&observer.lines(2));
            let mut next = subject.start("elect e two", "");
            eventually("the second waits", || {
                (subject.run("get e/ --prefix --keys-only", "").stdout.matches("e/").count() == 2).then_some(())
            });
            leader.interrupt();
            said += &subject.plain(&next.lines(2));
            said += &subject.plain(&observer.lines(2));
            next.interrupt();
            said
        });
        self.same("elect e, by two, and --listen", &tally, &etcd);
    }

    /// The columns of a status that say the same of any store: all but version, sizes, term and indexes.
    fn statuses(&mut self) {
        for line in ["endpoint status", "endpoint status --cluster"] {
            let (tally, etcd) = self.both(line, "");
            let [tally, etcd] = [tally, etcd].map(|said| {
                let rows = said.stdout.lines().map(|row| {
                    let columns: Vec<&str> = row.split(", ").collect();
                    [columns[0].trim_start_matches("http://"), columns[1], columns[columns.len() - 1]].join(", ")
                        + &format!(", {} columns", columns.len())
                });
                let leads = said.stdout.matches(", true, false, ").count();
                (said.code, in_order(&rows.collect::<Vec<_>>().join("\n")), leads, said.stderr)
            });
            self.same(line, &tally, &etcd);
        }
    }

    fn done(self) {
        assert!(
            self.differences.is_empty(),
            "{} differences:\n{}",
            self.differences.len(),
            self.differences.join("\n")
        );
    }
}

/// The lines of a text, or the objects of a JSON array, in an order of their own.
fn in_order(text: &str) -> String {
    let parts = text.split(['\n', '[', '{', '}', ']']).filter(|part| !matches!(*part, "" | ","));
    let mut parts: Vec<&str> = parts.collect();
    parts.sort_unstable();
    parts.join("\n")
}

fn one_node(etcdctl: Option<PathBuf>) {
    let Some(mut pair) = Pair::start(etcdctl, 1) else { return };
    pair.run(KEYS);
    pair.watch(WATCHES);
    pair.watch_interactively();
    pair.run(HASHES);
    pair.run(COMPACTIONS);
    pair.run(HASHES);
    pair.run(LEASES);
    pair.run(LOCKS);
    pair.locks_pass_on();
    pair.elections_pass_on();
    pair.run(ADMINISTRATION);
    pair.statuses();
    pair.learners();
    pair.done();
}

fn three_nodes(etcdctl: Option<PathBuf>) {
    let Some(mut pair) = Pair::start(etcdctl, 3) else { return };
    pair.run(KEYS);
    pair.watch(WATCHES);
    pair.run(COMPACTIONS);
    pair.run(LEASES);
    pair.run(LOCKS);
    pair.locks_pass_on();
    pair.elections_pass_on();
    pair.run(ADMINISTRATION);
    pair.statuses();
    pair.leader_moves();
    pair.member_goes();
    pair.tally.cluster.same_state();
    pair.done();
}

impl Pair {
    fn leader_moves(&mut self) {
        let [tally, etcd] = [&mut self.tally, &mut self.etcd].map(|subject| {
            let (leader, follower) = (subject.cluster.leader(), subject.cluster.follower());
            let id: u64 = subject.cluster.id(follower).parse().unwrap();
            subject.set("follower", format!("{id:x}"));
            let said = subject.run("move-leader {follower}", "");
            assert_eq!(subject.cluster.leader(), follower);
            let named = [(leader, "OLD"), (follower, "NEW")];
            let plain = named.iter().fold(said.stdout, |text, (at, name)| text.replace(&format!("MEMBER{at}"), name));
            (said.code, plain, said.stderr)
        });
        self.same("move-leader", &tally, &etcd);
    }

    /// A follower is removed, and stops.
    fn member_goes(&mut self) {
        let [tally, etcd] = [&mut self.tally, &mut self.etcd].map(|subject| {
            let follower = subject.cluster.follower();
            let id: u64 = subject.cluster.id(follower).parse().unwrap();
            subject.set("follower", format!("{id:x}"));
            // A member that learns of its own removal stops, which may be before it has answered.
            subject.shunned = Some(follower);
            // Members have to have been in touch with each other for five seconds.
            let removed = eventually("a healthy cluster", || {
                let said = subject.run("member remove {follower}", "");
                (!said.stderr.contains("unhealthy cluster")).then_some(said)
            });
            let plain = removed.stdout.replace(&format!("MEMBER{follower}"), "MEMBER");
            let (code, _) = subject.cluster.ended(follower);
            eventually("all that are left know who is left", || {
                (subject.run("member list", "").stdout.lines().count() == 2).then_some(())
            });
            (removed.code, plain, removed.stderr, code)
        });
        self.same("member remove", &tally, &etcd);
    }
}

#[test]
fn one_node_debian() {
    one_node(given("TALLY_TEST_ETCDCTL_DEBIAN"));
}

#[test]
fn one_node_3_5() {
    one_node(given("TALLY_TEST_ETCDCTL_3_5"));
}

#[test]
fn one_node_newest() {
    one_node(newest());
}

#[test]
fn three_nodes_debian() {
    three_nodes(given("TALLY_TEST_ETCDCTL_DEBIAN"));
}

#[test]
fn three_nodes_3_5() {
    three_nodes(given("TALLY_TEST_ETCDCTL_3_5"));
}

#[test]
fn three_nodes_newest() {
    three_nodes(newest());
}

/// From an etcd into Tally, and from Tally into an etcd: what was there, and what comes.
#[test]
fn mirrors_are_made_both_ways() {
    for etcdctl in [given("TALLY_TEST_ETCDCTL_DEBIAN"), given("TALLY_TEST_ETCDCTL_3_5"), newest()] {
        let Some(mut pair) = Pair::start(etcdctl, 1) else { continue };
        let ends = [&pair.etcd, &pair.tally].map(|subject| subject.endpoints());
        let [etcd, tally] = &ends;
        mirrored(&mut pair.etcd, &mut pair.tally, "from-etcd", tally);
        mirrored(&mut pair.tally, &mut pair.etcd, "from-tally", etcd);
        pair.run(&[("get from- --prefix", ""), ("get back- --prefix", "")]);
        pair.done();
    }
}

fn mirrored(from: &mut Subject, to: &mut Subject, prefix: &str, address: &str) {
    let done = |said: Said| assert_eq!((said.code, &said.stdout[..]), (Some(0), "OK\n"), "{said:?}");
    done(from.run(&format!("put {prefix}/before 1"), ""));
    let mirror = from.start(&format!("make-mirror --prefix {prefix} {address}"), "");
    let mut arrives = |key: &str, value: &str| {
        eventually("it is mirrored", || {
            (to.run(&format!("get {prefix}/{key} --print-value-only"), "").stdout == format!("{value}\n")).then_some(())
        });
    };
    arrives("before", "1");
    done(from.run(&format!("put {prefix}/after 2"), ""));
    arrives("after", "2");
    let txn = format!("\nput {prefix}/x 3\nput {prefix}/y 4\n\n\n");
    assert_eq!(from.run("txn", &txn).code, Some(0));
    arrives("x", "3");
    arrives("y", "4");
    assert_eq!(from.run(&format!("del {prefix}/before"), "").stdout, "1\n");
    eventually("the deletion is mirrored", || {
        to.run(&format!("get {prefix}/before"), "").stdout.is_empty().then_some(())
    });
    mirror.interrupt();
}

/// A load of a minute, which both servers carry without an error. How fast they are is the benchmark's business.
#[test]
fn a_load_of_a_minute() {
    let Some(mut pair) = Pair::start(given("TALLY_TEST_ETCDCTL_3_5"), 1) else { return };
    let [tally, etcd] = std::thread::scope(|scope| {
        [&mut pair.tally, &mut pair.etcd]
            .map(|subject| {
                scope.spawn(|| {
                    let said = subject.run("check perf --load=s", "");
                    // The bar that grows, then a line per verdict, with figures.
                    let verdicts = said.stdout.rsplit('\r').next().unwrap().lines().filter(|line| line.contains(": "));
                    let words = verdicts.map(|line| {
                        let words = line.split_whitespace().filter(|word| word.chars().all(char::is_alphabetic));
                        words.collect::<Vec<_>>().join(" ")
                    });
                    words.collect::<Vec<_>>().join("\n") + &said.stderr
                })
            })
            .map(|running| running.join().unwrap())
    });
    pair.same("check perf", &tally, &etcd);
    pair.done();
}
