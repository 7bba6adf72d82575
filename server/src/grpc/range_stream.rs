//! `RangeStream` of etcd 3.7: a range in chunks, all from one state of the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{once, try_unfold};
use tally_mvcc::{Record, Scan, SortOrder, SortTarget};
use tokio::sync::OwnedSemaphorePermit;

use crate::api::stream::{SLOW_PIECE, read};
use crate::api::{State, Unread, kv};
use crate::error::ApiError;
use crate::grpc::error::ProtocolError;
use crate::grpc::reply::Answers;
use crate::grpc::write;
use crate::proto::etcdserverpb as pb;
use crate::wire;
use crate::wire::RangeMessage;

/// Records in the first chunk.
const FIRST_CHUNK_RECORDS: usize = 10;

pub(super) async fn answers(state: &Arc<State>, request: pb::RangeRequest) -> Result<Answers, ApiError> {
    let message = RangeMessage::from(request);
    refuse_unsupported(&message)?;
    let count_only = message.count_only;
    let Unread { scan, permit } = kv::scan(state, message).await?;
    if count_only {
        let last = Some((&state.header(scan.revision()), false, scan.count()));
        let chunk = write::range_chunk(&[], last)?;
        return Ok(Box::pin(once(async { Ok(chunk) })));
    }
    let chunks = Chunks {
        state: Arc::clone(state),
        next: Some((scan, Vec::new())),
        records: FIRST_CHUNK_RECORDS,
        worked: Duration::ZERO,
        _permit: permit,
    };
    Ok(Box::pin(try_unfold(chunks, Chunks::next)))
}

/// As in etcd, a range that is not sent in the order in which it is read is not streamed.
fn refuse_unsupported(message: &RangeMessage) -> Result<(), ApiError> {
    let options = wire::range(message.clone())?.options;
    if options.sort_order == SortOrder::Descend
        || (options.sort_order == SortOrder::Ascend && options.sort_target != SortTarget::Key)
    {
        return Err(ProtocolError::StreamSorted.into());
    }
    let filters =
        [options.min_mod_revision, options.max_mod_revision, options.min_create_revision, options.max_create_revision];
    if filters == [0; 4] { Ok(()) } else { Err(ProtocolError::StreamFiltered.into()) }
}

/// Makes the chunks, one ahead: the last one must know that it is.
struct Chunks {
    state: Arc<State>,
    /// What is left, and the records of the next chunk; `None` at the end.
    next: Option<(Scan, Vec<Record>)>,
    /// Records in the next chunk.
    records: usize,
    /// How long the last chunk took.
    worked: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Chunks {
    async fn next(mut self) -> Result<Option<(Bytes, Chunks)>, ApiError> {
        let Some((mut scan, mut chunk)) = self.next.take() else { return Ok(None) };
        loop {
            self.state.others.run(self.worked).await;
            let started = Instant::now();
            let bytes_max = self.state.request_bytes_max.saturating_mul(2);
            let (rest, piece) = read(scan, self.records, bytes_max, self.worked > SLOW_PIECE).await?;
            self.worked = started.elapsed();
            scan = rest;
            let Some(piece) = piece? else {
                let header = self.state.header(scan.revision());
                let last = write::range_chunk(&chunk, Some((&header, scan.more(), scan.count())))?;
                return Ok(Some((last, self)));
            };
            let full = std::mem::replace(&mut chunk, piece);
            let chunk_bytes = chunk.iter().map(|record| record.bytes().len()).sum();
            self.records = adjusted(self.records, chunk_bytes, self.state.request_bytes_max);
            if !full.is_empty() {
                self.next = Some((scan, chunk));
                return Ok(Some((write::range_chunk(&full, None)?, self)));
            }
        }
    }
}

/// How many records the next chunk has, after one of so many bytes: near the size wanted, but without swinging around it.
fn adjusted(records: usize, bytes: usize, wanted: usize) -> usize {
    if bytes < wanted / 2 {
        records.saturating_mul(2)
    } else if bytes / 2 > wanted {
        (records / 2).max(1)
    } else {
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_and_shrink_toward_the_size_wanted() {
        assert_eq!(adjusted(10, 0, 1_000), 20);
        assert_eq!(adjusted(10, 499, 1_000), 20);
        assert_eq!(adjusted(10, 500, 1_000), 10);
        assert_eq!(adjusted(10, 2_001, 1_000), 10);
        assert_eq!(adjusted(10, 2_002, 1_000), 5);
        assert_eq!(adjusted(1, 9_000, 1_000), 1);
    }
}
