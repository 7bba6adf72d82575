//! A command on its way into the log: encoded exactly once, stamped with who proposed it when it is known who leads.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use tally_apply::{Command, DecodeError};

use crate::codec::{KIND_COMMAND, KIND_PROPOSAL, PROPOSAL_HEADER};

/// An encoded command that has not been proposed yet, with room in front of it for what the log puts there.
///
/// [`encode`](EncodedCommand::encode) writes into the buffer that the log then stores as it is; building one from bytes
/// that were encoded elsewhere copies them once.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedCommand {
    /// The header, not filled in yet, and the command.
    buffer: BytesMut,
}

impl EncodedCommand {
    /// Encodes a command.
    pub fn encode(command: &Command) -> EncodedCommand {
        let mut buffer = with_header_room(size_hint(command));
        command.encode(&mut buffer);
        EncodedCommand { buffer }
    }

    /// The encoded command alone.
    pub fn command(&self) -> &[u8] {
        &self.buffer[PROPOSAL_HEADER..]
    }

    /// Bytes it takes in the log.
    pub(crate) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The log entry's payload.
    pub(crate) fn stamp(mut self, stamp: Stamp) -> LogPayload {
        stamp.write(&mut self.buffer);
        LogPayload(self.buffer.freeze())
    }
}

fn with_header_room(command_bytes: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(PROPOSAL_HEADER + command_bytes);
    buffer.put_bytes(0, PROPOSAL_HEADER);
    buffer
}

impl From<Bytes> for EncodedCommand {
    fn from(command: Bytes) -> EncodedCommand {
        let mut buffer = with_header_room(command.len());
        buffer.put_slice(&command);
        EncodedCommand { buffer }
    }
}

impl From<&Command> for EncodedCommand {
    fn from(command: &Command) -> EncodedCommand {
        EncodedCommand::encode(command)
    }
}

impl fmt::Debug for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedCommand({} bytes)", self.command().len())
    }
}

/// Who proposed a command, and to the leader of which term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The process that waits for the outcome: a random number made at its start, so that a restarted one never takes
    /// what an earlier one proposed for its own.
    pub(crate) origin: u64,
    /// Counts the origin's proposals.
    pub(crate) seq: u64,
    /// The term it was meant for. In a log entry of any other term the command does nothing, on every replica.
    pub(crate) term: u64,
}

impl Stamp {
    fn write(self, buffer: &mut [u8]) {
        buffer[0] = KIND_PROPOSAL;
        buffer[1..9].copy_from_slice(&self.origin.to_be_bytes());
        buffer[9..17].copy_from_slice(&self.seq.to_be_bytes());
        buffer[17..25].copy_from_slice(&self.term.to_be_bytes());
    }

    /// Reads it from an entry's payload, if that is a whole proposal.
    pub(crate) fn read(payload: &[u8]) -> Option<Stamp> {
        let (header, _) = payload.split_first_chunk::<PROPOSAL_HEADER>()?;
        let number = |at: usize| header[at..at + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        (header[0] == KIND_PROPOSAL).then(|| Stamp { origin: number(1), seq: number(9), term: number(17) })
    }
}

/// A log entry's payload that carries a command: what is stored, sent to peers and applied. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct LogPayload(Bytes);

impl LogPayload {
    /// Takes a payload whose first byte says that it carries a command, and that is long enough for its kind.
    pub(crate) fn new(payload: Bytes) -> LogPayload {
        LogPayload(payload)
    }

    /// Who proposed it; `None` for the older form that does not say.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        Stamp::read(&self.0)
    }

    /// The encoded command alone.
    pub(crate) fn command(&self) -> Bytes {
        self.0.slice(if self.0.first() == Some(&KIND_COMMAND) { 1 } else { PROPOSAL_HEADER }..)
    }

    /// The command.
    pub(crate) fn decode(&self) -> Result<Command, DecodeError> {
        Command::decode(&self.command())
    }

    /// The same command, meant for another term.
    pub(crate) fn restamped(&self, stamp: Stamp) -> LogPayload {
        let mut buffer = BytesMut::from(&self.0[..]);
        stamp.write(&mut buffer);
        LogPayload(buffer.freeze())
    }

    /// The whole payload.
    pub(crate) fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Debug for LogPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogPayload({} bytes)", self.0.len())
    }
}

impl fmt::Display for LogPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// About how many bytes the command takes, so that the usual one is encoded with one allocation.
fn size_hint(command: &Command) -> usize {
    match command {
        Command::Put(put) => 64 + put.key.len() + put.value.len(),
        Command::DeleteRange(_)
        | Command::Txn(_)
        | Command::Compact { .. }
        | Command::Alarm(_)
        | Command::SetFeatureLevel { .. }
        | Command::SetMember(_)
        | Command::RemoveMember { .. } => 512,
        Command::LeaseGrant { .. } | Command::LeaseRevoke { .. } => 64,
        Command::LeaseCheckpoint { remaining, .. } => 64 + 20 * remaining.len(),
        Command::LeaseExpire { ids, .. } => 64 + 11 * ids.len(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const STAMP: Stamp = Stamp { origin: 0x0102_0304_0506_0708, seq: 9, term: 3 };

    #[test]
    fn a_stamp_is_read_back_and_can_be_renewed() {
        let command = EncodedCommand::from(Bytes::from_static(b"command"));
        assert_eq!(command.command(), b"command");
        let payload = command.stamp(STAMP);
        assert_eq!(payload.stamp(), Some(STAMP));
        assert_eq!(payload.command(), b"command"[..]);
        let again = payload.restamped(Stamp { term: 4, ..STAMP });
        assert_eq!((again.stamp().unwrap().term, again.command()), (4, payload.command()));
        assert_eq!(payload.stamp().unwrap().term, 3);
    }

    #[test]
    fn the_older_form_has_no_stamp() {
        let payload = LogPayload::new(Bytes::from_static(b"\x02command"));
        assert_eq!((payload.stamp(), payload.command()), (None, Bytes::from_static(b"command")));
        assert_eq!(Stamp::read(&[KIND_PROPOSAL; PROPOSAL_HEADER - 1]), None);
    }
}
