//! The expiry queue, by times that the tests make up.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use tally_lease::{ExpiryQueue, Lease, NOTE_INTERVAL_MS, Promotion, Renewal};

const HOW: Promotion = Promotion { extend_ms: 1_000, ends_per_second_max: 750 };

fn primary(leases: impl IntoIterator<Item = (i64, Lease)>, now_ms: u64) -> ExpiryQueue {
    let mut queue = ExpiryQueue::new();
    queue.promote(leases, now_ms, HOW);
    queue
}

#[test]
fn only_a_primary_renews_and_expires() {
    let mut queue = ExpiryQueue::new();
    queue.granted(1, Lease::granted(2), 0);
    assert_eq!(queue.renew(1, Lease::granted(2), 0), Renewal::NotPrimary);
    assert_eq!((queue.expired(u64::MAX, 9), queue.len()), (vec![], 0));
    let mut queue = primary([(1, Lease::granted(2))], 0);
    queue.demote();
    assert_eq!((queue.is_primary(), queue.time_to_live(1, 0)), (false, None));
}

#[test]
fn a_lease_handed_out_as_expired_is_not_renewed_any_more() {
    let lease = Lease::granted(2);
    let mut queue = primary([], 0);
    queue.granted(1, lease, 0);
    assert_eq!(queue.renew(1, lease, 1_999), Renewal::Renewed { ttl_s: 2 });
    assert_eq!(queue.renew(1, lease, 3_999), Renewal::Expired, "at its very end, handed out or not");
    assert_eq!(queue.expired(3_998, 9), []);
    assert_eq!(queue.expired(3_999, 9), [1]);
    assert_eq!(queue.expired(9_999, 9), [], "once");
    assert_eq!(queue.renew(1, lease, 3_000), Renewal::Expired, "whatever the time");
    queue.retry(&[1, 77], 6_000);
    assert_eq!(queue.renew(1, lease, 4_000), Renewal::Expired);
    assert_eq!(queue.renew(1, lease, 3_000), Renewal::Expired, "its revocation may be in the log");
    assert_eq!((queue.expired(5_999, 9), queue.expired(6_000, 9)), (vec![], vec![1]));
    queue.revoked(1);
    queue.retry(&[1], 7_000);
    assert_eq!(queue.expired(u64::MAX, 9), []);
    queue.granted(1, lease, 7_000);
    assert_eq!(queue.renew(1, lease, 8_000), Renewal::Renewed { ttl_s: 2 }, "granted anew");
}

/// Each counts from before its leader was confirmed, and they may be confirmed together.
#[test]
fn a_renewal_that_comes_late_takes_nothing_back() {
    let lease = Lease::granted(10);
    let mut queue = primary([], 0);
    queue.granted(1, lease, 0);
    assert_eq!(queue.renew(1, lease, 990), Renewal::Renewed { ttl_s: 10 });
    assert_eq!(queue.renew(1, lease, 100), Renewal::Renewed { ttl_s: 10 });
    assert_eq!((queue.expired(10_989, 9), queue.expired(10_990, 9)), (vec![], vec![1]));
}

#[test]
fn a_lease_granted_anew_is_not_the_one_that_was_handed_out() {
    let lease = Lease::granted(2);
    let mut queue = primary([(1, lease), (2, lease)], 0);
    assert!(!queue.is_handed_out(1));
    assert_eq!(queue.expired(3_000, 9), [1, 2]);
    assert!(queue.is_handed_out(1) && queue.is_handed_out(2) && !queue.is_handed_out(3));
    queue.retry(&[2], 5_000);
    assert!(queue.is_handed_out(2), "it will be handed out again");
    for id in [1, 2] {
        queue.revoked(id);
        assert!(!queue.is_handed_out(id));
        queue.granted(id, lease, 3_000);
        assert!(!queue.is_handed_out(id));
    }
    assert_eq!(queue.expired(4_999, 9), []);
}

#[test]
fn what_does_not_fit_into_an_answer_comes_with_the_next() {
    let mut queue = primary([], 0);
    (1..=3).for_each(|id| queue.granted(id, Lease::granted(10), 0));
    assert_eq!(queue.due_notes(5_000, 2), [(1, 5), (2, 5)]);
    assert_eq!(queue.due_notes(5_000, 2), [(3, 5)]);
    assert_eq!(queue.due_notes(5_000, 2), []);
    assert_eq!(queue.expired(10_000, 2), [1, 2]);
    assert_eq!(queue.expired(10_000, 2), [3]);
    assert_eq!(queue.expired(10_000, 2), []);
}

#[test]
fn a_new_leader_starts_from_what_is_noted_and_extends_it() {
    let queue = primary([(1, Lease { granted_s: 600, remaining_s: 40 }), (2, Lease::granted(600))], 5_000);
    assert_eq!((queue.time_to_live(1, 5_000), queue.time_to_live(2, 5_000)), (Some(41), Some(601)));
}

/// What a leader grants on top ends with the first renewal, which may bring the end forward.
#[test]
fn a_renewal_soon_after_promotion_counts_from_its_own_time() {
    let lease = Lease::granted(10);
    let mut queue = primary([(1, lease)], 0);
    assert_eq!(queue.renew(1, lease, 500), Renewal::Renewed { ttl_s: 10 });
    assert_eq!((queue.expired(10_499, 9), queue.expired(10_500, 9)), (vec![], vec![1]));
}

/// Bug catalogue row 55: what ends together is spread, and nothing ends early.
#[test]
fn ends_are_spread_at_promotion() {
    let leases = (1..=3_000).map(|id| (id, Lease::granted(60)));
    let mut queue = primary(leases, 0);
    let mut ended = Vec::new();
    for second in 60..70 {
        let now = queue.expired(second * 1_000 + 999, usize::MAX);
        assert!(now.len() <= 750, "{} in second {second}", now.len());
        ended.extend(now);
    }
    assert_eq!(ended.len(), 3_000);
    assert_eq!(primary([(1, Lease::granted(60))], 0).expired(60_999, 9), []);
}

#[test]
fn a_short_lease_does_not_end_with_a_long_one_of_a_lower_id() {
    let mut queue = primary([(1, Lease::granted(600)), (2, Lease::granted(10))], 0);
    assert_eq!((queue.time_to_live(1, 0), queue.time_to_live(2, 0)), (Some(601), Some(11)));
    assert_eq!((queue.expired(10_999, 9), queue.expired(11_000, 9)), (vec![], vec![2]));
}

#[test]
fn a_lease_kept_alive_three_times_per_ttl_is_never_noted() {
    let lease = Lease::granted(30);
    let mut queue = primary([], 0);
    queue.granted(1, lease, 0);
    for beat in 1..100 {
        assert_eq!(queue.due_notes(beat * 10_000, 9), []);
        assert_eq!(queue.renew(1, lease, beat * 10_000), Renewal::Renewed { ttl_s: 30 });
    }
}

#[test]
fn what_is_left_is_noted_at_each_half_and_every_five_minutes() {
    let mut queue = primary([], 0);
    queue.granted(1, Lease::granted(16), 0);
    queue.granted(2, Lease::granted(3_600), 0);
    let mut noted = Vec::new();
    for now_ms in (0..1_000_000).step_by(500) {
        for (id, remaining_s) in queue.due_notes(now_ms, 9) {
            noted.push((now_ms, id, remaining_s));
            queue.noted(id, remaining_s);
            queue.settle([id]);
        }
    }
    let of =
        |wanted| noted.iter().filter(|(_, id, _)| *id == wanted).map(|(at, _, left)| (*at, *left)).collect::<Vec<_>>();
    assert_eq!(of(1), [(8_000, 8), (12_000, 4), (14_000, 2), (15_000, 1)]);
    assert_eq!(of(2), [(300_000, 3_300), (600_000, 3_000), (900_000, 2_700)]);
    assert_eq!(NOTE_INTERVAL_MS, 300_000);
}

/// Bug catalogue row 52: a promise made after a note is not forgotten by the next leader.
#[test]
fn a_noted_lease_is_renewed_only_after_the_note_is_cleared() {
    let (fresh, noted) = (Lease::granted(10), Lease { granted_s: 10, remaining_s: 5 });
    let mut queue = primary([], 0);
    queue.granted(1, fresh, 0);
    assert_eq!(queue.due_notes(5_000, 9), [(1, 5)]);
    assert_eq!(queue.renew(1, fresh, 5_000), Renewal::Noting, "the note is on its way");
    queue.noted(1, 5);
    assert_eq!(queue.renew(1, noted, 5_000), Renewal::Noting, "until it is settled");
    queue.settle([1]);
    assert_eq!(queue.renew(1, noted, 5_000), Renewal::Noted);
    queue.noted(1, 0);
    assert_eq!(queue.renew(1, fresh, 5_000), Renewal::Renewed { ttl_s: 10 });
    assert_eq!(queue.due_notes(9_999, 9), []);
}

#[test]
fn a_hand_over_notes_whatever_is_worth_a_second() {
    let mut queue = primary([], 0);
    for id in 1..=5 {
        queue.granted(id, Lease::granted(100), 0);
    }
    assert_eq!(queue.all_notes(999, None, 9), []);
    assert_eq!(queue.renew(3, Lease::granted(100), 1_000), Renewal::Renewed { ttl_s: 100 });
    assert_eq!(queue.all_notes(1_000, None, 2), [(1, 99), (2, 99)]);
    assert_eq!(queue.all_notes(1_000, Some(2), 9), [(4, 99), (5, 99)]);
    assert_eq!(queue.all_notes(1_000, None, 9), [], "all of them are on their way");
}

/// An answer that has fewer than it may is the last, so those that are not worth a note do not count.
#[test]
fn a_hand_over_is_not_over_while_more_is_worth_a_note() {
    let mut queue = primary([], 0);
    (1..=5).for_each(|id| queue.granted(id, Lease::granted(100), 0));
    for id in [1, 2] {
        assert_eq!(queue.renew(id, Lease::granted(100), 1_000), Renewal::Renewed { ttl_s: 100 });
    }
    assert_eq!(queue.all_notes(1_000, None, 2), [(3, 99), (4, 99)]);
    assert_eq!(queue.all_notes(1_000, Some(4), 2), [(5, 99)]);
}

/// 0 would be its whole time.
#[test]
fn a_hand_over_notes_a_second_of_what_is_over() {
    for now_ms in [9_001, 10_000, 25_000] {
        let mut queue = primary([], 0);
        queue.granted(1, Lease::granted(10), 0);
        assert_eq!(queue.all_notes(now_ms, None, 9), [(1, 1)]);
    }
}

#[test]
fn resync_keeps_what_was_known_and_learns_the_rest() {
    let mut queue = primary([(1, Lease::granted(10)), (2, Lease::granted(10))], 0);
    queue.resync([(2, Lease { granted_s: 10, remaining_s: 4 }), (3, Lease::granted(20))], 5_000);
    assert_eq!([1, 2, 3].map(|id| queue.time_to_live(id, 5_000)), [None, Some(6), Some(20)]);
    assert_eq!(queue.renew(2, Lease { granted_s: 10, remaining_s: 4 }, 5_000), Renewal::Noted);
}

#[test]
fn resync_takes_over_what_is_noted() {
    let mut queue = primary([], 0);
    queue.granted(1, Lease::granted(10), 0);
    queue.resync([(1, Lease { granted_s: 10, remaining_s: 4 })], 5_000);
    assert_eq!(queue.due_notes(5_000, 9), []);
    assert_eq!(queue.all_notes(6_500, None, 9), [], "4 are left and 4 are noted");
    assert_eq!(queue.due_notes(8_000, 9), [(1, 2)]);
}

#[test]
fn resync_takes_a_lease_with_another_time_to_live_for_a_new_one() {
    for ended in [vec![], vec![1]] {
        let mut queue = primary([], 0);
        queue.granted(1, Lease::granted(10), 0);
        assert_eq!(queue.expired(if ended.is_empty() { 5_000 } else { 10_000 }, 9), ended);
        queue.resync([(1, Lease::granted(60))], 10_000);
        assert_eq!(queue.time_to_live(1, 10_000), Some(60));
        assert_eq!((queue.due_notes(39_999, 9), queue.due_notes(40_000, 9)), (vec![], vec![(1, 30)]));
        assert_eq!((queue.expired(69_999, 9), queue.expired(70_000, 9)), (vec![], vec![1]));
    }
}

/// One that was revoked and granted again while changes were lost looks like the one before.
#[test]
fn resync_gives_a_lease_that_may_be_a_new_one_its_whole_time() {
    let lease = Lease::granted(10);
    let mut queue = primary([], 0);
    queue.granted(1, lease, 0);
    queue.resync([(1, lease)], 5_000);
    assert_eq!(queue.time_to_live(1, 5_000), Some(10));
    assert_eq!(queue.expired(14_999, 9), []);
    assert_eq!(queue.renew(1, lease, 14_999), Renewal::Renewed { ttl_s: 10 });
    assert_eq!(queue.due_notes(14_999, 9), []);
    assert_eq!((queue.expired(24_998, 9), queue.expired(24_999, 9)), (vec![], vec![1]));
    // It never takes any.
    let mut queue = primary([(1, lease)], 0);
    queue.resync([(1, lease)], 0);
    assert_eq!((queue.expired(10_999, 9), queue.expired(11_000, 9)), (vec![], vec![1]));
}

/// A note that was on its way may have met the new one.
#[test]
fn resync_gives_a_lease_whose_note_was_on_its_way_its_whole_time() {
    let noted = Lease { granted_s: 10, remaining_s: 5 };
    let mut queue = primary([], 0);
    queue.granted(1, Lease::granted(10), 0);
    assert_eq!(queue.due_notes(5_000, 9), [(1, 5)]);
    queue.resync([(1, noted)], 6_000);
    assert_eq!(queue.renew(1, noted, 6_000), Renewal::Noting, "until it is settled");
    queue.settle([1]);
    assert_eq!(queue.renew(1, noted, 6_000), Renewal::Noted);
    assert_eq!((queue.expired(15_999, 9), queue.expired(16_000, 9)), (vec![], vec![1]));
}

/// Its revocation may still be in the log, or it was done and this is another lease.
#[test]
fn resync_hands_out_again_what_was_handed_out_and_is_in_the_table() {
    let lease = Lease::granted(10);
    // The outcome of the revocation is not known yet; or was known before, or comes after, and it is to be tried again.
    for (before, after) in [(false, false), (true, false), (false, true)] {
        let mut queue = primary([], 0);
        queue.granted(1, lease, 0);
        assert_eq!(queue.expired(10_000, 9), [1]);
        if before {
            queue.retry(&[1], 14_000);
        }
        queue.resync([(1, lease)], 12_000);
        if after {
            queue.retry(&[1], 15_000);
        }
        assert_eq!(queue.renew(1, lease, 12_000), Renewal::Expired);
        assert_eq!(queue.time_to_live(1, 12_000), Some(0));
        assert_eq!(queue.expired(21_999, 9), [], "it may be a new one");
        assert_eq!(queue.expired(22_000, 9), [1]);
        assert_eq!(queue.expired(u64::MAX, 9), [], "once");
        queue.resync([], 30_000);
        assert!(queue.is_empty());
    }
}

/// What the model knows of a lease.
struct Known {
    lease: Lease,
    end_ms: u64,
}

impl Known {
    /// When what is left is to be noted: at half of what was last noted, which is worth it from a second on.
    fn note_ms(&self) -> Option<u64> {
        let half_ms = self.lease.start_s() as u64 * 500;
        (half_ms >= 1_000).then(|| self.end_ms - half_ms)
    }

    fn renewed(lease: Lease, now_ms: u64) -> Known {
        Known { lease, end_ms: now_ms + lease.granted_s as u64 * 1_000 }
    }
}

/// Those whose time, as `time` has it, has come, in its order.
fn due(model: &BTreeMap<i64, Known>, now_ms: u64, time: impl Fn(&Known) -> Option<u64>) -> Vec<i64> {
    let timed = model.iter().filter_map(|(id, known)| Some((time(known)?, *id)));
    let mut due: Vec<(u64, i64)> = timed.filter(|(at, _)| *at <= now_ms).collect();
    due.sort_unstable();
    due.into_iter().map(|(_, id)| id).collect()
}

proptest! {
    /// Against a table of ends: nothing expires or is noted before its time or stays beyond it, in whatever order things happen.
    #[test]
    fn ends_and_notes_agree_with_a_model(steps in prop::collection::vec((0u8..6, 1i64..8, 1i64..9, 0u64..3_000), 1..200)) {
        let mut queue = primary([], 0);
        let mut model: BTreeMap<i64, Known> = BTreeMap::new();
        let mut now_ms = 0;
        for (what, id, ttl_s, passes) in steps {
            now_ms += passes;
            let ended = due(&model, now_ms, |known| Some(known.end_ms));
            prop_assert_eq!(queue.any_expired(now_ms), !ended.is_empty());
            prop_assert_eq!(&queue.expired(now_ms, usize::MAX), &ended);
            for id in ended {
                queue.revoked(id);
                model.remove(&id);
            }
            let noted = queue.due_notes(now_ms, usize::MAX);
            let ids: Vec<i64> = noted.iter().map(|(id, _)| *id).collect();
            prop_assert_eq!(&ids, &due(&model, now_ms, Known::note_ms));
            for (id, left_s) in noted {
                let known = model.get_mut(&id).unwrap();
                prop_assert_eq!(left_s, (known.end_ms - now_ms).div_ceil(1_000) as i64);
                known.lease.remaining_s = left_s;
                queue.noted(id, left_s);
            }
            queue.settle(ids);
            let lease = Lease::granted(ttl_s);
            match (what, model.get_mut(&id)) {
                (0 | 1, None) => {
                    queue.granted(id, lease, now_ms);
                    model.insert(id, Known::renewed(lease, now_ms));
                }
                (2 | 3, Some(known)) => {
                    let lease = Lease::granted(known.lease.granted_s);
                    if known.lease.remaining_s != 0 {
                        prop_assert_eq!(queue.renew(id, known.lease, now_ms), Renewal::Noted);
                        queue.noted(id, 0);
                    }
                    prop_assert_eq!(queue.renew(id, lease, now_ms), Renewal::Renewed { ttl_s: lease.granted_s });
                    *known = Known::renewed(lease, now_ms);
                }
                (4, Some(_)) => {
                    queue.revoked(id);
                    model.remove(&id);
                }
                (_, _) => {}
            }
            prop_assert_eq!(queue.len(), model.len());
            let left = model.get(&id).map(|known| ((known.end_ms - now_ms) / 1_000) as i64);
            prop_assert_eq!(queue.time_to_live(id, now_ms), left);
        }
    }
}
