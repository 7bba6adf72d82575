//! A store on a temporary directory, and small helpers that the tests share.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

pub mod model;
pub mod watching;

use bytes::Bytes;
use tally_backend::{Applied, Backend, Config, Identity, WriteBatch};
use tally_mvcc::{
    CheckError, DeleteReply, DeleteRequest, KeyRange, Op, Options, PutReply, PutRequest, RangeOptions, RangeRequest,
    RangeResult, Reader, Rejection, SweepLimits, SweepProgress, TxnReply, TxnRequest, Writer, open,
};

/// A store with a batch that is open until `commit`.
pub struct Store {
    dir: tempfile::TempDir,
    pub backend: Backend,
    pub writer: Writer,
    pub reader: Reader,
    batch: Option<WriteBatch>,
    index: u64,
}

pub fn small_cache() -> Options {
    Options { record_cache_bytes: 1 << 20, ..Options::default() }
}

impl Store {
    pub fn new() -> Store {
        let dir = tempfile::tempdir().unwrap();
        let backend = Backend::open(Config::new(dir.path(), Identity::default())).unwrap();
        let (writer, reader) = open(&backend, small_cache()).unwrap();
        Store { dir, backend, writer, reader, batch: None, index: 0 }
    }

    pub fn put(&mut self, put: &PutRequest) -> Result<PutReply, Rejection> {
        self.writer.check_put(put).map_err(rejected)?;
        let batch = self.batch.get_or_insert_with(|| self.backend.batch());
        Ok(self.writer.put(put, batch).unwrap())
    }

    pub fn delete(&mut self, delete: &DeleteRequest) -> DeleteReply {
        let batch = self.batch.get_or_insert_with(|| self.backend.batch());
        self.writer.delete_range(delete, batch).unwrap()
    }

    pub fn txn(&mut self, txn: &TxnRequest) -> Result<TxnReply, Rejection> {
        let plan = self.writer.check(txn).map_err(rejected)?;
        let batch = self.batch.get_or_insert_with(|| self.backend.batch());
        Ok(self.writer.act(plan, txn, batch).unwrap())
    }

    pub fn compact(&mut self, revision: i64) -> Result<(), Rejection> {
        self.writer.check_compact(revision)?;
        let batch = self.batch.get_or_insert_with(|| self.backend.batch());
        self.writer.compact(revision, batch).unwrap();
        Ok(())
    }

    /// Commits and publishes what was staged.
    pub fn commit(&mut self) {
        let mut batch = self.batch.take().unwrap_or_else(|| self.backend.batch());
        self.writer.stage_meta(&mut batch);
        self.index += 1;
        let at = Applied { index: self.index, term: 1, root: self.writer.root(), ..Applied::default() };
        batch.commit(&at).unwrap();
        self.writer.publish();
    }

    /// Puts and commits.
    pub fn set(&mut self, key: &str, value: &str) -> i64 {
        let reply = self.put(&PutRequest::new(key.to_owned(), value.to_owned())).unwrap();
        self.commit();
        reply.revision
    }

    /// Deletes one key and commits.
    pub fn unset(&mut self, key: &str) -> i64 {
        let deleted = self.delete(&DeleteRequest { range: single(key), prev_kv: false });
        self.commit();
        deleted.revision
    }

    pub fn compact_now(&mut self, revision: i64) {
        self.compact(revision).unwrap();
        self.commit();
    }

    /// Opens the index anew from the backend. The record cache starts empty.
    pub fn reopen(&mut self) {
        self.commit();
        (self.writer, self.reader) = open(&self.backend, small_cache()).unwrap();
        assert_eq!(self.backend.applied().root, self.writer.root(), "the rebuilt root differs from the stored one");
    }

    /// Sweeps until done; returns how many records were deleted.
    pub fn sweep_all(&self) -> u64 {
        let mut all = 0;
        for _ in 0..100_000 {
            match self.reader.sweep(SweepLimits { records: 7, wait_for_views: true }).unwrap() {
                SweepProgress::Done => return all,
                SweepProgress::Waiting { epochs } => panic!("views of {epochs} epochs are in use"),
                SweepProgress::More { deleted, .. } => all += deleted,
            }
        }
        panic!("the sweep does not come to an end");
    }

    /// How many records the backend holds.
    pub fn records(&self) -> usize {
        let mut records = 0;
        self.backend
            .read()
            .for_each(tally_backend::Bucket::Kv, &[], None, |_, _| {
                records += 1;
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        records
    }

    pub fn get(&self, range: KeyRange, revision: i64) -> RangeResult {
        self.reader.view().range(&RangeRequest { range, revision, options: RangeOptions::default() }).unwrap()
    }

    pub fn keys(&self) -> Vec<String> {
        let found = self.get(KeyRange::all(), 0);
        found.kvs.iter().map(|record| String::from_utf8_lossy(record.key()).into_owned()).collect()
    }
}

pub fn rejected(error: CheckError) -> Rejection {
    match error {
        CheckError::Rejected(rejection) => rejection,
        other => panic!("{other:?}"),
    }
}

pub fn single(key: &str) -> KeyRange {
    KeyRange::single(Bytes::copy_from_slice(key.as_bytes())).unwrap()
}

pub fn between(key: &str, end: &str) -> KeyRange {
    KeyRange::new(Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(end.as_bytes())).unwrap()
}

pub fn put(key: &str, value: &str) -> Op {
    Op::Put(PutRequest::new(key.to_owned(), value.to_owned()))
}

pub fn delete(range: KeyRange) -> Op {
    Op::Delete(DeleteRequest { range, prev_kv: false })
}

pub fn get(range: KeyRange, revision: i64) -> Op {
    Op::Range(RangeRequest { range, revision, options: RangeOptions::default() })
}
