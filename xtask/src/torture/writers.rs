//! The concurrent clients: each puts the next record until it is acknowledged, and remembers every attempt.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::packages::Load;
use crate::error::{Error, Result};
use crate::http::Client;

/// How long an answer may take; the server's own limit is below.
const ANSWER_TIME: Duration = Duration::from_secs(15);
/// How long one record may stay without an acknowledgement, over any number of attempts and restarts.
const PATIENCE: Duration = Duration::from_secs(120);

/// One request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// What was put: counts records, pass after pass.
    pub(crate) item: u64,
    /// The revision of the acknowledgement; without one nothing is known.
    pub(crate) acknowledged: Option<i64>,
}

/// What all clients share.
#[derive(Debug)]
pub(crate) struct Shared<'run> {
    pub(crate) address: SocketAddr,
    pub(crate) load: &'run Load,
    /// The next item to put.
    pub(crate) next: AtomicU64,
    /// Acknowledged puts so far.
    pub(crate) acknowledged: AtomicU64,
    /// Set when the kills are done: nothing is begun any more after the pass that is under way.
    pub(crate) enough: AtomicBool,
    /// Set when somebody has failed: everybody ends.
    pub(crate) failed: AtomicBool,
}

impl Shared<'_> {
    /// Whether every client is through with what it is to put.
    pub(crate) fn finished(&self) -> bool {
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        self.enough.load(Ordering::Relaxed)
            && acknowledged > 0
            && acknowledged.is_multiple_of(self.load.pass())
            && acknowledged == self.next.load(Ordering::Relaxed)
    }

    /// The next item, unless the last pass is complete.
    fn take(&self) -> Option<u64> {
        let size = self.load.pass();
        let taken = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            let ends = next > 0 && next.is_multiple_of(size) && self.enough.load(Ordering::Relaxed);
            (!ends).then_some(next + 1)
        });
        taken.ok()
    }
}

/// One client's life; gives everything that it tried.
pub(crate) fn write(shared: &Shared<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    let mut client = Client::new(shared.address, ANSWER_TIME);
    let mut last_revision = 1;
    while let Some(item) = shared.take() {
        let (revision, failures) = match put(shared, &mut client, item) {
            Ok(Some(done)) => done,
            Ok(None) => return Ok(attempts),
            Err(error) => {
                shared.failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
        };
        attempts.extend((0..failures).map(|_| Attempt { item, acknowledged: None }));
        attempts.push(Attempt { item, acknowledged: Some(revision) });
        if revision <= last_revision {
            shared.failed.store(true, Ordering::Relaxed);
            return Err(Error::Check(format!(
                "a put was acknowledged with revision {revision} after one with {last_revision} by the same client"
            )));
        }
        last_revision = revision;
        shared.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    Ok(attempts)
}

/// Puts one item until it is acknowledged; gives the revision and how many attempts had no answer. Nothing if others
/// have failed meanwhile.
fn put(shared: &Shared<'_>, client: &mut Client, item: u64) -> Result<Option<(i64, u64)>> {
    let (key, mut raw) = (shared.load.key(item), Vec::new());
    shared.load.value(item, &mut raw);
    let mut body = br#"{"key":""#.to_vec();
    base64_simd::STANDARD.encode_append(key.as_bytes(), &mut body);
    body.extend_from_slice(br#"","value":""#);
    base64_simd::STANDARD.encode_append(&raw, &mut body);
    body.extend_from_slice(br#""}"#);
    let begun = Instant::now();
    let mut failures = 0;
    loop {
        if shared.failed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let answer = client.post("/v3/kv/put", &body);
        let why = match answer {
            Ok((200, answer)) => {
                let revision = header_revision(answer).ok_or_else(|| {
                    Error::Answer(format!("a put without a revision: {}", String::from_utf8_lossy(answer)))
                })?;
                return Ok(Some((revision, failures)));
            }
            // Unavailable, timed out, or too busy: whether it was done is not known.
            Ok((status @ (408 | 429 | 500..=599), answer)) => format!("{status}: {}", String::from_utf8_lossy(answer)),
            Ok((status, answer)) => {
                let shown = String::from_utf8_lossy(answer).into_owned();
                return Err(Error::Answer(format!("put {key} was answered with {status}: {shown}")));
            }
            Err(error) => error.to_string(),
        };
        failures += 1;
        if begun.elapsed() > PATIENCE {
            return Err(Error::Check(format!("put {key} has failed for {PATIENCE:?}; last: {why}")));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The revision in an answer's header.
pub(crate) fn header_revision(body: &[u8]) -> Option<i64> {
    const MARK: &[u8] = br#""revision":""#;
    let at = body.windows(MARK.len()).position(|found| found == MARK)? + MARK.len();
    let length = body[at..].iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&body[at..at + length]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::{Load, Shared, header_revision};
    use crate::torture::packages::Record;

    fn load() -> Load {
        let record = |name: &str| Record { key: format!("pkg/{name}"), paragraph: name.to_owned() };
        Load::new(["a", "b"].map(record).into(), 0)
    }

    #[test]
    fn passes_end_whole() {
        let load = load();
        let shared = Shared {
            address: ([127, 0, 0, 1], 1).into(),
            load: &load,
            next: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            enough: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        };
        assert_eq!((shared.take(), shared.take(), shared.take()), (Some(0), Some(1), Some(2)));
        shared.enough.store(true, Ordering::Relaxed);
        assert_eq!((shared.take(), shared.take()), (Some(3), None));
        assert!(!shared.finished());
        shared.acknowledged.store(4, Ordering::Relaxed);
        assert!(shared.finished());
    }

    #[test]
    fn revisions_are_found() {
        assert_eq!(header_revision(br#"{"header":{"cluster_id":"1","revision":"42","raft_term":"2"}}"#), Some(42));
        assert_eq!(header_revision(b"{}"), None);
    }
}
