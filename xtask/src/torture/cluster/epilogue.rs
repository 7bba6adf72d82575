//! After everything else: the store is compacted, and on every node watchers begin before, at and after that revision.
//!
//! It comes last because the checks of the run itself need the whole past.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::fleet::Fleet;
use super::rpc::Rpc;
use super::stream::{self, Heard, Stream};
use crate::error::{Error, Result};
use crate::linear::watches::{End, Interest, Message, Response, Segment, Spec, Told, Watched};
use crate::node::Kind;

/// How long one request, and all watchers of one node, may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How many revisions are kept, at most.
const KEPT: i64 = 2_000;

/// Compacts and watches.
pub(crate) fn run(fleet: &Fleet, told: &Told<'_>, last: i64, watched: &mut Watched) -> Result<()> {
    let compacted = last - (last / 2).min(KEPT);
    if compacted < 2 {
        return Ok(());
    }
    let members = fleet.members();
    let body = format!(r#"{{"revision":"{compacted}"}}"#);
    Rpc::new(fleet.kind, fleet.client(members[0])).ask("/v3/kv/compaction", &body, LIMIT)?;
    for slot in members {
        wait_compacted(fleet, slot, compacted)?;
        for segment in watch(fleet.kind, slot, fleet.client(slot), compacted, last)? {
            let cancelled = matches!(segment.end, End::Compacted(_));
            let wrong = |what: &str| Err(Error::Check(format!("{}: {what} at {compacted}", segment.who)));
            match segment.end {
                End::Compacted(at) if at != compacted => return wrong("cancelled as if compacted elsewhere than"),
                End::Complete if segment.start < compacted => return wrong("not cancelled though compacted"),
                End::Broken => return wrong("broke off after a compaction"),
                End::Compacted(_) | End::Complete => {}
            }
            told.check(&segment, watched).map_err(|found| Error::Check(found.to_string()))?;
            watched.cancelled += u64::from(cancelled);
        }
    }
    Ok(())
}

/// A node applies a compaction when it gets to it; until then it is right to serve what is older.
fn wait_compacted(fleet: &Fleet, slot: usize, compacted: i64) -> Result<()> {
    let begun = Instant::now();
    let body = format!(r#"{{"key":"AA==","serializable":true,"revision":"{}"}}"#, compacted - 1);
    while Rpc::new(fleet.kind, fleet.client(slot)).ask("/v3/kv/range", &body, LIMIT).is_ok() {
        if begun.elapsed() > LIMIT {
            return Err(Error::Check(format!("n{slot} did not apply the compaction at {compacted} in {LIMIT:?}")));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Watchers from revisions around the compaction, on one stream; what they were told until they had been told everything.
fn watch(kind: Kind, slot: usize, address: SocketAddr, compacted: i64, last: i64) -> Result<Vec<Segment>> {
    let all = Spec {
        interest: Interest::All,
        puts: true,
        deletions: true,
        previous: false,
        notified: false,
        fragments: false,
    };
    // The record before an event at the compaction is compacted itself, so only later ones carry it for certain.
    let after = Spec { previous: true, ..all };
    let starts = [(1, all), (compacted - 1, all), (compacted, all), (compacted + 1, after), (last, after)];
    let mut requests: Vec<String> =
        (1..).zip(&starts).map(|(id, (start, spec))| stream::create(spec, *start, id)).collect();
    let open = kind == Kind::Tally;
    if open {
        requests.push(stream::PROGRESS.to_owned());
    }
    let segments = (1..).zip(&starts).map(|(id, (start, spec))| Segment {
        spec: *spec,
        who: format!("watcher {id} from {start} on node {slot}, compacted at {compacted}"),
        start: *start,
        created: 0,
        events: Vec::new(),
        responses: Vec::new(),
        end: End::Broken,
    });
    let mut segments: Vec<Segment> = segments.collect();
    let failed = |why: String| Error::Check(format!("watching n{slot} after the compaction: {why}"));
    let mut stream =
        Stream::connect(kind, address, &requests, false, open).map_err(|error| failed(error.to_string()))?;
    let (begun, mut asked) = (Instant::now(), Instant::now());
    loop {
        let lines = stream.read(Duration::from_millis(50)).map_err(|error| failed(error.to_string()))?;
        for line in lines {
            take(&mut segments, stream::heard(&line, 0).map_err(failed)?).map_err(failed)?;
        }
        let done = segments.iter().all(|segment| match segment.end {
            End::Compacted(_) => true,
            End::Broken | End::Complete => segment.created > 0 && reached(segment) >= last,
        });
        // All of them follow everything, so the last revision is the end of it and no silence has to stand for it.
        if done {
            break;
        }
        // Who cannot ask is sent nothing but what is missing, so that as long as something comes it goes on.
        if (if open { begun.elapsed() } else { stream.silent }) > LIMIT {
            return Err(failed(format!("not told everything up to revision {last} in {LIMIT:?}")));
        }
        if open && asked.elapsed() > Duration::from_millis(300) {
            asked = Instant::now();
            stream.send(stream::PROGRESS).map_err(|error| failed(error.to_string()))?;
        }
    }
    for segment in segments.iter_mut().filter(|segment| segment.end == End::Broken) {
        segment.end = End::Complete;
    }
    Ok(segments)
}

/// Up to which revision a segment has been told everything. The header of a message with events does not say it: it tells
/// how far the store is.
fn reached(segment: &Segment) -> i64 {
    let progress = segment.responses.iter().filter(|response| response.message == Message::Progress);
    let progress = progress.map(|response| i64::from(response.revision)).max().unwrap_or(0);
    progress.max(segment.events.last().map_or(0, |event| i64::from(event.revision)))
}

fn take(segments: &mut [Segment], heard: Heard) -> std::result::Result<(), String> {
    let shown = format!("{heard:?}").chars().take(200).collect::<String>();
    let (id, revision, message, events) = match heard {
        Heard::Created { id, revision } => {
            let segment = usize::try_from(id - 1).ok().and_then(|index| segments.get_mut(index));
            segment.ok_or(shown)?.created = revision;
            return Ok(());
        }
        Heard::Events { id, revision, fragment, events } => {
            (id, revision, if fragment { Message::Fragment } else { Message::Events }, events)
        }
        Heard::Progress { id, revision } => {
            (id, revision, if id == -1 { Message::Progress } else { Message::Notice }, Vec::new())
        }
        Heard::Canceled { id, compacted, .. } if compacted > 0 => {
            let segment = usize::try_from(id - 1).ok().and_then(|index| segments.get_mut(index));
            segment.ok_or(shown)?.end = End::Compacted(compacted);
            return Ok(());
        }
        Heard::Canceled { .. } | Heard::Failed(_) => return Err(shown),
    };
    let revision = u32::try_from(revision).map_err(|_| shown.clone())?;
    let meant = |index: usize| id == -1 || id == index as i64 + 1;
    let live = segments.iter_mut().enumerate().filter(|(index, segment)| meant(*index) && segment.end == End::Broken);
    let mut told = 0;
    for (_, segment) in live {
        segment.events.extend_from_slice(&events);
        let events_end = segment.events.len() as u32;
        segment.responses.push(Response { message, revision, events_end });
        told += 1;
    }
    if told > 0 || id == -1 { Ok(()) } else { Err(shown) }
}
