//! How a range is read: small answers at once and in place, large ones in pieces, and whatever costs more than it answers
//! (old revisions, filters, sorting) away from the threads that serve everybody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tally_mvcc::{RangeRequest, RangeResult, Record, Scan, SortOrder, SortTarget, View};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::api::state::State;
use crate::api::stream::{self, Others, PIECE_BYTES, PIECE_RECORDS, SLOW_PIECE};
use crate::error::{ApiError, Effect};
use crate::grpc::ProtocolError;

/// Up to this limit a range is read in one go.
pub(crate) const SMALL_LIMIT: i64 = 128;
/// Records in an answer that is still built in memory as a whole; bytes of records likewise.
const WHOLE_RECORDS_MAX: usize = 1_000;
const WHOLE_BYTES_MAX: usize = 512 * 1024;
/// The longest message that is sent, as in etcd, and the most records, in bytes, that are held for one answer.
pub(crate) const ANSWER_BYTES_MAX: usize = tally_apply::ANSWER_BYTES_MAX;
/// Work that others do not notice waiting for.
const UNNOTICED: Duration = Duration::from_micros(100);
/// Stores of up to so many keys, deleted ones included, may be walked in place, whatever is asked.
const WALK_KEYS_MAX: u64 = 1_000;
/// How often a read starts anew because the sweep overtook it.
const READ_ATTEMPTS: usize = 3;

/// An answer, or the beginning of one that is large.
pub(crate) struct Begun {
    /// All of it if nothing is left, else with the first records.
    pub(crate) result: RangeResult,
    pub(crate) rest: Option<Unread>,
}

/// What is left to be read of a large answer.
pub(crate) struct Unread {
    pub(crate) scan: Scan,
    /// The right to keep a view of the store for as long as it takes.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// A whole answer.
pub(crate) struct Whole {
    pub(crate) result: RangeResult,
    /// Held by a large answer until it has been sent.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// Answers a range from the newest state that this member has applied; of a large answer only the beginning.
pub(crate) async fn begin(state: &State, request: &RangeRequest) -> Result<Begun, ApiError> {
    let mut attempt = 1;
    loop {
        match begin_once(state, request).await {
            Err(ApiError::ViewOvertaken) if attempt < READ_ATTEMPTS => attempt += 1,
            answer => return answer,
        }
    }
}

/// Answers a range from the newest state that this member has applied, as long as the answer may be sent.
pub(crate) async fn whole(state: &State, request: &RangeRequest) -> Result<Whole, ApiError> {
    let mut attempt = 1;
    loop {
        let begun = begin_once(state, request).await;
        let answer = match begun {
            Ok(Begun { result, rest: None }) => return Ok(Whole { result, permit: None }),
            Ok(Begun { result, rest: Some(Unread { scan, permit }) }) => {
                let read = Box::pin(finish(&state.others, scan, result, ANSWER_BYTES_MAX)).await;
                read.map(|result| Whole { result, permit: Some(permit) })
            }
            Err(error) => Err(error),
        };
        match answer {
            Err(ApiError::ViewOvertaken) if attempt < READ_ATTEMPTS => attempt += 1,
            answer => return answer,
        }
    }
}

/// A range to be read in pieces from the newest state that this member has applied.
pub(crate) async fn scan(state: &State, request: &RangeRequest) -> Result<Unread, ApiError> {
    let scan = open(state, state.reads().kv().view(), request).await?;
    Ok(Unread { scan, permit: permit(state)? })
}

async fn begin_once(state: &State, request: &RangeRequest) -> Result<Begun, ApiError> {
    let view = state.reads().kv().view();
    if is_cheap(&view, request) && is_small(request) {
        return Ok(Begun { result: view.range(request)?, rest: None });
    }
    // What few requests need is not part of every request's future.
    Box::pin(async { large(state, open(state, view, request).await?).await }).await
}

async fn open(state: &State, view: View, request: &RangeRequest) -> Result<Scan, ApiError> {
    if is_cheap(&view, request) {
        return begin_scan(&view, request);
    }
    let request = request.clone();
    blocking(state, move || begin_scan(&view, &request)).await
}

/// A scan, unless it had to begin with more in memory than may be sent: all that is sorted by its values.
fn begin_scan(view: &View, request: &RangeRequest) -> Result<Scan, ApiError> {
    let scan = view.scan_within(request, ANSWER_BYTES_MAX)?;
    scan.ok_or_else(|| too_large(ANSWER_BYTES_MAX.saturating_add(1), ANSWER_BYTES_MAX))
}

/// What hears who asks for more than may be sent: so many bytes at least.
fn too_large(bytes: usize, limit: usize) -> ApiError {
    ProtocolError::AnswerTooLarge { bytes, limit }.into()
}

/// Bytes of records, encoded as they are in every answer over gRPC.
pub(crate) fn record_bytes(records: &[Record]) -> usize {
    records.iter().map(|record| record.bytes().len()).sum()
}

/// The right to keep a view while a client takes a large answer; so many have it at a time.
fn permit(state: &State) -> Result<OwnedSemaphorePermit, ApiError> {
    Arc::clone(&state.streams).try_acquire_owned().map_err(|_| ApiError::TooManyRequests)
}

/// True if the range is in key order and unfiltered, so that it costs what it answers.
pub(crate) fn is_plain(request: &RangeRequest) -> bool {
    let options = &request.options;
    let filters =
        [options.min_mod_revision, options.max_mod_revision, options.min_create_revision, options.max_create_revision];
    filters == [0; 4] && options.sort_target == SortTarget::Key && options.sort_order != SortOrder::Descend
}

/// True if beginning the answer costs no more than a few microseconds.
fn is_cheap(view: &View, request: &RangeRequest) -> bool {
    request.range.is_single()
        || view.keys_known() <= WALK_KEYS_MAX
        || ((request.revision <= 0 || request.revision >= view.revision())
            && (is_plain(request) || request.options.count_only))
}

fn is_small(request: &RangeRequest) -> bool {
    let options = &request.options;
    // In the order of their values all have to be read, however few are answered.
    let few = (1..=SMALL_LIMIT).contains(&options.limit) && options.sort_target != SortTarget::Value;
    request.range.is_single() || options.count_only || few
}

/// Reads what may be large, up to a bound.
async fn large(state: &State, scan: Scan) -> Result<Begun, ApiError> {
    let mut result = RangeResult { kvs: Vec::new(), more: scan.more(), count: scan.count(), revision: scan.revision() };
    let rest = match gather(&state.others, scan, &mut result, WHOLE_RECORDS_MAX, WHOLE_BYTES_MAX).await? {
        Some(scan) => Some(Unread { scan, permit: permit(state)? }),
        None => None,
    };
    Ok(Begun { result, rest })
}

/// Reads the rest of an answer that has begun, as long as all of it has no more than so many bytes of records.
///
/// # Errors
/// [`ProtocolError::AnswerTooLarge`] as soon as it has more: what comes after is not read.
async fn finish(
    others: &Others,
    scan: Scan,
    mut result: RangeResult,
    bytes_max: usize,
) -> Result<RangeResult, ApiError> {
    let left = bytes_max.saturating_sub(record_bytes(&result.kvs));
    let rest = gather(others, scan, &mut result, usize::MAX, left).await?;
    if rest.is_none() { Ok(result) } else { Err(too_large(record_bytes(&result.kvs), bytes_max)) }
}

/// Reads records in pieces, between which others run, until it has read more than so many bytes of them, or the result
/// has more than so many of them: then the rest is given back.
async fn gather(
    others: &Others,
    mut scan: Scan,
    result: &mut RangeResult,
    records_max: usize,
    bytes_max: usize,
) -> Result<Option<Scan>, ApiError> {
    let (mut bytes, mut worked) = (0, Duration::ZERO);
    loop {
        let started = Instant::now();
        let (rest, piece) = stream::read(scan, PIECE_RECORDS, PIECE_BYTES, worked > SLOW_PIECE).await?;
        scan = rest;
        let Some(piece) = piece? else { return Ok(None) };
        bytes += record_bytes(&piece);
        result.kvs.extend(piece);
        if result.kvs.len() > records_max || bytes > bytes_max {
            return Ok(Some(scan));
        }
        worked += started.elapsed();
        if worked > UNNOTICED {
            others.run(worked).await;
            worked = Duration::ZERO;
        }
    }
}

/// Runs a read that may take long on a thread that may block. So many run at a time; others wait, but not for ever.
pub(crate) async fn blocking<T: Send + 'static>(
    state: &State,
    read: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    blocking_in_turn(state, &state.heavy_reads, read).await
}

/// The same for work that has turns of its own.
pub(crate) async fn blocking_in_turn<T: Send + 'static>(
    state: &State,
    turns: &Arc<Semaphore>,
    read: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let permit = timeout(state.request_timeout, Arc::clone(turns).acquire_owned())
        .await
        .map_err(|_| ApiError::TooManyRequests)?
        .map_err(|_| ApiError::Stopped(Effect::None))?;
    let read = move || {
        // Held by the work, not by whoever waits for it: a client that goes does not make room for another read.
        let _permit = permit;
        read()
    };
    tokio::task::spawn_blocking(read).await.map_err(|_| ApiError::Defect { what: "a read panicked" })?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tally_backend::{Applied, Backend, Config, Identity};
    use tally_mvcc::{KeyRange, Options, PutRequest, open};

    use super::*;

    const RECORDS: usize = 1_000;

    /// A view of a store with so many records of some hundred bytes.
    fn filled() -> (tempfile::TempDir, View) {
        let directory = tempfile::tempdir().unwrap();
        let backend = Backend::open(Config::new(directory.path(), Identity::default())).unwrap();
        let (mut writer, reader) = open(&backend, Options::default()).unwrap();
        let mut batch = backend.batch();
        for number in 0..RECORDS {
            writer.put(&PutRequest::new(format!("{number:04}"), vec![b'v'; 500]), &mut batch).unwrap();
        }
        writer.stage_meta(&mut batch);
        let at = Applied { index: 1, term: 1, root: writer.root(), ..Applied::default() };
        batch.commit(&at).unwrap();
        writer.publish();
        (directory, reader.view())
    }

    /// A range over all of it whose first records have been read; they count, too.
    async fn begun(others: &Others, view: &View) -> (Scan, RangeResult) {
        let scan = view.scan(&RangeRequest::latest(KeyRange::all())).unwrap();
        let mut result = RangeResult::default();
        let rest = gather(others, scan, &mut result, 100, usize::MAX).await.unwrap().unwrap();
        assert!((101..RECORDS).contains(&result.kvs.len()), "{}", result.kvs.len());
        (rest, result)
    }

    #[tokio::test]
    async fn an_answer_that_is_too_large_is_read_until_it_is() {
        let (_directory, view) = filled();
        let others = Others::here();
        let bytes = record_bytes(&view.range(&RangeRequest::latest(KeyRange::all())).unwrap().kvs);
        let (rest, result) = begun(&others, &view).await;
        assert_eq!(finish(&others, rest, result, bytes).await.unwrap().kvs.len(), RECORDS);
        for limit in [bytes - 1, bytes / 2] {
            let (rest, result) = begun(&others, &view).await;
            match finish(&others, rest, result, limit).await {
                Err(ApiError::Grpc(ProtocolError::AnswerTooLarge { bytes: read, limit: told })) => {
                    assert_eq!(told, limit);
                    // No more than a piece beyond the limit.
                    assert!(read > limit && read <= (limit + PIECE_BYTES + 16 * 1_024).min(bytes), "{read} of {bytes}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn few_records_are_little_to_read_but_in_the_order_of_their_values() {
        let asks = |change: fn(&mut RangeRequest)| {
            let mut request = RangeRequest::latest(KeyRange::all());
            request.options.limit = 1;
            change(&mut request);
            is_small(&request)
        };
        assert!(asks(|_| {}));
        assert!(asks(|request| request.options.limit = SMALL_LIMIT));
        assert!(!asks(|request| request.options.limit = SMALL_LIMIT + 1));
        assert!(!asks(|request| request.options.sort_target = SortTarget::Value));
    }
}
