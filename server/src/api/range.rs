//! How a range is read: small answers at once and in place, large ones in pieces, and whatever costs more than it answers
//! (old revisions, filters, sorting) away from the threads that serve everybody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tally_mvcc::{RangeRequest, Scan, SortOrder, SortTarget, View};
use tokio::time::timeout;

use crate::api::Answer;
use crate::api::state::State;
use crate::api::stream::{self, Pieces, SLOW_PIECE};
use crate::error::{ApiError, Effect};
use crate::wire::{RangeWriter, response};

/// Up to this limit a range is read in one go.
pub(crate) const SMALL_LIMIT: i64 = 128;
/// Records in an answer that is still built in memory as a whole; bytes of its JSON likewise.
const WHOLE_RECORDS_MAX: usize = 1_000;
const WHOLE_BYTES_MAX: usize = 1024 * 1024;
/// Work that others do not notice waiting for.
const UNNOTICED: Duration = Duration::from_micros(100);
/// Stores of up to so many keys may be walked in place, whatever is asked.
const WALK_KEYS_MAX: u64 = 1_000;
/// How often a read starts anew because the sweep overtook it.
const READ_ATTEMPTS: usize = 3;

/// Answers a range from the newest state that this member has applied.
pub(crate) async fn answer(state: &State, request: RangeRequest) -> Result<Answer, ApiError> {
    let mut attempt = 1;
    loop {
        let view = state.reads().kv().view();
        let result = match is_cheap(&view, &request) {
            true if is_small(&request) => small(state, &view, &request),
            true => match view.scan(&request) {
                Ok(scan) => large(state, scan).await,
                Err(error) => Err(error.into()),
            },
            false => {
                let request = request.clone();
                match blocking(state, move || Ok(view.scan(&request)?)).await {
                    Ok(scan) => large(state, scan).await,
                    Err(error) => Err(error),
                }
            }
        };
        match result {
            Err(ApiError::ViewOvertaken) if attempt < READ_ATTEMPTS => attempt += 1,
            answer => return answer,
        }
    }
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

fn small(state: &State, view: &View, request: &RangeRequest) -> Result<Answer, ApiError> {
    let result = view.range(request)?;
    Ok(Answer::Whole(response::range(&state.header(result.revision), &result)))
}

/// Builds an answer that may be large, in pieces between which others run; beyond a bound the rest is sent as it is made.
async fn large(state: &State, mut scan: Scan) -> Result<Answer, ApiError> {
    let header = state.header(scan.revision());
    let mut writer = RangeWriter::new(&header);
    let (mut records, mut worked) = (0, Duration::ZERO);
    loop {
        let started = Instant::now();
        let (rest, piece) = stream::read(scan, worked > SLOW_PIECE).await?;
        scan = rest;
        let Some(piece) = piece? else { return Ok(Answer::Whole(writer.finish(scan.more(), scan.count()))) };
        writer.extend(&piece);
        records += piece.len();
        if records > WHOLE_RECORDS_MAX || writer.len() > WHOLE_BYTES_MAX {
            let permit = Arc::clone(&state.streams).try_acquire_owned().map_err(|_| ApiError::TooManyRequests)?;
            return Ok(Answer::Pieces(Pieces::new(scan, writer, state.metrics.sent_bytes(), permit)));
        }
        worked += started.elapsed();
        if worked > UNNOTICED {
            stream::let_others_run(worked).await;
            worked = Duration::ZERO;
        }
    }
}

/// Runs a read that may take long on a thread that may block. So many run at a time; others wait, but not for ever.
pub(crate) async fn blocking<T: Send + 'static>(
    state: &State,
    read: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let permit = timeout(state.request_timeout, Arc::clone(&state.heavy_reads).acquire_owned())
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
