//! A large answer, made piece by piece as the client takes it.
//!
//! There is no task and no channel: hyper asks for the next piece when there is room for it, so a slow client costs one
//! piece and one view. Pieces are read on the thread that serves the connection, each within a fraction of a millisecond,
//! and between two pieces everybody else goes first, there and at home ([`Others`]): so a list of a million keys is not felt
//! by a small put. Where a piece turns out to take long, because it comes from the disk, the next ones are read on a thread
//! that may block.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use prometheus::IntCounter;
use tally_mvcc::{ReadError, Record, Scan};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use crate::error::ApiError;
use crate::wire::RangeWriter;

/// Records in a piece; bytes of records likewise.
pub(crate) const PIECE_RECORDS: usize = 64;
pub(crate) const PIECE_BYTES: usize = 64 * 1024;
/// A piece that took longer than this came from the disk.
pub(crate) const SLOW_PIECE: Duration = Duration::from_millis(1);
/// After a piece, others get this many times its duration if they want it.
const OTHERS_SHARE: u32 = 8;
/// A yield that came back sooner found nobody waiting.
const IDLE_YIELD: Duration = Duration::from_micros(20);

type Next = Pin<Box<dyn Future<Output = (Producer, Result<Bytes, ApiError>)> + Send>>;

/// The body of a large answer.
pub(crate) struct Pieces {
    next: Option<Next>,
    sent_bytes: IntCounter,
    _permit: OwnedSemaphorePermit,
}

/// What makes the pieces. It has no scan any more once the last piece is made.
struct Producer {
    scan: Option<Scan>,
    writer: Option<RangeWriter>,
    others: Others,
    /// How long the last piece took.
    worked: Duration,
}

impl Pieces {
    /// Goes on with `scan` after what stands in `writer` already.
    pub(crate) fn new(
        scan: Scan,
        writer: RangeWriter,
        others: Others,
        sent_bytes: IntCounter,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let producer = Producer { scan: Some(scan), writer: Some(writer), others, worked: Duration::ZERO };
        Self { next: Some(Box::pin(producer.next())), sent_bytes, _permit: permit }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = ApiError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ApiError>>> {
        let Some(next) = &mut self.next else { return Poll::Ready(None) };
        let Poll::Ready((producer, piece)) = next.as_mut().poll(context) else { return Poll::Pending };
        // After an error nothing more comes; hyper then breaks the connection, so the client knows the answer is cut.
        self.next = (piece.is_ok() && producer.scan.is_some()).then(|| Box::pin(producer.next()) as Next);
        Poll::Ready(Some(piece.map(|piece| {
            self.sent_bytes.inc_by(piece.len() as u64);
            Frame::data(piece)
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none()
    }
}

impl Producer {
    /// Lets others run, then makes the next piece.
    async fn next(mut self) -> (Self, Result<Bytes, ApiError>) {
        self.others.run(self.worked).await;
        let (Some(scan), Some(mut writer)) = (self.scan.take(), self.writer.take()) else {
            return (self, Err(ApiError::Defect { what: "a stream went on after its end" }));
        };
        let started = Instant::now();
        let (scan, piece) = match read(scan, PIECE_RECORDS, PIECE_BYTES, self.worked > SLOW_PIECE).await {
            Ok(read) => read,
            Err(error) => return (self, Err(error)),
        };
        let bytes = match piece {
            Ok(Some(records)) => {
                writer.extend(&records);
                let bytes = writer.take();
                self.scan = Some(scan);
                self.writer = Some(writer);
                bytes
            }
            Ok(None) => writer.finish(scan.more(), scan.count()),
            Err(error) => return (self, Err(error.into())),
        };
        self.worked = started.elapsed();
        (self, Ok(bytes.into()))
    }
}

pub(crate) type Piece = Result<Option<Vec<Record>>, ReadError>;

/// Reads the next piece, here or on a thread that may block.
pub(crate) async fn read(
    mut scan: Scan,
    records_max: usize,
    bytes_max: usize,
    may_block: bool,
) -> Result<(Scan, Piece), ApiError> {
    let read = move || {
        let piece = scan.next_piece(records_max, bytes_max);
        (scan, piece)
    };
    if !may_block {
        return Ok(read());
    }
    tokio::task::spawn_blocking(read).await.map_err(|_| ApiError::Defect { what: "a read panicked" })
}

/// Gives those a share who are served where this is, and at home, which is where all writes go through.
#[derive(Clone)]
pub(crate) struct Others {
    home: Handle,
}

impl Others {
    /// # Panics
    /// Outside of a runtime; that one is home.
    pub(crate) fn here() -> Others {
        Others { home: Handle::current() }
    }

    /// Waits until they have had their share, or want no more.
    pub(crate) async fn run(&self, worked: Duration) {
        let share = worked * OTHERS_SHARE;
        let had = give(share).await;
        if had < share && Handle::current().id() != self.home.id() {
            // It fails only when home ends, and nobody is there to be waited for.
            let _ = self.home.spawn(give(share - had)).await;
        }
    }
}

/// Yields until others had this much or want no more; says how much they had.
async fn give(share: Duration) -> Duration {
    let mut had = Duration::ZERO;
    loop {
        let yielded = Instant::now();
        tokio::task::yield_now().await;
        let took = yielded.elapsed();
        had += took;
        if took < IDLE_YIELD || had >= share {
            return had;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc::channel;

    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_multi_thread().worker_threads(1).build().unwrap()
    }

    #[test]
    fn who_is_served_elsewhere_waits_for_those_at_home() {
        const MUCH: Duration = Duration::from_secs(60);
        let (home, lane) = (runtime(), runtime());
        let others = home.block_on(async { Others::here() });
        let (done, until_done) = channel::<()>();
        let (begun, until_begun) = channel();
        home.spawn(async move {
            begun.send(()).unwrap();
            // Home's only thread is busy.
            let _ = until_done.recv();
        });
        until_begun.recv().unwrap();
        let waits = lane.spawn(async move { others.run(MUCH).await });
        // Whoever finds nobody at its own place is back after one turn.
        lane.block_on(async {
            for _ in 0..1_000 {
                tokio::spawn(tokio::task::yield_now()).await.unwrap();
            }
        });
        assert!(!waits.is_finished());
        done.send(()).unwrap();
        lane.block_on(waits).unwrap();
    }

    #[test]
    fn who_is_served_at_home_waits_for_nobody_where_nobody_is() {
        runtime().block_on(async {
            let others = Others::here();
            tokio::spawn(async move { others.run(Duration::from_secs(60)).await }).await.unwrap();
        });
    }
}
