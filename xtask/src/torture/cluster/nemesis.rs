//! The faults: which, when, to whom, all drawn from the seed, and always healed again.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::clients::Shared;
use super::fleet::{Entry, Fleet};
use crate::error::{Error, Result};
use crate::node::Kind;
use crate::rng::Rng;

/// How long no change may be acknowledged while everything is healed.
const STALL: Duration = Duration::from_secs(60);

/// How long a node stays away at most if the log is not cut meanwhile.
const AWAY_MAX: Duration = Duration::from_secs(20);

/// The kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Kill,
    KillLeader,
    KillMinority,
    KillAll,
    Terminate,
    Pause,
    PauseLeader,
    Stutter,
    Isolate,
    IsolateLeader,
    Split,
    Mute,
    Deaf,
    Bridge,
    Flaky,
    SlowLink,
    SlowDisk,
    Transfer,
    Replace,
    ReplaceLeader,
    Grow,
    Away,
}

/// What each fault is called on the command line and by people, how often it is drawn from one bag, and whether it needs
/// links that can be cut.
const FAULTS: [(Fault, &str, &str, usize, bool); 22] = [
    (Fault::Kill, "kill", "kill -9 of one node", 2, false),
    (Fault::KillLeader, "kill-leader", "kill -9 of the leader", 2, false),
    (Fault::KillMinority, "kill-minority", "kill -9 of two of five", 1, false),
    (Fault::KillAll, "kill-all", "kill -9 of all nodes", 1, false),
    (Fault::Terminate, "term", "SIGTERM of the leader", 1, false),
    (Fault::Pause, "pause", "pause of one node", 1, false),
    (Fault::PauseLeader, "pause-leader", "pause of the leader", 2, false),
    (Fault::Stutter, "stutter", "short pauses, many", 1, false),
    (Fault::Isolate, "isolate", "partition, one node cut off", 1, true),
    (Fault::IsolateLeader, "isolate-leader", "partition, the leader cut off", 2, true),
    (Fault::Split, "split", "partition, a random minority cut off", 1, true),
    (Fault::Mute, "mute", "one-way: nobody hears one node", 1, true),
    (Fault::Deaf, "deaf", "one-way: one node hears nobody", 1, true),
    (Fault::Bridge, "bridge", "partition with one bridge", 2, true),
    (Fault::Flaky, "flaky", "link up and down", 1, true),
    (Fault::SlowLink, "slow-link", "slow link", 1, true),
    (Fault::SlowDisk, "slow-disk", "slow disk", 1, false),
    (Fault::Transfer, "transfer", "leader moved", 2, false),
    (Fault::Replace, "replace", "member removed, wiped, added again", 2, false),
    (Fault::ReplaceLeader, "replace-leader", "leader removed by itself, wiped, added again", 1, false),
    (Fault::Grow, "grow", "member added, promoted, removed", 1, false),
    (Fault::Away, "away", "kill -9, away until the log is cut", 2, false),
];

/// The faults that the command line names: all, or these.
pub(crate) fn chosen(words: Option<&str>) -> Result<Vec<Fault>> {
    let Some(words) = words.filter(|words| *words != "none") else {
        return Ok(if words.is_some() { Vec::new() } else { FAULTS.iter().map(|(fault, ..)| *fault).collect() });
    };
    let named = |word: &str| FAULTS.iter().find(|(_, known, ..)| *known == word).map(|(fault, ..)| *fault);
    let unknown = |word: &str| Error::Usage(format!("--faults: there is no fault `{word}`; see --faults list"));
    words.split(',').map(|word| named(word).ok_or_else(|| unknown(word))).collect()
}

/// The names of all faults.
pub(crate) fn list() {
    FAULTS.iter().for_each(|(_, word, name, ..)| println!("{word:<15} {name}"));
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Faults that had no effect: a leader that was not moved, say.
    pub(crate) vain: BTreeMap<&'static str, u64>,
    /// The longest time from healing until every node answered.
    pub(crate) recovery_max: Duration,
}

/// The one who does it.
pub(crate) struct Nemesis<'run> {
    pub(crate) fleet: &'run mut Fleet,
    pub(crate) shared: &'run Shared,
    rng: Rng,
    /// Drawn without putting back, so that short runs see every kind.
    bag: Vec<Fault>,
    /// What the bag is filled with.
    wanted: Vec<Fault>,
    done: Done,
}

impl<'run> Nemesis<'run> {
    /// A nemesis for a running cluster that knows the wanted faults, as far as they are possible there.
    pub(crate) fn new(fleet: &'run mut Fleet, shared: &'run Shared, seed: u64, wanted: &[Fault]) -> Nemesis<'run> {
        let (rng, done) = (Rng::new(seed), Done::default());
        let mut nemesis = Nemesis { fleet, shared, rng, bag: Vec::new(), wanted: Vec::new(), done };
        for (fault, _, _, weight, cuts) in FAULTS {
            if wanted.contains(&fault) && nemesis.possible(fault, cuts) {
                nemesis.wanted.extend(std::iter::repeat_n(fault, weight));
            }
        }
        nemesis
    }

    fn possible(&self, fault: Fault, cuts: bool) -> bool {
        match fault {
            Fault::KillMinority => self.fleet.members().len() >= 5,
            Fault::SlowDisk => self.fleet.disks.is_some(),
            // Without a quorum no log is cut, and how far etcd's is cannot be seen.
            Fault::Away => self.fleet.kind == Kind::Tally && self.fleet.members().len() >= 3,
            _ => !cuts || self.fleet.network.can_cut(),
        }
    }

    /// Goes on until the time is over; everything is healed then.
    pub(crate) fn run(mut self, seconds: Duration) -> Result<Done> {
        let begun = Instant::now();
        while begun.elapsed() < seconds && !self.shared.has_failed() {
            self.calm(300, 1500)?;
            let Some(fault) = self.draw() else { continue };
            let acknowledged = self.shared.acknowledged.load(Ordering::Relaxed);
            println!("  {:>6.1} s  {}", begun.elapsed().as_secs_f64(), describe(fault));
            let had_effect = self.inflict(fault).map_err(|error| during(fault, error))?;
            self.recover(acknowledged).map_err(|error| during(fault, error))?;
            let counted = if had_effect { &mut self.done.faults } else { &mut self.done.vain };
            *counted.entry(describe(fault)).or_default() += 1;
        }
        Ok(self.done)
    }

    /// The next fault, if there are any.
    fn draw(&mut self) -> Option<Fault> {
        if self.bag.is_empty() {
            self.bag.clone_from(&self.wanted);
        }
        let index = self.rng.below(self.bag.len() as u64) as usize;
        (index < self.bag.len()).then(|| self.bag.swap_remove(index))
    }

    /// Heals everything and waits until every node answers and changes are acknowledged again.
    fn recover(&mut self, acknowledged: u64) -> Result<()> {
        self.fleet.heal()?;
        let took = self.fleet.settle()?;
        self.done.recovery_max = self.done.recovery_max.max(took);
        let begun = Instant::now();
        while self.shared.acknowledged.load(Ordering::Relaxed) == acknowledged && !self.shared.has_failed() {
            if begun.elapsed() > STALL {
                return Err(Error::Check(format!(
                    "no change was acknowledged for {STALL:?} after everything was healed"
                )));
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.fleet.all_alive()
    }

    /// Does it. False if it had no effect.
    fn inflict(&mut self, fault: Fault) -> Result<bool> {
        let members = self.fleet.members();
        let any = self.one_of(&members);
        let leader = self.fleet.leader().unwrap_or(any);
        let follower = self.other_than(leader);
        let (all_from, all_to) = (|slot| pairs(&[slot], &members), |slot| pairs(&members, &[slot]));
        let done = match fault {
            Fault::Kill => self.kill(&[any]),
            Fault::KillLeader => self.kill(&[leader]),
            Fault::KillMinority => self.kill(&[leader, follower]),
            Fault::KillAll => self.kill(&members),
            Fault::Terminate => self.fleet.terminate(leader),
            Fault::Pause => self.pause(any),
            Fault::PauseLeader => self.pause(leader),
            Fault::Stutter => self.stutter(any),
            Fault::Isolate => self.cut(&[all_from(any), all_to(any)].concat()),
            Fault::IsolateLeader => self.cut(&[all_from(leader), all_to(leader)].concat()),
            Fault::Split => self.split(&members),
            Fault::Mute => self.cut(&all_from(any)),
            Fault::Deaf => self.cut(&all_to(any)),
            Fault::Bridge => self.bridge(&members, any),
            Fault::Flaky => self.flaky(&[all_from(any), all_to(any)].concat()),
            Fault::SlowLink => {
                self.fleet.network.slow(any)?;
                self.calm(1500, 4000)
            }
            Fault::SlowDisk => {
                self.fleet.disks.as_ref().map_or(Ok(()), |disks| disks.slow(any))?;
                self.calm(1500, 4000)
            }
            Fault::Transfer => {
                // A refusal (nobody leads at the moment, the target is behind) is an answer as well.
                let answered = self.fleet.transfer(leader, follower).is_ok();
                self.calm(100, 500)?;
                // It may have come after the answer.
                return Ok(answered || self.fleet.leader().is_some_and(|now| now != leader));
            }
            Fault::Replace => self.replace(any, leader),
            Fault::ReplaceLeader => self.replace(leader, leader),
            Fault::Grow => return self.grow(leader),
            Fault::Away => return self.away(any),
        };
        done.map(|()| true)
    }

    fn kill(&mut self, slots: &[usize]) -> Result<()> {
        slots.iter().try_for_each(|slot| self.fleet.kill(*slot))?;
        self.calm(0, 2500)?;
        // Sometimes again while it starts.
        if self.rng.below(3) == 0 {
            slots.iter().try_for_each(|slot| self.fleet.start(*slot))?;
            self.calm(10, 600)?;
            slots.iter().try_for_each(|slot| self.fleet.kill(*slot))?;
        }
        Ok(())
    }

    /// Longer than an election.
    fn pause(&mut self, slot: usize) -> Result<()> {
        self.fleet.pause(slot)?;
        self.calm(1500, 4000)?;
        // Sometimes it is killed in its sleep.
        if self.rng.below(4) == 0 { self.fleet.kill(slot) } else { self.fleet.resume(slot) }
    }

    /// So long that what it misses is no longer in anybody's log, and it needs a snapshot.
    fn away(&mut self, slot: usize) -> Result<bool> {
        let before = self.fleet.status(slot).map_or(u64::MAX, |status| status.applied);
        self.fleet.kill(slot)?;
        self.shared.flood.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        let result = loop {
            if let Err(error) = self.calm(200, 300) {
                break Err(error);
            }
            let others: Vec<usize> = self.fleet.members().into_iter().filter(|other| *other != slot).collect();
            let cut = others.iter().all(|other| self.fleet.purged(*other).is_some_and(|purged| purged > before));
            if cut || begun.elapsed() > AWAY_MAX {
                break Ok(cut);
            }
        };
        self.shared.flood.store(false, Ordering::Relaxed);
        result
    }

    fn stutter(&mut self, slot: usize) -> Result<()> {
        for _ in 0..12 {
            self.fleet.pause(slot)?;
            self.calm(20, 250)?;
            self.fleet.resume(slot)?;
            self.calm(20, 120)?;
        }
        Ok(())
    }

    fn cut(&mut self, pairs: &[(usize, usize)]) -> Result<()> {
        self.fleet.network.cut(pairs)?;
        self.calm(1200, 4000)?;
        // Sometimes something else happens meanwhile.
        let members = self.fleet.members();
        match self.rng.below(5) {
            0 => {
                let slot = self.one_of(&members);
                self.fleet.kill(slot)?;
                self.calm(200, 1000)?;
                self.fleet.start(slot)?;
                self.calm(200, 1500)
            }
            1 => {
                let slot = self.one_of(&members);
                self.pause(slot)
            }
            _ => Ok(()),
        }
    }

    fn split(&mut self, members: &[usize]) -> Result<()> {
        let mut majority = members.to_vec();
        let mut minority = Vec::new();
        while minority.len() < (members.len() - 1) / 2 {
            minority.push(majority.swap_remove(self.rng.below(majority.len() as u64) as usize));
        }
        self.cut(&[pairs(&minority, &majority), pairs(&majority, &minority)].concat())
    }

    /// Two halves that both see one node, and not each other.
    fn bridge(&mut self, members: &[usize], bridge: usize) -> Result<()> {
        let mut left: Vec<usize> = members.iter().copied().filter(|slot| *slot != bridge).collect();
        let right = left.split_off(left.len() / 2);
        self.cut(&[pairs(&left, &right), pairs(&right, &left)].concat())
    }

    fn flaky(&mut self, pairs: &[(usize, usize)]) -> Result<()> {
        for _ in 0..10 {
            self.fleet.network.cut(pairs)?;
            self.calm(20, 400)?;
            self.fleet.network.mend()?;
            self.calm(20, 250)?;
        }
        Ok(())
    }

    /// A member is removed and ends, loses its data, and comes back as another member in the same place.
    fn replace(&mut self, slot: usize, via: usize) -> Result<()> {
        self.fleet.settle()?;
        self.fleet.remove(via, slot)?;
        self.calm(0, 1000)?;
        let via = self.other_than(slot);
        // Straight in as a voter, or as a learner first.
        let learner = self.rng.below(3) != 0;
        let cluster = self.fleet.add(via, slot, learner)?;
        self.join(via, slot, cluster, learner)
    }

    fn grow(&mut self, via: usize) -> Result<bool> {
        self.fleet.settle()?;
        let Some(slot) = self.fleet.spare() else { return Ok(false) };
        let cluster = self.fleet.add(via, slot, true)?;
        self.join(via, slot, cluster, true)?;
        self.calm(200, 1500)?;
        self.fleet.settle()?;
        // It may be the leader by now; either way it goes.
        self.fleet.remove(via, slot)?;
        Ok(true)
    }

    fn join(&mut self, via: usize, slot: usize, cluster: String, learner: bool) -> Result<()> {
        self.fleet.renew(slot, Entry::Existing(cluster))?;
        self.fleet.start(slot)?;
        // Sometimes it is killed in the middle of its first snapshot.
        if self.rng.below(2) == 0 && self.fleet.kind == Kind::Tally {
            self.calm(20, 800)?;
            self.fleet.kill(slot)?;
            self.fleet.start(slot)?;
        }
        if learner {
            self.fleet.promote(via, slot)?;
        }
        Ok(())
    }

    /// Waits, and notices whoever ends meanwhile.
    fn calm(&mut self, at_least_ms: u64, at_most_ms: u64) -> Result<()> {
        let span = Duration::from_millis(at_least_ms + self.rng.below(at_most_ms - at_least_ms));
        let begun = Instant::now();
        while begun.elapsed() < span && !self.shared.has_failed() {
            thread::sleep(Duration::from_millis(50).min(span.saturating_sub(begun.elapsed())));
            self.fleet.all_alive()?;
        }
        Ok(())
    }

    fn one_of(&mut self, slots: &[usize]) -> usize {
        slots[self.rng.below(slots.len() as u64) as usize]
    }

    fn other_than(&mut self, slot: usize) -> usize {
        let others: Vec<usize> = self.fleet.members().into_iter().filter(|other| *other != slot).collect();
        self.one_of(&others)
    }
}

/// Every ordered pair of two different slots, one from each side.
fn pairs(from: &[usize], to: &[usize]) -> Vec<(usize, usize)> {
    let all = from.iter().flat_map(|from| to.iter().map(|to| (*from, *to)));
    all.filter(|(from, to)| from != to).collect()
}

pub(crate) fn describe(fault: Fault) -> &'static str {
    FAULTS.iter().find(|(known, ..)| *known == fault).map_or("?", |(_, _, name, ..)| name)
}

fn during(fault: Fault, error: Error) -> Error {
    Error::Check(format!("during or after \"{}\": {error}", describe(fault)))
}

#[cfg(test)]
mod tests {
    use super::{FAULTS, Fault, chosen, pairs};

    #[test]
    fn pairs_are_directed() {
        assert_eq!(pairs(&[1], &[0, 1, 2]), [(1, 0), (1, 2)]);
        assert_eq!(pairs(&[0, 1], &[2]), [(0, 2), (1, 2)]);
    }

    #[test]
    fn every_fault_has_a_name_of_its_own() {
        let mut names: Vec<&str> = FAULTS.iter().flat_map(|(_, word, name, ..)| [*word, *name]).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 2 * FAULTS.len());
    }

    #[test]
    fn faults_are_chosen_by_name() {
        assert_eq!(chosen(None).map(|all| all.len()).ok(), Some(FAULTS.len()));
        assert_eq!(chosen(Some("kill,bridge")).ok(), Some(vec![Fault::Kill, Fault::Bridge]));
        assert_eq!(chosen(Some("none")).ok(), Some(Vec::new()));
        assert!(chosen(Some("kill,nonsense")).is_err());
    }
}
