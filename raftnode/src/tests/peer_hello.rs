//! Who may take part: every verdict, in both directions, and what the one that is refused hears.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use openraft::network::RPCOption;
use openraft::raft::VoteRequest;
use openraft::{RaftNetworkFactory, RaftNetworkV2};

use super::super::frame::{Address, Kind};
use super::super::hello::{Hello, Verdict};
use super::super::serve;
use super::cluster::{applied, by_id, founded, write};
use super::{CLUSTER, Member, Raw, SOON, directory_of, eventually, hello, introduce, member};
use crate::peer::{CallError, Standing};
use crate::types::{Peer, RaftVote};

/// What a member answers to a Hello.
async fn answer(to: &Member, address: Address, hello: Hello) -> Result<Hello, Verdict> {
    let mut raw = Raw::open(&to.url, serve::CONTROL, hello.frame(address)).await;
    let frame = raw.next().await;
    match frame.kind {
        Kind::Hello => Ok(Hello::decode(frame.body).unwrap()),
        Kind::Reject => {
            assert!(raw.try_next().await.is_none(), "nothing follows a refusal");
            Err(Verdict::decode(frame.body).unwrap())
        }
        found => panic!("{found:?}"),
    }
}

#[tokio::test]
async fn a_member_is_greeted_and_others_are_refused_with_the_reason() {
    let two = member(2).await;
    let right = Address { cluster: CLUSTER, from: 1, to: 2 };
    let greeting = answer(&two, right, hello(1, 0)).await.unwrap();
    assert_eq!((greeting.directory, greeting.start_id), (directory_of(2), 102));

    let wrong = answer(&two, Address { cluster: 0xbad, ..right }, hello(1, 0)).await;
    assert_eq!(wrong, Err(Verdict::WrongCluster { cluster: CLUSTER }));
    let wrong = answer(&two, Address { to: 3, ..right }, hello(1, 0)).await;
    assert_eq!(wrong, Err(Verdict::WrongReceiver { member: 2 }));
    let wrong = answer(&two, Address { from: 2, ..right }, hello(1, 0)).await;
    assert_eq!(wrong, Err(Verdict::WrongReceiver { member: 2 }), "nobody speaks to itself over the network");

    let standing = |to| two.host.standing.lock().unwrap().insert(1, to);
    standing(Standing::Known { directory: None });
    answer(&two, right, hello(1, 0)).await.unwrap();
    standing(Standing::Known { directory: Some(directory_of(1)) });
    answer(&two, right, hello(1, 0)).await.unwrap();
    standing(Standing::Known { directory: Some([9; 16]) });
    assert_eq!(answer(&two, right, hello(1, 0)).await, Err(Verdict::DirectoryReplaced));
    standing(Standing::Removed);
    assert_eq!(answer(&two, right, hello(1, 0)).await, Err(Verdict::Removed));
}

#[tokio::test]
async fn a_program_of_another_version_is_told_which_one_is_spoken() {
    let two = member(2).await;
    let mut frame = BytesMut::from(&hello(1, 0).frame(Address { cluster: CLUSTER, from: 1, to: 2 })[..]);
    frame[4] = 9;
    frame[32..36].fill(0);
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    let mut digest = crc.digest();
    digest.update(&frame[..32]);
    digest.update(&frame[36..]);
    let sum = digest.finalize();
    frame[32..36].copy_from_slice(&sum.to_be_bytes());
    let mut raw = Raw::open(&two.url, serve::APPEND, frame.freeze()).await;
    let refusal = raw.next().await;
    assert_eq!(Verdict::decode(refusal.body).unwrap(), Verdict::Version { supported: 1 });
}

#[tokio::test]
async fn a_log_that_is_shorter_than_it_was_is_refused() {
    let two = member(2).await;
    let address = Address { cluster: CLUSTER, from: 1, to: 2 };
    answer(&two, address, Hello { applied: 40, ..hello(1, 50) }).await.unwrap();
    answer(&two, address, Hello { applied: 30, ..hello(1, 40) }).await.unwrap();
    // Said before, and heard after, what the same process has acknowledged meanwhile: nothing is lost.
    answer(&two, address, Hello { applied: 20, ..hello(1, 39) }).await.unwrap();
    let restarted = Hello { applied: 20, start_id: 999, ..hello(1, 39) };
    assert_eq!(answer(&two, address, restarted).await, Err(Verdict::Behind { acked: 40, found: 39 }));
    // Nobody is believed who may not take part.
    two.host.standing.lock().unwrap().insert(3, Standing::Removed);
    let other = Address { from: 3, ..address };
    answer(&two, other, Hello { applied: 1_000, ..hello(3, 1_000) }).await.unwrap_err();
    two.host.standing.lock().unwrap().remove(&3);
    answer(&two, other, hello(3, 5)).await.unwrap();
}

async fn asks_for_a_vote(from: &Member, to: &Member) -> bool {
    let mut transport = from.net.transport();
    let mut link = transport.new_client(to.id, &Peer { urls: vec![to.url.clone()] }).await;
    let request = VoteRequest::new(RaftVote::new(1, from.id), None);
    let pre = link.pre_vote(request.clone(), RPCOption::new(SOON)).await;
    let vote = link.vote(request, RPCOption::new(SOON)).await;
    assert_eq!(pre.is_ok(), vote.is_ok());
    vote.is_ok()
}

#[tokio::test]
async fn the_vote_of_a_replaced_directory_is_not_counted_and_it_is_told_why() {
    let (one, mut two) = (member(1).await, member(2).await);
    introduce(&[&one, &two]);
    one.host.standing.lock().unwrap().insert(2, Standing::Known { directory: Some([9; 16]) });
    assert!(!asks_for_a_vote(&one, &two).await, "whatever it would have answered");
    assert_eq!(two.told.recv().await, Some((Verdict::DirectoryReplaced, 1)));
    assert!(matches!(one.net.read_index(2).await, Err(CallError::NotSent { .. })));
}

#[tokio::test]
async fn a_replaced_directory_gets_no_vote_and_is_told_why() {
    let (mut one, two) = (member(1).await, member(2).await);
    introduce(&[&one, &two]);
    two.host.standing.lock().unwrap().insert(1, Standing::Known { directory: Some([9; 16]) });
    assert!(!asks_for_a_vote(&one, &two).await);
    assert_eq!(one.told.recv().await, Some((Verdict::DirectoryReplaced, 2)));
}

#[tokio::test]
async fn a_member_that_is_removed_while_a_channel_is_open_gets_no_vote_over_it() {
    let (mut one, two) = (member(1).await, member(2).await);
    introduce(&[&one, &two]);
    assert!(asks_for_a_vote(&one, &two).await);
    two.host.standing.lock().unwrap().insert(1, Standing::Removed);
    assert!(!asks_for_a_vote(&one, &two).await);
    assert_eq!(one.told.recv().await, Some((Verdict::Removed, 2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_follower_has_acknowledged_it_must_never_lack_again() {
    let (one, two) = (member(1).await, member(2).await);
    let members = [&one, &two];
    let leads = founded(&members).await;
    let (leader, follower) = (by_id(&members, leads), by_id(&members, 3 - leads));
    let last = write(leader, 30).await;
    applied(follower, last).await;
    // Its acknowledgement of the newest commit index may still be on its way.
    let known = leader.net.peer(follower.id);
    eventually("the leader knows what the follower keeps", || known.kept() > last).await;
    // The same directory UUID, but the log of half an hour ago.
    let address = Address { cluster: CLUSTER, from: follower.id, to: leader.id };
    let restarted = Hello { start_id: 999, ..hello(follower.id, 10) };
    let refused = answer(leader, address, restarted).await;
    assert!(matches!(refused, Err(Verdict::Behind { acked, found: 10 }) if acked > last), "{refused:?}");
    // And the other way round: the leader would not speak to it either.
    follower.host.log_cut.store(20, Ordering::Relaxed);
    assert!(known.admits(999, Duration::ZERO), "as if what it acknowledged had been said by an earlier process");
    let Err(error) = leader.net.open_forward(follower.id).await else { panic!("it is refused") };
    assert!(error.to_string().contains("an older copy of its data directory"), "{error}");
}

#[test]
fn two_processes_with_copies_of_one_directory_are_not_both_believed() {
    let peer = super::super::peers::Peer::new(2, None);
    let window = Duration::from_secs(3_600);
    assert!(peer.admits(1, window), "the first that speaks");
    assert!(peer.admits(2, window), "nothing but its greeting has come from the first");
    peer.heard(1);
    assert!(!peer.admits(1, window), "the second is alive");
    assert!(peer.admits(2, window));
    assert!(peer.admits(1, Duration::ZERO), "the second has been silent for long enough");
}
