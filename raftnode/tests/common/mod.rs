//! What the tests of this crate share: a data directory, storage options, puts, and reading everything back.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tally_apply::{Command, Outcome, Reads, Reply};
use tally_mvcc::{KeyRange, PutRequest, RangeOptions, RangeRequest};
use tally_raftnode::{Config, EncodedCommand, Founder, Node, Storage, StorageOptions, open_storage};

pub(crate) const CLUSTER: u64 = 0xc1;
pub(crate) const MEMBER: u64 = 0xa1;
pub(crate) const UUID: [u8; 16] = [7; 16];

pub(crate) fn options(dir: &Path) -> StorageOptions {
    let mut options = StorageOptions::new(dir, CLUSTER, MEMBER, UUID);
    options.wal.segment_bytes = 1 << 20;
    options.backend.memtable_bytes = 4 << 20;
    options
}

pub(crate) fn config() -> Config {
    Config {
        cluster_id: CLUSTER,
        member_id: MEMBER,
        founders: vec![Founder { id: MEMBER, peer_urls: vec!["http://127.0.0.1:2380".to_owned()] }],
        ..Config::default()
    }
}

pub(crate) fn storage(dir: &Path) -> Storage {
    open_storage(options(dir)).unwrap()
}

pub(crate) async fn started(dir: &Path, config: Config) -> Node {
    let node = Node::start(config, storage(dir)).await.unwrap();
    node.ready().await.unwrap();
    node
}

/// Ends a node as a stopped process would, and waits until its directory is free.
pub(crate) async fn stopped(node: Node) {
    node.shutdown().await.unwrap();
}

pub(crate) fn put(key: &str, value: &str) -> EncodedCommand {
    let put = PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..PutRequest::default()
    };
    EncodedCommand::encode(&Command::Put(put))
}

/// The revision of a put that was carried out.
pub(crate) fn revision(outcome: &Outcome) -> i64 {
    assert!(matches!(outcome.result, Ok(Reply::Put(_))), "{outcome:?}");
    outcome.revision
}

/// Every key with its value and the revision it was written at.
pub(crate) fn all(reads: &Reads) -> Vec<(String, String, i64)> {
    let range = RangeRequest { range: KeyRange::all(), revision: 0, options: RangeOptions::default() };
    let result = reads.kv().view().range(&range).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    result.kvs.iter().map(|kv| (text(kv.key()), text(kv.value()), kv.mod_revision())).collect()
}

/// Proposes `count` puts at once, `key(i)` each, and returns their revisions by number.
pub(crate) async fn put_many(node: &Node, keys: impl Fn(u64) -> String, count: u64) -> Vec<i64> {
    let node = Arc::new(node.clone());
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..count {
        let (node, command) = (Arc::clone(&node), put(&keys(number), "value"));
        tasks.spawn(async move { (number, revision(&node.propose(command).await.unwrap())) });
    }
    let mut revisions = vec![0; count as usize];
    while let Some(done) = tasks.join_next().await {
        let (number, revision) = done.unwrap();
        revisions[number as usize] = revision;
    }
    revisions
}
