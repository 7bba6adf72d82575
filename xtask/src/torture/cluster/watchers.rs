//! The watchers: streams of many watchers each, on all nodes, that record what they are told and go on elsewhere after their
//! connection broke.
//!
//! | temper | watches | does |
//! |---|---|---|
//! | steady | everything | reads all the time, asks nothing, goes on after a break |
//! | slow | everything, with what was replaced | reads in bursts, so that the server has to wait for it |
//! | restless | keys and groups of keys | breaks off by itself and goes on, often on another node |
//! | alike | everything, all of them on one node by one kind of watcher | as if steady, but it breaks off, and mostly comes back there |
//! | fresh | keys and groups of keys | makes, cancels and asks for progress all the time, then forgets all and begins anew |
//!
//! Those who watch everything, and every other one of the rest, ask nothing once the writers stop: see [`ending`].
//!
//! **Invariant**: `next` of a watcher is the first revision that it has not been told everything of; whatever breaks, that is
//! where it goes on.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::api::KEYS;
use super::clients::Shared;
use super::ending::{self, PATIENCE, Standing, Verdict};
use super::stream::{self, Heard, Stream};
use crate::error::{Error, Result};
use crate::linear::watches::{End, Interest, Message, Response, Segment, Spec};
use crate::node::Kind;
use crate::rng::Rng;

/// Watchers of one stream of keys.
pub(crate) const PER_STREAM: usize = 50;
/// Events that all watchers of a run record at most (32 bytes each); what comes after is watched only on connections that
/// last, and again from when the writers stop.
pub(crate) const EVENTS_MAX: u64 = 6_000_000;
/// How long one read waits.
const WAIT: Duration = Duration::from_millis(100);
/// Why a store may cancel a watcher that nobody asked it to cancel: it serves no watches at the moment. Nothing is compacted
/// while the streams live, and none of their requests is one that may be refused.
const REASONS: [&str; 3] = ["no leader", "server stopped", "not supported for learner"];
/// Between two requests of a stream on a whim.
const WHIM_EVERY: Duration = Duration::from_millis(400);
/// Between two questions for progress at the end.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How a stream behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Temper {
    Steady,
    Slow,
    Restless,
    /// With enough of them a server tells them of changes together.
    Alike,
    Fresh,
}

/// One watcher, over all its connections.
#[derive(Debug)]
struct Watcher {
    label: u32,
    spec: Spec,
    /// Where it goes on; 0 if it has not been anywhere and wants what comes from now on.
    next: i64,
    /// Its id on this connection.
    id: Option<i64>,
    /// What it was told on this connection, once it was created.
    segment: Option<Segment>,
    /// Whether it was ever created.
    created: bool,
    leaving: bool,
}

/// What one stream's watchers were told.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) segments: Vec<Segment>,
    pub(crate) watchers: u64,
    pub(crate) connections: u64,
    pub(crate) cancelled: u64,
    /// Answers to questions for progress, each for all watchers of a stream.
    pub(crate) answers: u64,
    /// Whether it stopped watching because of the cap on events.
    pub(crate) capped: bool,
}

/// One stream.
struct Watching<'run> {
    shared: &'run Shared,
    addresses: &'run [SocketAddr],
    number: u32,
    home: usize,
    node: usize,
    temper: Temper,
    rng: Rng,
    watchers: Vec<Watcher>,
    /// Watchers that were asked for and not yet created, in order; their labels.
    asked: std::collections::VecDeque<u32>,
    /// The newest revision that was heard of.
    newest: i64,
    labels: u32,
    watch: Watch,
}

/// One stream's life; gives everything that its watchers were told.
pub(crate) fn run(
    shared: &Shared,
    number: u32,
    node: usize,
    addresses: &[SocketAddr],
    temper: Temper,
    seed: u64,
) -> Result<Watch> {
    let rng = Rng::new(crate::rng::mix(seed ^ (u64::from(number) << 40)));
    let mut watching = Watching {
        shared,
        addresses,
        number,
        home: node,
        node,
        temper,
        rng,
        watchers: Vec::new(),
        asked: std::collections::VecDeque::new(),
        newest: 0,
        labels: 0,
        watch: Watch::default(),
    };
    watching.live().inspect_err(|_| shared.failed.store(true, Ordering::Relaxed))?;
    Ok(watching.watch)
}

impl Watching<'_> {
    fn live(&mut self) -> Result<()> {
        let mut over: Option<Instant> = None;
        while !self.shared.has_failed() {
            let last = self.last();
            if last > 0 {
                let since = *over.get_or_insert_with(Instant::now);
                // Whoever has been told everything is done, and what was to come later never will; but all must have been
                // created once.
                self.watchers.retain(|watcher| watcher.next <= last || !watcher.created);
                if self.watchers.is_empty() {
                    return Ok(());
                }
                if since.elapsed() > PATIENCE {
                    let how = format!("no connection in {PATIENCE:?} after everything was healed that told");
                    return Err(self.wrong(&self.lacking(&how, last)));
                }
            } else if self.shared.events.load(Ordering::Relaxed) > EVENTS_MAX && !self.shared.ending() {
                self.watch.capped = true;
                self.watchers.clear();
                thread::sleep(WAIT);
                continue;
            } else if self.watchers.is_empty()
                || (self.temper == Temper::Restless && self.rng.below(5) == 0 && !self.waits())
            {
                self.begin();
            }
            if self.connection()? {
                return Ok(());
            }
            self.forget_or_move();
        }
        Ok(())
    }

    /// The store's last revision, once it stands still; 0 before.
    fn last(&self) -> i64 {
        self.shared.last.load(Ordering::Acquire)
    }

    /// Whether its watchers are told of every revision there is.
    fn follows_everything(&self) -> bool {
        matches!(self.temper, Temper::Steady | Temper::Slow | Temper::Alike)
    }

    /// Whether it watches keys and asks nothing once the writers stop.
    fn is_patient(&self) -> bool {
        !self.follows_everything() && self.number % 2 == 1
    }

    /// Whether it stays where it is and asks nothing: a question or a new connection would bring what was forgotten.
    fn waits(&self) -> bool {
        self.shared.ending() && (self.follows_everything() || self.is_patient())
    }

    /// New watchers in the place of all that there were.
    fn begin(&mut self) {
        self.watchers.clear();
        let many = match self.temper {
            Temper::Steady | Temper::Slow | Temper::Alike => 1,
            Temper::Restless => PER_STREAM,
            Temper::Fresh => PER_STREAM * 2 / 3,
        };
        (0..many).for_each(|_| self.add());
    }

    fn add(&mut self) {
        let all = self.follows_everything();
        let interest = if all { Interest::All } else { self.interest() };
        let (puts, deletions) = match self.rng.below(8) {
            0 if !all => (false, true),
            1 if !all => (true, false),
            _ => (true, true),
        };
        let mut chance = |of: u64| self.rng.below(of) == 0;
        let (previous, notified, fragments) = match self.temper {
            Temper::Alike => (false, false, false),
            temper => (temper == Temper::Slow || chance(2), chance(3), chance(3)),
        };
        // A notice would wake whom the store forgot.
        let notified = notified && self.temper != Temper::Steady && !self.is_patient();
        let next = match self.rng.below(8) {
            0..2 if self.newest > 0 => (self.newest - self.rng.below(1500) as i64).max(1),
            2 if self.newest > 0 && !all => self.newest + 1 + self.rng.below(400) as i64,
            _ => 0,
        };
        self.labels += 1;
        let spec = Spec { interest, puts, deletions, previous, notified, fragments };
        let watcher =
            Watcher { label: self.labels, spec, next, id: None, segment: None, created: false, leaving: false };
        self.watchers.push(watcher);
        self.watch.watchers += 1;
    }

    /// One or all of the keys that are in use, were lately, will be soon, or belong to a lease.
    fn interest(&mut self) -> Interest {
        let present = self.shared.first_key() / KEYS;
        let near = KEYS * (present + self.rng.below(20) as u32).saturating_sub(5);
        let leased = self.shared.a_lease(&mut self.rng).filter(|_| self.rng.below(4) == 0);
        let first = leased.map_or(near, |(_, first)| first);
        if self.rng.below(6) == 0 {
            return Interest::Keys { first, count: KEYS };
        }
        Interest::Key(first + self.rng.below(u64::from(KEYS)) as u32)
    }

    /// After a connection: some begin anew, some go on elsewhere.
    fn forget_or_move(&mut self) {
        if self.last() == 0 && self.temper == Temper::Fresh && !self.waits() {
            self.watchers.clear();
        }
        if self.temper == Temper::Alike && self.rng.below(8) != 0 {
            self.node = self.home;
        } else if self.temper == Temper::Restless || self.rng.below(2) == 0 {
            self.node = self.rng.below(self.addresses.len() as u64) as usize;
        }
    }

    /// One connection; tells whether everything has been told.
    fn connection(&mut self) -> Result<bool> {
        // A real etcd answers only once it has read the whole request.
        let open = self.shared.kind == Kind::Tally && (self.last() > 0 || self.rng.below(4) != 0);
        let (own_ids, leader) = (self.rng.below(2) == 0 && self.temper != Temper::Alike, self.rng.below(4) == 0);
        let mut requests = Vec::new();
        for index in 0..self.watchers.len() {
            requests.push(self.create(index, own_ids));
        }
        if !open {
            requests.push(stream::PROGRESS.to_owned());
        }
        let connected = Stream::connect(self.shared.kind, self.addresses[self.node], &requests, leader, open);
        let mut done = false;
        match connected {
            Ok(mut stream) => {
                self.watch.connections += 1;
                done = self.listen(&mut stream, own_ids)?;
            }
            Err(_) => {
                self.shared.failure("no connection".to_owned());
                thread::sleep(WAIT);
            }
        }
        let end = if done { End::Complete } else { End::Broken };
        self.asked.clear();
        for index in 0..self.watchers.len() {
            self.finish(index, end);
            (self.watchers[index].id, self.watchers[index].leaving) = (None, false);
        }
        Ok(done)
    }

    fn create(&mut self, index: usize, own_ids: bool) -> String {
        let watcher = &self.watchers[index];
        self.asked.push_back(watcher.label);
        stream::create(&watcher.spec, watcher.next, if own_ids { i64::from(watcher.label) } else { 0 })
    }

    fn finish(&mut self, index: usize, end: End) {
        if let Some(mut segment) = self.watchers[index].segment.take() {
            segment.end = end;
            self.watch.segments.push(segment);
        }
    }

    /// Listens until the connection ends or is to end; tells whether everything has been told.
    fn listen(&mut self, stream: &mut Stream, own_ids: bool) -> Result<bool> {
        let begun = Instant::now();
        let span = Duration::from_millis(match self.temper {
            Temper::Steady => 120_000,
            Temper::Slow => 30_000,
            Temper::Restless => 1_000 + self.rng.below(6_000),
            Temper::Alike => 5_000 + self.rng.below(30_000),
            Temper::Fresh => 3_000 + self.rng.below(9_000),
        });
        let mut asked = begun;
        let (mut ending, mut answered) = (None, false);
        while !self.shared.has_failed() {
            let last = self.last();
            let request = if last > 0 {
                let since = *ending.get_or_insert_with(|| {
                    stream.silent = Duration::ZERO;
                    Instant::now()
                });
                match self.standing(stream, last, since.elapsed(), answered).verdict() {
                    Verdict::Told => return Ok(true),
                    Verdict::Elsewhere => return Ok(false),
                    Verdict::Ask => self.last_wish(last, &mut asked),
                    Verdict::Listen => None,
                    Verdict::Probe => {
                        answered = ending::probe(self.shared.kind, self.addresses[self.node], stream);
                        None
                    }
                    Verdict::Forgotten => return Err(self.wrong(&self.lacking("silent, yet not told", last))),
                    Verdict::Late => {
                        let silent = stream.silent;
                        let how = format!("silent for {silent:?} (its node answered others: {answered}), not told");
                        return Err(self.wrong(&self.lacking(&how, last)));
                    }
                }
            } else if begun.elapsed() > span && !self.waits() {
                return Ok(false);
            } else {
                self.whim(own_ids, &mut asked)
            };
            if let Some(request) = request.filter(|_| stream.open)
                && stream.send(&request).is_err()
            {
                return Ok(false);
            }
            let lines = match stream.read(WAIT) {
                Ok(lines) => lines,
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    return Err(self.wrong(&error.to_string()));
                }
                Err(error) => {
                    self.shared.failure(format!("watch: {}", super::rpc::kind_of(&error)));
                    thread::sleep(Duration::from_millis(self.rng.below(200)));
                    return Ok(false);
                }
            };
            // Once something arrives, what the node answered before that counts no more.
            answered &= !stream.silent.is_zero();
            for line in lines {
                let heard = stream::heard(&line, self.shared.now()).map_err(|why| self.wrong(&why))?;
                if !self.take(heard)? {
                    return Ok(false);
                }
            }
            if self.temper == Temper::Slow && last == 0 && self.rng.below(40) == 0 {
                let nap = Duration::from_millis(500 + self.rng.below(4_000));
                let begun = Instant::now();
                while begun.elapsed() < nap && self.last() == 0 && !self.shared.has_failed() {
                    thread::sleep(WAIT);
                }
            }
        }
        Ok(false)
    }

    fn standing(&self, stream: &Stream, last: i64, waited: Duration, answered: bool) -> Standing {
        Standing {
            kind: self.shared.kind,
            open: stream.open,
            everything: self.follows_everything(),
            patient: self.is_patient(),
            created: self.watchers.iter().all(|watcher| watcher.segment.is_some()),
            told: self.watchers.iter().all(|watcher| watcher.next > last),
            silent: stream.silent,
            waited,
            answered,
        }
    }

    /// What is missing, for people.
    fn lacking(&self, how: &str, last: i64) -> String {
        let lacks = |watcher: &&Watcher| watcher.next <= last || watcher.segment.is_none();
        let some = self.watchers.iter().filter(lacks).take(5).map(|watcher| {
            let id = watcher.id.map_or_else(|| "not created".to_owned(), |id| format!("id {id}"));
            format!("watcher {} ({id}) from revision {} on", watcher.label, watcher.next)
        });
        format!("{how} everything up to revision {last}: {}", some.collect::<Vec<_>>().join(", "))
    }

    /// What a stream asks for when it feels like it.
    fn whim(&mut self, own_ids: bool, asked: &mut Instant) -> Option<String> {
        // A question could wake whom the store forgot, and hide that it did.
        if matches!(self.temper, Temper::Steady | Temper::Alike) || self.waits() {
            return None;
        }
        if asked.elapsed() < WHIM_EVERY {
            return None;
        }
        *asked = Instant::now();
        if self.temper != Temper::Fresh || self.rng.below(4) == 0 {
            return Some(stream::PROGRESS.to_owned());
        }
        if self.rng.below(3) != 0 && self.watchers.len() < PER_STREAM * 2 {
            self.add();
            return Some(self.create(self.watchers.len() - 1, own_ids));
        }
        let index = self.rng.below(self.watchers.len() as u64) as usize;
        self.leave(|watcher, at| at == index && watcher.segment.is_some())
    }

    /// What a stream asks for once the store stands still: to be rid of those who wait for what will not come, and then
    /// whether there is more to come.
    fn last_wish(&mut self, last: i64, asked: &mut Instant) -> Option<String> {
        let future = self.leave(|watcher, _| watcher.segment.as_ref().is_some_and(|segment| segment.start > last));
        if future.is_some() || asked.elapsed() < ASK_EVERY {
            return future;
        }
        *asked = Instant::now();
        Some(stream::PROGRESS.to_owned())
    }

    /// The cancellation of the first watcher that is meant.
    fn leave(&mut self, meant: impl Fn(&Watcher, usize) -> bool) -> Option<String> {
        let mut all = self.watchers.iter_mut().enumerate();
        let (_, watcher) = all.find(|(at, watcher)| !watcher.leaving && meant(watcher, *at))?;
        watcher.leaving = true;
        watcher.id.map(stream::cancel)
    }

    /// Records what was heard; tells whether the stream goes on.
    fn take(&mut self, heard: Heard) -> Result<bool> {
        match heard {
            Heard::Created { id, revision } => {
                let label = self.asked.pop_front().ok_or_else(|| self.wrong("a watcher that nobody asked for"))?;
                let taken = self.watchers.iter().any(|watcher| watcher.id == Some(id));
                let node = self.node;
                let who = format!("watcher {label} of stream {} on node {node} (id {id})", self.number);
                let Some(watcher) = self.watchers.iter_mut().find(|watcher| watcher.label == label) else {
                    return Err(self.wrong("a watcher that nobody has"));
                };
                if taken {
                    return Err(Error::Check(format!("{who}: created with an id that another watcher has")));
                }
                let (spec, start, events, responses) = (watcher.spec, watcher.next, Vec::new(), Vec::new());
                let end = End::Broken;
                watcher.segment = Some(Segment { spec, who, start, created: revision, events, responses, end });
                watcher.created = true;
                (watcher.id, watcher.next) = (Some(id), if start == 0 { revision + 1 } else { start });
                self.newest = self.newest.max(revision);
            }
            Heard::Events { id, revision, fragment, events } => {
                self.shared.events.fetch_add(events.len() as u64, Ordering::Relaxed);
                self.newest = self.newest.max(revision);
                let message = if fragment { Message::Fragment } else { Message::Events };
                let watcher = self.known(id)?;
                let newest = events.last().map_or(0, |event| i64::from(event.revision));
                let Some(segment) = watcher.segment.as_mut() else { return Ok(true) };
                segment.events.extend(events);
                respond(segment, message, revision)?;
                // Of a revision that comes in pieces everything has been told only with the last.
                watcher.next = watcher.next.max(if fragment { newest } else { newest + 1 });
            }
            Heard::Progress { id: -1, revision } => {
                self.watch.answers += 1;
                for watcher in &mut self.watchers {
                    told(watcher, Message::Progress, revision)?;
                }
            }
            Heard::Progress { id, revision } => told(self.known(id)?, Message::Notice, revision)?,
            Heard::Canceled { id, created, compacted, reason } => {
                let index = self.watchers.iter().position(|watcher| watcher.id == Some(id));
                let leaving = index.is_some_and(|index| self.watchers[index].leaving);
                if leaving && compacted == 0 && !created {
                    self.watch.cancelled += 1;
                    let index = index.unwrap_or_default();
                    self.finish(index, End::Broken);
                    self.watchers.remove(index);
                    return Ok(true);
                }
                if compacted != 0 {
                    return Err(self.wrong(&format!("watch {id} was cancelled as compacted at {compacted}: {reason}")));
                }
                if !REASONS.iter().any(|known| reason.contains(known)) {
                    return Err(self.wrong(&format!("watch {id} was cancelled, which nobody asked for: {reason:?}")));
                }
                // All go on from where they were.
                self.shared.failure(format!("watch cancelled: {reason}"));
                thread::sleep(WAIT);
                return Ok(false);
            }
            Heard::Failed(why) => {
                self.shared.failure(format!("watch: {why}"));
                thread::sleep(WAIT);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn known(&mut self, id: i64) -> Result<&mut Watcher> {
        let known = self.watchers.iter().position(|watcher| watcher.id == Some(id) && watcher.segment.is_some());
        match known {
            Some(index) => Ok(&mut self.watchers[index]),
            None => Err(self.wrong(&format!("something for watch {id}, which there is not (yet, or any more)"))),
        }
    }

    fn wrong(&self, what: &str) -> Error {
        Error::Check(format!("stream {} on node {}: {what}", self.number, self.node))
    }
}

/// Everything up to a revision has been told.
fn told(watcher: &mut Watcher, message: Message, revision: i64) -> Result<()> {
    let Some(segment) = watcher.segment.as_mut() else { return Ok(()) };
    respond(segment, message, revision)?;
    watcher.next = watcher.next.max(revision + 1);
    Ok(())
}

fn respond(segment: &mut Segment, message: Message, revision: i64) -> Result<()> {
    let events_end = segment.events.len() as u32;
    let revision = u32::try_from(revision).map_err(|_| Error::Answer(format!("revision {revision} in a header")))?;
    segment.responses.push(Response { message, revision, events_end });
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A stream with one watcher that was created as number 7.
    fn watching(shared: &Shared, temper: Temper) -> Watching<'_> {
        let mut watching = Watching {
            shared,
            addresses: &[],
            number: 0,
            home: 0,
            node: 0,
            temper,
            rng: Rng::new(1),
            watchers: Vec::new(),
            asked: std::collections::VecDeque::new(),
            newest: 0,
            labels: 0,
            watch: Watch::default(),
        };
        watching.add();
        watching.create(0, false);
        assert!(watching.take(Heard::Created { id: 7, revision: 3 }).unwrap());
        watching
    }

    fn canceled(reason: &str, created: bool) -> Heard {
        Heard::Canceled { id: if created { -1 } else { 7 }, created, compacted: 0, reason: reason.to_owned() }
    }

    #[test]
    fn a_cancellation_needs_a_request_or_a_reason() {
        let shared = Shared::new(Kind::Tally);
        for (reason, created) in [("", false), ("why not", false), ("mvcc: watcher range is empty", true)] {
            assert!(watching(&shared, Temper::Fresh).take(canceled(reason, created)).is_err(), "{reason}");
        }
        let mut broken = watching(&shared, Temper::Fresh);
        assert!(!broken.take(canceled("etcdserver: no leader", false)).unwrap(), "goes on elsewhere");
        let mut left = watching(&shared, Temper::Fresh);
        assert!(left.leave(|_, _| true).is_some());
        assert!(left.take(canceled("", false)).unwrap());
        assert_eq!((left.watch.cancelled, left.watchers.len(), left.watch.segments.len()), (1, 0, 1));
    }

    #[test]
    fn who_follows_everything_does_not_wake_the_store() {
        let shared = Shared::new(Kind::Tally);
        let Some(mut long_ago) = Instant::now().checked_sub(WHIM_EVERY * 2) else { return };
        let mut steady = watching(&shared, Temper::Steady);
        assert_eq!(steady.whim(false, &mut long_ago), None);
        (0..20).for_each(|_| steady.add());
        assert!(steady.watchers.iter().all(|watcher| !watcher.spec.notified));
        let mut asked = long_ago;
        assert!(watching(&shared, Temper::Slow).whim(false, &mut asked).is_some());
        shared.stop.store(true, Ordering::Relaxed);
        assert_eq!(watching(&shared, Temper::Slow).whim(false, &mut long_ago), None);
        for (number, asks) in [(0, true), (1, false)] {
            let mut asked = long_ago;
            let mut restless = Watching { number, ..watching(&shared, Temper::Restless) };
            assert_eq!(restless.whim(false, &mut asked).is_some(), asks, "{number}");
            restless.watchers.clear();
            (0..50).for_each(|_| restless.add());
            assert_eq!(restless.watchers.iter().any(|watcher| watcher.spec.notified), asks, "{number}");
        }
    }
}
