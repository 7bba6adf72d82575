//! Rows of the catalogue of etcd's bugs (`docs/bug-catalogue.md`) that take several members: what must be the same on all of
//! them, and when a read is linearizable. The names carry the rows.
#![allow(clippy::unwrap_used)]

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use cluster::{Cluster, Member, eventually, within};
use common::{all, put, revision};
use tally_apply::{AlarmAction, AlarmCommand, AlarmKind, Command, Outcome, Rejection, Reply};
use tally_mvcc::{DeleteRequest, KeyRange, Op, PutRequest, RangeOptions, RangeRequest, TxnRequest};
use tally_raftnode::{EncodedCommand, MemberChange, MemberError, NetworkEvent};

fn encoded(command: &Command) -> EncodedCommand {
    EncodedCommand::encode(command)
}

fn no_space(action: AlarmAction, member_id: u64) -> EncodedCommand {
    encoded(&Command::Alarm(AlarmCommand { action, member_id, kind: AlarmKind::NoSpace }))
}

fn compact(revision: i64) -> EncodedCommand {
    encoded(&Command::Compact { revision })
}

/// Puts a key, and reads another one as it was at a revision.
fn put_and_look_back(written: &str, read: &str, revision: i64) -> EncodedCommand {
    let range = KeyRange::single(read.to_owned().into()).unwrap();
    encoded(&Command::Txn(TxnRequest {
        success: vec![
            Op::Put(PutRequest::new(written.to_owned(), "v")),
            Op::Range(RangeRequest { range, revision, options: RangeOptions::default() }),
        ],
        ..TxnRequest::default()
    }))
}

fn value(member: &Member, key: &str) -> Option<String> {
    all(&member.node().reads()).into_iter().find(|(name, _, _)| name == key).map(|(_, value, _)| value)
}

fn is_refused_for_space(outcome: &Outcome) -> bool {
    matches!(outcome.result, Err(Rejection::NoSpace))
}

/// A log that keeps as little as it may.
fn short_log(_: u64, config: &mut tally_raftnode::Config) {
    config.catchup_entries = 1;
}

fn snapshots_received(member: &Member) -> usize {
    member.events.count(|event| matches!(event, NetworkEvent::SnapshotReceived { .. }))
}

fn received_files(member: &Member) -> usize {
    let found = |entry: &std::fs::DirEntry| entry.file_name() == "incoming";
    let mut dirs = vec![member.dir.path().to_path_buf()];
    let mut files = 0;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
            if found(&entry) {
                files += std::fs::read_dir(entry.path()).unwrap().count()
            } else {
                dirs.push(entry.path())
            }
        }
    }
    files
}

/// The put is not carried out anywhere, whichever member was asked, and what races with the compaction ends alike everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_11_a_range_at_a_compacted_revision_in_a_txn_is_refused_on_every_member() {
    let cluster = Cluster::start(|_, _| {}).await;
    let members = &cluster.0;
    revision(&members[0].propose(put("k", "old")).await);
    let newest = revision(&members[0].propose(put("k", "new")).await);
    assert!(members[0].propose(compact(newest)).await.result.is_ok());
    for member in members {
        let refused = member.propose(put_and_look_back("x", "k", newest - 1)).await;
        let expected = tally_mvcc::Rejection::Compacted { requested: newest - 1, compacted: newest };
        assert_eq!(refused.result, Err(Rejection::Kv(expected)));
        assert_eq!(refused.revision, newest, "nothing was written");
    }
    cluster.level().await;
    assert!(members.iter().all(|member| value(member, "x").is_none()));

    let (mut carried_out, mut refused) = (0, 0);
    for round in 0..40 {
        let asked = |at: usize| members[(round + at) % 3].node();
        let at = revision(&members[0].propose(put("k", &round.to_string())).await);
        let (first, second, third) = within("they race", async {
            tokio::join!(
                asked(0).propose(put_and_look_back("raced", "k", at - 1)),
                asked(1).propose(compact(at)),
                asked(2).propose(put_and_look_back("raced", "k", at - 1)),
            )
        })
        .await;
        assert!(second.unwrap().result.is_ok());
        for outcome in [first.unwrap(), third.unwrap()] {
            match outcome.result {
                Ok(_) => carried_out += 1,
                Err(Rejection::Kv(tally_mvcc::Rejection::Compacted { .. })) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        cluster.level().await;
    }
    assert_eq!(carried_out + refused, 80);
    // Every one that was carried out made one version, on every member.
    for member in members {
        let view = member.node().reads().kv().view();
        let range = KeyRange::single("raced".into()).unwrap();
        let found = view.range(&RangeRequest { range, revision: 0, options: RangeOptions::default() }).unwrap();
        assert_eq!(found.kvs.first().map_or(0, |kv| kv.version()), carried_out);
    }
    cluster.stop().await;
}

/// Rows 6 and 8 as well: what a member keeps in memory to refuse puts comes with the snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_13_alarms_and_snapshots_move_the_index_together() {
    let mut cluster = Cluster::start(short_log).await;
    let leader = cluster.leader().await;
    let behind = leader % 3 + 1;
    let behind_at = cluster.level().await.index;
    cluster.member_mut(behind).stop().await;
    let other = (1..=3).find(|id| *id != leader && *id != behind).unwrap();
    let leader = cluster.member(leader);

    revision(&leader.propose(put("k", "v")).await);
    // Everybody finds the store full at once, and writers go on.
    for round in 0..20 {
        let storm = [leader, cluster.member(other)].map(|member| async move {
            assert!(member.propose(no_space(AlarmAction::Activate, 1 + round % 3)).await.result.is_ok());
            assert!(is_refused_for_space(&member.propose(put("full", "v")).await));
        });
        futures_util::future::join_all(storm).await;
        if round % 5 == 4 {
            leader.node().snapshot().await.unwrap();
        }
    }
    // The last entry is an alarm: the durable index is its index all the same.
    leader.propose(no_space(AlarmAction::Activate, 1)).await;
    let alarmed = leader.applied().index;
    assert!(leader.node().snapshot().await.unwrap() >= alarmed);
    cluster.purge_beyond(leader.id, behind_at).await;
    let (leader, sent) = (leader.id, cluster.level().await);

    cluster.member_mut(behind).start().await;
    cluster.member(behind).wait_applied(sent.index).await;
    eventually("the snapshot is in force", || snapshots_received(cluster.member(behind)) > 0).await;
    for _ in 0..2 {
        let (member, level) = (cluster.member(behind), cluster.level().await);
        assert_eq!(member.node().reads().alarms(), cluster.member(leader).node().reads().alarms());
        assert!(member.node().reads().alarmed(AlarmKind::NoSpace));
        assert!(is_refused_for_space(&member.propose(put("full", "v")).await));
        assert!(cluster.level().await.index > level.index, "a refused put moves the index as well");
        // And once more from what is on its disk.
        let member = cluster.member_mut(behind);
        let before = member.applied();
        member.stop().await;
        member.start().await;
        member.wait_applied(before.index).await;
    }
    for id in 1..=3 {
        cluster.member(leader).propose(no_space(AlarmAction::Deactivate, id)).await;
    }
    for member in &cluster.0 {
        within("a member is ready", member.node().ready()).await.unwrap();
        revision(&member.propose(put("free", "v")).await);
    }
    cluster.level().await;
    cluster.stop().await;
}

/// Row 30 as well: members make snapshots of their own while they receive and install one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_33_two_snapshots_in_quick_succession() {
    let mut cluster = Cluster::start(short_log).await;
    let leader = cluster.leader().await;
    let behind = leader % 3 + 1;
    for round in 0..3 {
        let behind_at = cluster.level().await.index;
        cluster.member_mut(behind).stop().await;
        for number in 0..50 {
            revision(&cluster.member(leader).propose(put(&format!("k{number}"), &round.to_string())).await);
        }
        cluster.purge_beyond(leader, behind_at).await;
        cluster.member_mut(behind).start().await;
        let (from, to) = (cluster.member(leader), cluster.member(behind));
        eventually("a snapshot is sent", || {
            to.events.count(|event| matches!(event, NetworkEvent::SnapshotReceiveStarted { .. })) > round
        })
        .await;
        // The first snapshot is under way, or has just come in; these follow it on both sides.
        for number in 0..5 {
            let written = from.propose(put("again", &number.to_string()));
            let (written, first, second, third) =
                tokio::join!(written, from.node().snapshot(), from.node().snapshot(), to.node().snapshot());
            revision(&written);
            first.unwrap();
            second.unwrap();
            third.unwrap();
        }
        within("it serves", to.node().ready()).await.unwrap();
        eventually("the snapshot is in force", || snapshots_received(to) > round).await;
        cluster.level().await;
        assert_eq!(value(to, "again").as_deref(), Some("4"));
        assert_eq!(value(to, "k49"), Some(round.to_string()));
    }
    let level = cluster.level().await;
    for member in &mut cluster.0 {
        eventually("nothing is left of what was sent and received", || received_files(member) == 0).await;
        member.stop().await;
    }
    for member in &mut cluster.0 {
        member.start().await;
    }
    for member in &cluster.0 {
        within("it serves again", member.node().ready()).await.unwrap();
        assert_eq!(value(member, "again").as_deref(), Some("4"));
    }
    assert!(cluster.level().await.index > level.index);
    cluster.stop().await;
}

/// Row 56 as well: a list comes from the log alone, so that all members have the same one, before and after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_58_every_member_has_the_same_list_of_members() {
    let mut cluster = Cluster::start(short_log).await;
    let changed =
        |urls: &[&str]| MemberChange::Update { id: 2, peer_urls: urls.iter().map(|url| (*url).to_owned()).collect() };
    let own = cluster.member(2).node().members().iter().find(|member| member.id == 2).unwrap().peer_urls[0].clone();
    let learner = MemberChange::Add { id: 9, peer_urls: vec!["http://127.0.0.1:1".to_owned()], is_learner: true };
    for (asked, change) in
        [(1, learner), (3, changed(&[&own, "http://127.0.0.1:2"])), (2, MemberChange::Remove { id: 9 })]
    {
        within("a change", cluster.member(asked).node().change_members(change)).await.unwrap();
        cluster.level().await;
        let lists: Vec<_> = cluster.0.iter().map(|member| member.node().members()).collect();
        assert!(lists.windows(2).all(|pair| pair[0] == pair[1]), "{lists:?}");
    }
    let before = cluster.member(1).node().members();
    assert_eq!(before.iter().find(|member| member.id == 2).unwrap().peer_urls, [own, "http://127.0.0.1:2".to_owned()]);
    assert!(before.iter().all(|member| !member.is_learner && member.id != 9));
    for id in 1..=3 {
        cluster.member(id).node().snapshot().await.unwrap();
        let member = cluster.member_mut(id);
        member.stop().await;
        member.start().await;
        within("it serves again", member.node().ready()).await.unwrap();
        assert_eq!(member.node().members(), before);
    }
    cluster.stop().await;
}

/// An answer that comes after its question was given up must not be taken for the answer to a later question: the member
/// that asked lags behind a write that the later reader knows of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_62_a_late_read_index_answer_confirms_nothing() {
    let cluster = Cluster::start(|id, config| {
        if id == 3 {
            config.peer_read_timeout_ms = 300;
            config.request_timeout_ms = 1_000;
        }
    })
    .await;
    cluster.lead(1).await;
    let (leader, lagging) = (cluster.member(1), cluster.member(3));
    leader.propose(put("k", "old")).await;
    cluster.level().await;

    // It is asked, and its answer is held until nobody waits for it.
    leader.gates.answered.close();
    lagging.gates.entries.close();
    let held = leader.gates.answered.seen();
    let reading = lagging.node().read_barrier();
    leader.gates.answered.more_than(held).await;
    within("the read is given up", reading).await.unwrap_err();

    leader.propose(put("k", "new")).await;
    let written = leader.applied().index;
    let asked = leader.gates.asked.seen();
    let node = lagging.node().clone();
    let later = tokio::spawn(async move {
        loop {
            // On a machine that is slow enough it is given up as well; it must never be wrong.
            if let Ok(index) = node.read_barrier().await {
                return (index, node.reads().applied_index());
            }
        }
    });
    leader.gates.asked.more_than(asked).await;
    leader.gates.answered.open();
    // Answers keep their order: this one is behind all that were held.
    let nobody = async {
        while !matches!(
            lagging.node().change_members(MemberChange::Remove { id: 0x404 }).await,
            Err(MemberError::NotFound { id: 0x404 })
        ) {}
    };
    within("the held answers are in", nobody).await;
    assert!(lagging.applied().index < written, "it still lags, so that a wrong answer would be seen");
    lagging.gates.entries.open();
    let (confirmed, applied) = within("the later read", later).await.unwrap();
    assert!(confirmed >= written && applied >= written, "{confirmed} and {applied} do not cover the write {written}");
    assert_eq!(value(lagging, "k").as_deref(), Some("new"));
    cluster.stop().await;
}

/// A majority confirms the new leader by heartbeats at once, but it does not know yet what is committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_63_a_new_leader_serves_no_read_before_its_first_commit() {
    let cluster = Cluster::start(|_, _| {}).await;
    cluster.lead(1).await;
    cluster.member(1).propose(put("k", "v")).await;
    let before = cluster.level().await;
    for old in [1, 3] {
        cluster.member(old).gates.entries.close();
    }
    cluster.lead(2).await;
    let new = cluster.member(2);
    let rounds =
        || [1, 3].map(|id| new.events.count(|event| matches!(event, NetworkEvent::RoundTrip { to, .. } if *to == id)));
    let then = rounds();
    let readings = [tokio::spawn(new.node().read_barrier()), tokio::spawn(cluster.member(3).node().read_barrier())];
    eventually("both others have answered heartbeats that were sent since", || {
        rounds().iter().zip(then).all(|(now, then)| *now >= then + 2)
    })
    .await;
    assert!(readings.iter().all(|reading| !reading.is_finished()), "nothing of its term is committed");
    assert_eq!(new.applied(), before);
    for old in [1, 3] {
        cluster.member(old).gates.entries.open();
    }
    for reading in readings {
        let index = within("the read", reading).await.unwrap().unwrap();
        assert!(index > before.index, "the first entry of its term is not covered");
    }
    cluster.stop().await;
}

/// Row 20 without leases: what one command does to many keys is done in the same order everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_20_a_range_is_deleted_in_the_same_order_on_every_member() {
    let cluster = Cluster::start(|_, _| {}).await;
    let members = &cluster.0;
    for (at, number) in [7, 3, 9, 1, 8, 2].into_iter().enumerate() {
        members[at % 3].propose(put(&format!("k{number}"), "v")).await;
    }
    let deleted = members[1]
        .propose(encoded(&Command::DeleteRange(DeleteRequest { range: KeyRange::all(), prev_kv: true })))
        .await;
    let Ok(Reply::DeleteRange(reply)) = &deleted.result else { panic!("{deleted:?}") };
    let keys: Vec<&[u8]> = reply.prev_kvs.iter().map(|kv| kv.key()).collect();
    assert_eq!(keys, [b"k1", b"k2", b"k3", b"k7", b"k8", b"k9"]);
    cluster.level().await;
    cluster.stop().await;
}
