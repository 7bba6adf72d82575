//! How a range is read: small answers at once and in place, large ones in pieces, and whatever costs more than it answers
//! (old revisions, filters, sorting) away from the threads that serve everybody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tally_mvcc::{RangeRequest, RangeResult, Scan, SortOrder, SortTarget, View};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::api::state::State;
use crate::api::stream::{self, PIECE_BYTES, PIECE_RECORDS, SLOW_PIECE};
use crate::error::{ApiError, Effect};

/// Up to this limit a range is read in one go.
pub(crate) const SMALL_LIMIT: i64 = 128;
/// Records in an answer that is still built in memory as a whole; bytes of records likewise.
const WHOLE_RECORDS_MAX: usize = 1_000;
const WHOLE_BYTES_MAX: usize = 512 * 1024;
/// The longest message that is sent, as in etcd, and the most that the ranges of a transaction are read.
pub(crate) const ANSWER_BYTES_MAX: usize = tally_apply::ANSWER_BYTES_MAX;
/// Work that others do not notice waiting for.
const UNNOTICED: Duration = Duration::from_micros(100);
/// Stores of up to so many keys may be walked in place, whatever is asked.
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

/// Answers a range from the newest state that this member has applied, however large the answer is.
pub(crate) async fn whole(state: &State, request: &RangeRequest) -> Result<Whole, ApiError> {
    let mut attempt = 1;
    loop {
        let begun = begin_once(state, request).await;
        let answer = match begun {
            Ok(Begun { result, rest: None }) => return Ok(Whole { result, permit: None }),
            Ok(Begun { mut result, rest: Some(Unread { scan, permit }) }) => {
                let read = Box::pin(gather(state, scan, &mut result, usize::MAX, usize::MAX)).await;
                read.map(|_| Whole { result, permit: Some(permit) })
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
        return Ok(view.scan(request)?);
    }
    let request = request.clone();
    blocking(state, move || Ok(view.scan(&request)?)).await
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
        || view.keys_live() <= WALK_KEYS_MAX
        || ((request.revision <= 0 || request.revision >= view.revision())
            && (is_plain(request) || request.options.count_only))
}

fn is_small(request: &RangeRequest) -> bool {
    request.range.is_single() || request.options.count_only || (1..=SMALL_LIMIT).contains(&request.options.limit)
}

/// Reads what may be large, up to a bound.
async fn large(state: &State, scan: Scan) -> Result<Begun, ApiError> {
    let mut result = RangeResult { kvs: Vec::new(), more: scan.more(), count: scan.count(), revision: scan.revision() };
    let rest = match gather(state, scan, &mut result, WHOLE_RECORDS_MAX, WHOLE_BYTES_MAX).await? {
        Some(scan) => Some(Unread { scan, permit: permit(state)? }),
        None => None,
    };
    Ok(Begun { result, rest })
}

/// Reads records in pieces, between which others run, until there are more than so many: then the rest is given back.
async fn gather(
    state: &State,
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
        bytes += piece.iter().map(|record| record.bytes().len()).sum::<usize>();
        result.kvs.extend(piece);
        if result.kvs.len() > records_max || bytes > bytes_max {
            return Ok(Some(scan));
        }
        worked += started.elapsed();
        if worked > UNNOTICED {
            state.others.run(worked).await;
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
