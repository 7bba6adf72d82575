//! When leases end: the leader's business alone, in memory, by the times that it is told.
//!
//! All times are milliseconds of one clock that never goes back and does not stand still while the machine sleeps; the
//! caller reads it. A leader that takes office fills the queue from the replicated table ([`ExpiryQueue::promote`]), hears of
//! every change of the table, and gives the queue up when it is deposed.
//!
//! A lease that is not renewed is *noted* in the replicated table as it goes on: whenever half of what was last noted is used
//! up, or [`NOTE_INTERVAL_MS`] of it. One that clients keep alive as they should, three times per time to live, never gets
//! there and costs the log nothing. So the next leader starts from no more than twice what was left.
//!
//! Renewals are by far the most frequent operation, and do not move a lease in the order of ends: it goes on to its right place
//! when the one that it has is reached.
//!
//! **Invariant**: no lease has a place later than its due time.
//! **Invariant**: once a lease was handed out as expired it is not renewed any more in this term.
//! **Invariant**: a renewal succeeds only if the table notes no remainder and none is on its way there: a new leader, which
//! has only the table, grants at least what this one promised.

use std::collections::{BTreeMap, BTreeSet};

use crate::lease::Lease;

/// Of a long lease this much may pass before what is left is noted: etcd's interval.
pub const NOTE_INTERVAL_MS: u64 = 300_000;

/// Remainders are noted in whole seconds, so less than this is not worth an entry.
const NOTE_STEP_MS: u64 = 1_000;

const SECOND_MS: u64 = 1_000;

/// The leases of a leader by the time at which they end. O(log n) per operation unless it says otherwise.
#[derive(Debug, Default)]
pub struct ExpiryQueue {
    primary: bool,
    entries: BTreeMap<i64, Entry>,
    /// When each lease ends, or is to be handed out again, or some time before; without those that are handed out.
    ends: BTreeSet<(u64, i64)>,
    /// When what is left of each lease is to be noted, or some time before; without those that are being noted.
    notes: BTreeSet<(u64, i64)>,
}

#[derive(Debug)]
struct Entry {
    lease: Lease,
    end_ms: u64,
    /// What its grant or its renewals have promised; what a new leader adds, it does not promise.
    promised_ms: u64,
    /// Its place in `ends`.
    queued_ms: Option<u64>,
    /// Its place in `notes`.
    note_ms: Option<u64>,
    /// Handed out as expired.
    doomed: bool,
    /// Handed out to be noted.
    noting: bool,
}

/// How leadership is taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// What every lease is granted on top, in milliseconds: clients had no leader to renew at for about that long.
    pub extend_ms: u64,
    /// At most this many leases end within one second; the rest a little later.
    pub ends_per_second_max: u64,
}

/// What became of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It lives on for its whole time.
    Renewed {
        /// Its time to live, in seconds.
        ttl_s: i64,
    },
    /// The table notes a remainder, which has to be cleared through the log first; then ask again.
    Noted,
    /// A remainder is on its way into the table; ask again when it has arrived.
    Noting,
    /// Its time is over; it is about to be revoked.
    Expired,
    /// This is not the leader's queue.
    NotPrimary,
}

impl Entry {
    fn remaining_ms(&self, now_ms: u64) -> u64 {
        self.end_ms.saturating_sub(now_ms)
    }

    /// What is left in whole seconds, rounded up, as it would be noted; at least 1.
    fn remainder_s(&self, now_ms: u64) -> i64 {
        let seconds = self.remaining_ms(now_ms).div_ceil(SECOND_MS).cast_signed();
        seconds.clamp(1, self.lease.granted_s)
    }

    /// When what is left is to be noted, if ever.
    fn next_note(&self) -> Option<u64> {
        let noted_ms = ms(self.lease.start_s());
        let used = (noted_ms / 2).min(NOTE_INTERVAL_MS);
        (used >= NOTE_STEP_MS).then(|| self.end_ms.saturating_sub(noted_ms - used))
    }

    /// Gives this lease a place among the notes, unless it has one that is early enough.
    fn place_note(&mut self, id: i64, notes: &mut BTreeSet<(u64, i64)>) {
        let next = self.next_note().filter(|_| !self.doomed && !self.noting);
        if self.note_ms.is_some_and(|at| next.is_some_and(|next| at <= next)) {
            return;
        }
        if let Some(at) = std::mem::replace(&mut self.note_ms, next) {
            notes.remove(&(at, id));
        }
        if let Some(next) = next {
            notes.insert((next, id));
        }
    }
}

fn ms(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(SECOND_MS)
}

impl ExpiryQueue {
    /// The queue of somebody who does not lead.
    pub fn new() -> ExpiryQueue {
        ExpiryQueue::default()
    }

    /// Takes up leadership at `now_ms` with the leases of the table. O(n log n).
    pub fn promote(&mut self, leases: impl IntoIterator<Item = (i64, Lease)>, now_ms: u64, how: Promotion) {
        self.demote();
        self.primary = true;
        let mut by_end: Vec<(u64, i64, Lease)> = leases
            .into_iter()
            .map(|(id, lease)| (now_ms.saturating_add(how.extend_ms).saturating_add(ms(lease.start_s())), id, lease))
            .collect();
        by_end.sort_unstable_by_key(|(end, id, _)| (*end, *id));
        let (mut second, mut within) = (0, 0);
        for (end, id, lease) in by_end {
            if end >= second + SECOND_MS {
                (second, within) = (end, 0);
            } else if within == how.ends_per_second_max.max(1) {
                (second, within) = (second + SECOND_MS, 0);
            }
            within += 1;
            self.insert(id, lease, end.max(second), 0);
        }
    }

    /// Gives up leadership: forgets everything.
    pub fn demote(&mut self) {
        *self = ExpiryQueue::default();
    }

    /// Whether this is the leader's queue.
    pub fn is_primary(&self) -> bool {
        self.primary
    }

    /// How many leases it has.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The table has a new lease: it ends its whole time from `now_ms` on.
    pub fn granted(&mut self, id: i64, lease: Lease, now_ms: u64) {
        if self.primary {
            let end_ms = now_ms.saturating_add(ms(lease.granted_s));
            self.insert(id, lease, end_ms, end_ms);
        }
    }

    /// The table has a lease no more.
    pub fn revoked(&mut self, id: i64) {
        if let Some(entry) = self.entries.remove(&id) {
            self.unqueue(id, &entry);
        }
    }

    /// The table notes another remainder of a lease than before (0: none).
    pub fn noted(&mut self, id: i64, remaining_s: i64) {
        self.change(id, |entry| entry.lease.remaining_s = remaining_s);
    }

    /// Renews a lease, which the table has as `lease` at this moment.
    pub fn renew(&mut self, id: i64, lease: Lease, now_ms: u64) -> Renewal {
        if !self.primary {
            return Renewal::NotPrimary;
        }
        let end_ms = now_ms.saturating_add(ms(lease.granted_s));
        let mut entry = self.entries.get_mut(&id);
        match &entry {
            Some(entry) if entry.doomed || entry.end_ms <= now_ms => return Renewal::Expired,
            Some(entry) if entry.noting => return Renewal::Noting,
            _ if lease.remaining_s != 0 => return Renewal::Noted,
            _ => {}
        }
        // Renewals may come in another order than the moments that they count from: none takes back what one before promised.
        let end_ms = entry.as_ref().map_or(end_ms, |entry| end_ms.max(entry.promised_ms));
        match &mut entry {
            Some(entry) if entry.queued_ms.is_some_and(|at| at <= end_ms) => {
                (entry.lease, entry.end_ms, entry.promised_ms) = (lease, end_ms, end_ms);
                entry.place_note(id, &mut self.notes);
            }
            _ => self.insert(id, lease, end_ms, end_ms),
        }
        Renewal::Renewed { ttl_s: lease.granted_s }
    }

    /// Hands out at most `max` leases that have ended, the longest ended first. They are not handed out again, unless by
    /// [`ExpiryQueue::retry`]. O(answer · log n).
    pub fn expired(&mut self, now_ms: u64, max: usize) -> Vec<i64> {
        let mut ended = Vec::new();
        while ended.len() < max && self.any_expired(now_ms) {
            let Some((_, id)) = self.ends.pop_first() else { break };
            if let Some(entry) = self.entries.get_mut(&id) {
                (entry.queued_ms, entry.doomed) = (None, true);
                if let Some(note) = entry.note_ms.take() {
                    self.notes.remove(&(note, id));
                }
            }
            ended.push(id);
        }
        ended
    }

    /// Whether a lease is still the one that was handed out as expired: not one that was granted under its id since then.
    pub fn is_handed_out(&self, id: i64) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.doomed)
    }

    /// Whether any lease has ended. The first place of `ends` is exact then. O(log n) per lease that was renewed.
    pub fn any_expired(&mut self, now_ms: u64) -> bool {
        while let Some((at, id)) = self.ends.first().copied().filter(|(at, _)| *at <= now_ms) {
            let Some(entry) = self.entries.get_mut(&id).filter(|entry| !entry.doomed && entry.end_ms > at) else {
                return true;
            };
            entry.queued_ms = Some(entry.end_ms);
            self.ends.remove(&(at, id));
            self.ends.insert((entry.end_ms, id));
        }
        false
    }

    /// Those of `ids` that the table still has are handed out again at `at_ms`: their revocation failed, or nobody knows.
    pub fn retry(&mut self, ids: &[i64], at_ms: u64) {
        for id in ids {
            if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.queued_ms.is_none()) {
                entry.queued_ms = Some(at_ms);
                self.ends.insert((at_ms, *id));
            }
        }
    }

    /// Hands out at most `max` leases of which so much has passed that it is to be noted, with what is left in seconds.
    /// [`ExpiryQueue::settle`] has to follow. O(answer · log n).
    pub fn due_notes(&mut self, now_ms: u64, max: usize) -> Vec<(i64, i64)> {
        let mut due = Vec::new();
        while due.len() < max
            && let Some(place) = self.notes.first().copied().filter(|(at, _)| *at <= now_ms)
        {
            self.notes.remove(&place);
            let (at, id) = place;
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.note_ms = entry.next_note().filter(|next| *next > at);
            match entry.note_ms {
                Some(next) => _ = self.notes.insert((next, id)),
                None => due.extend(self.hand_out(id, now_ms)),
            }
        }
        due
    }

    /// As [`ExpiryQueue::due_notes`], for every lease of which a second or more has passed: leadership is to be handed
    /// over. `after` is the last id of the answer before, if that had `max`. O(n) over all answers.
    pub fn all_notes(&mut self, now_ms: u64, after: Option<i64>, max: usize) -> Vec<(i64, i64)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let rest = self.entries.range((from, std::ops::Bound::Unbounded));
        let worth = rest
            .filter(|(_, entry)| !entry.doomed && !entry.noting && entry.remainder_s(now_ms) < entry.lease.start_s());
        let ids: Vec<i64> = worth.map(|(id, _)| *id).take(max).collect();
        ids.into_iter().filter_map(|id| self.hand_out(id, now_ms)).collect()
    }

    /// What was handed out to be noted has been, and the table's changes were told, or it will not be.
    pub fn settle(&mut self, ids: impl IntoIterator<Item = i64>) {
        ids.into_iter().for_each(|id| self.change(id, |entry| entry.noting = false));
    }

    /// What is left of a lease in seconds, rounded down.
    pub fn time_to_live(&self, id: i64, now_ms: u64) -> Option<i64> {
        self.entries.get(&id).map(|entry| (entry.remaining_ms(now_ms) / SECOND_MS).cast_signed())
    }

    /// Brings the queue in line with a table whose changes were not all heard: new leases begin at `now_ms`. O(n log n).
    ///
    /// A lease that was revoked and granted again meanwhile may look like the one before. So none ends before its whole time
    /// from `now_ms` on, unless a note shows that it is the one that is known. One that was handed out as expired is not
    /// renewed, as its revocation may be in the log; it is handed out again after that time.
    pub fn resync(&mut self, leases: impl IntoIterator<Item = (i64, Lease)>, now_ms: u64) {
        let table: BTreeMap<i64, Lease> = leases.into_iter().collect();
        let gone: Vec<i64> = self.entries.keys().filter(|id| !table.contains_key(id)).copied().collect();
        gone.into_iter().for_each(|id| self.revoked(id));
        for (id, lease) in table {
            let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.lease.granted_s == lease.granted_s) else {
                self.granted(id, lease, now_ms);
                continue;
            };
            // What is granted has no note, unless it meets one that was on its way.
            if lease.remaining_s == 0 || entry.noting {
                let end_ms = now_ms.saturating_add(ms(lease.granted_s));
                if entry.doomed {
                    if let Some(at) = entry.queued_ms.take() {
                        self.ends.remove(&(at, id));
                    }
                    self.retry(&[id], end_ms);
                } else {
                    entry.end_ms = entry.end_ms.max(end_ms);
                }
            }
            self.noted(id, lease.remaining_s);
        }
    }

    fn hand_out(&mut self, id: i64, now_ms: u64) -> Option<(i64, i64)> {
        let entry = self.entries.get_mut(&id)?;
        entry.noting = true;
        if let Some(note) = entry.note_ms.take() {
            self.notes.remove(&(note, id));
        }
        Some((id, entry.remainder_s(now_ms)))
    }

    fn insert(&mut self, id: i64, lease: Lease, end_ms: u64, promised_ms: u64) {
        let queued_ms = Some(end_ms);
        let fresh = Entry { lease, end_ms, promised_ms, queued_ms, note_ms: None, doomed: false, noting: false };
        self.revoked(id);
        self.ends.insert((end_ms, id));
        self.entries.insert(id, fresh);
        self.change(id, |_| {});
    }

    /// Changes an entry, and gives it a place among the notes.
    fn change(&mut self, id: i64, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        change(entry);
        entry.place_note(id, &mut self.notes);
    }

    fn unqueue(&mut self, id: i64, entry: &Entry) {
        if let Some(at) = entry.queued_ms {
            self.ends.remove(&(at, id));
        }
        if let Some(at) = entry.note_ms {
            self.notes.remove(&(at, id));
        }
    }
}
