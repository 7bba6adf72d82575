//! When a stream's connection has told its watchers everything, once the store stands still, and when it never will.
//!
//! A lost wake-up is only seen by whoever waits: a question for progress, or a new connection, brings what was forgotten. So
//! streams that follow everything, and half of the others, ask nothing once the writers stop, and wait where they are.
//! Those who follow everything know from the last revision that nothing is missing; for the others silence has to say it, and
//! what they lack then is found when everything that was told is compared with the history.
//!
//! **Invariant**: silence is what reads waited for in vain since the last byte, not time on a clock, so that a stream that got
//! no processor for a while does not take that for silence.

use std::time::Duration;

use super::rpc::{Reply, Rpc};
use super::stream::Stream;
use crate::node::Kind;

/// How long a stream may take, once the store stands still, until all its watchers have been told everything.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing may arrive before a stream of etcd, which cannot be asked, has told everything.
const SILENCE_ETCD: Duration = Duration::from_secs(15);
/// How long nothing may arrive for those who follow everything and lack something: once before their node is asked whether
/// it answers at all, and once more after it did.
const SILENCE: Duration = Duration::from_secs(10);
/// The same for those who cannot know whether they lack something.
const SILENCE_PATIENT: Duration = Duration::from_secs(5);
/// How long the node has for that answer.
const ANSWER: Duration = Duration::from_secs(8);

/// How things stand when the store stands still.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) kind: Kind,
    /// Whether the stream can be asked.
    pub(super) open: bool,
    /// Whether its watchers are told of every revision, so that the last one tells that nothing is missing.
    pub(super) everything: bool,
    /// Whether it asks nothing, though its watchers cannot know that nothing is missing.
    pub(super) patient: bool,
    /// Whether all its watchers were created on this connection.
    pub(super) created: bool,
    /// Whether they know that they have been told everything.
    pub(super) told: bool,
    /// How long nothing has arrived.
    pub(super) silent: Duration,
    /// How long the store has been standing still for this connection.
    pub(super) waited: Duration,
    /// Whether the node answered something else after the first silence.
    pub(super) answered: bool,
}

/// What follows from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Everything has been told.
    Told,
    /// Only another connection can tell for certain.
    Elsewhere,
    /// It goes on reading, and may ask.
    Ask,
    /// It goes on reading.
    Listen,
    /// Its node must show that it answers.
    Probe,
    /// Nothing comes any more, though something is missing and the node answers others.
    Forgotten,
    /// It takes too long.
    Late,
}

impl Standing {
    /// What follows.
    pub(super) fn verdict(self) -> Verdict {
        let Standing { kind, open, everything, patient, created, told, silent, waited, answered } = self;
        let unasked = everything || patient;
        // A real etcd may send all that a stream lacks as one message, which takes as long as it takes.
        let late = if kind == Kind::Etcd { silent } else { waited };
        let silence = if patient { SILENCE_PATIENT } else { SILENCE };
        match kind {
            _ if told && created => Verdict::Told,
            Kind::Etcd if !everything && created && silent >= SILENCE_ETCD => Verdict::Told,
            Kind::Etcd if !created && silent >= SILENCE_ETCD => Verdict::Elsewhere,
            Kind::Tally if everything && silent >= SILENCE && answered => Verdict::Forgotten,
            Kind::Tally if patient && created && silent >= silence && answered => Verdict::Told,
            // What was wished for while the stream could not be asked any more is asked for on another connection.
            Kind::Tally if patient && !created && silent >= silence => Verdict::Elsewhere,
            _ if late >= PATIENCE => Verdict::Late,
            Kind::Tally if unasked && silent >= silence => Verdict::Probe,
            Kind::Tally if unasked => Verdict::Listen,
            Kind::Tally if !open => Verdict::Elsewhere,
            Kind::Tally => Verdict::Ask,
            Kind::Etcd => Verdict::Listen,
        }
    }
}

/// Whether the node of a silent stream answers others; its silence counts anew then, because the node may have been starved
/// until now.
pub(super) fn probe(kind: Kind, address: std::net::SocketAddr, stream: &mut Stream) -> bool {
    let reply = Rpc::new(kind, address).call("/v3/kv/range", r#"{"key":"AA==","serializable":true}"#, ANSWER);
    stream.silent = Duration::ZERO;
    matches!(reply, Reply::Done(_))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{PATIENCE, SILENCE, SILENCE_ETCD, SILENCE_PATIENT, Standing, Verdict};
    use crate::node::Kind;

    const OPEN: Standing = Standing {
        kind: Kind::Tally,
        open: true,
        everything: false,
        patient: false,
        created: true,
        told: false,
        silent: Duration::ZERO,
        waited: Duration::ZERO,
        answered: false,
    };

    #[test]
    fn who_follows_everything_waits_unasked_and_is_then_forgotten() {
        for open in [true, false] {
            let steady = Standing { everything: true, open, ..OPEN };
            assert_eq!(steady.verdict(), Verdict::Listen);
            assert_eq!(Standing { told: true, ..steady }.verdict(), Verdict::Told);
            // A starved node is no reason: it must have answered, and had its time after that.
            let silent = Standing { silent: SILENCE, ..steady };
            assert_eq!(silent.verdict(), Verdict::Probe);
            assert_eq!(Standing { answered: true, ..steady }.verdict(), Verdict::Listen);
            assert_eq!(Standing { answered: true, ..silent }.verdict(), Verdict::Forgotten);
            assert_eq!(Standing { waited: PATIENCE, ..steady }.verdict(), Verdict::Late);
        }
    }

    #[test]
    fn who_is_patient_waits_unasked_for_a_silence_beside_an_answer() {
        for open in [true, false] {
            let patient = Standing { patient: true, open, ..OPEN };
            assert_eq!(patient.verdict(), Verdict::Listen);
            let silent = Standing { silent: SILENCE_PATIENT, ..patient };
            assert_eq!(silent.verdict(), Verdict::Probe);
            assert_eq!(Standing { answered: true, ..patient }.verdict(), Verdict::Listen);
            assert_eq!(Standing { answered: true, ..silent }.verdict(), Verdict::Told);
            // Who was never created was told nothing.
            assert_eq!(Standing { created: false, ..silent }.verdict(), Verdict::Elsewhere);
            assert_eq!(Standing { created: false, ..patient }.verdict(), Verdict::Listen);
            assert_eq!(Standing { waited: PATIENCE, ..patient }.verdict(), Verdict::Late);
        }
    }

    #[test]
    fn others_ask_or_go_where_they_can() {
        assert_eq!(OPEN.verdict(), Verdict::Ask);
        assert_eq!(Standing { silent: SILENCE_ETCD, ..OPEN }.verdict(), Verdict::Ask);
        assert_eq!(Standing { open: false, ..OPEN }.verdict(), Verdict::Elsewhere);
        assert_eq!(Standing { waited: PATIENCE, ..OPEN }.verdict(), Verdict::Late);
    }

    #[test]
    fn silence_of_etcd_is_enough_only_for_watchers_of_keys_that_exist() {
        let deaf = Standing { kind: Kind::Etcd, open: false, ..OPEN };
        assert_eq!(Standing { silent: Duration::from_secs(3), ..deaf }.verdict(), Verdict::Listen);
        let silent = Standing { silent: SILENCE_ETCD, ..deaf };
        assert_eq!(silent.verdict(), Verdict::Told);
        assert_eq!(Standing { everything: true, ..silent }.verdict(), Verdict::Listen);
        assert_eq!(Standing { created: false, ..silent }.verdict(), Verdict::Elsewhere);
        assert_eq!(Standing { created: false, told: true, ..silent }.verdict(), Verdict::Elsewhere);
        assert_eq!(Standing { created: false, told: true, ..deaf }.verdict(), Verdict::Listen);
        // As long as something comes it may go on.
        assert_eq!(Standing { waited: PATIENCE, ..deaf }.verdict(), Verdict::Listen);
        assert_eq!(Standing { everything: true, silent: PATIENCE, ..deaf }.verdict(), Verdict::Late);
    }
}
