//! A command in the form in which it is proposed, logged and sent to peers: encoded exactly once.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use tally_apply::Command;

use crate::codec::KIND_COMMAND;

/// An encoded command with the byte in front of it that makes it a log entry's payload. Cheap to clone.
///
/// [`encode`](EncodedCommand::encode) writes both into one buffer, which the log then stores as it is; building one
/// from bytes that were encoded elsewhere copies them once.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedCommand {
    payload: Bytes,
}

impl EncodedCommand {
    /// Encodes a command.
    pub fn encode(command: &Command) -> EncodedCommand {
        let mut payload = BytesMut::with_capacity(size_hint(command));
        payload.put_u8(KIND_COMMAND);
        command.encode(&mut payload);
        EncodedCommand { payload: payload.freeze() }
    }

    /// The encoded command alone.
    pub fn command(&self) -> Bytes {
        self.payload.slice(1..)
    }

    /// Takes a log entry's payload whose first byte says that it is a command.
    pub(crate) fn from_payload(payload: Bytes) -> EncodedCommand {
        EncodedCommand { payload }
    }

    /// The whole payload, as the log stores it.
    pub(crate) fn into_payload(self) -> Bytes {
        self.payload
    }

    /// Bytes it takes in the log.
    pub(crate) fn bytes(&self) -> usize {
        self.payload.len()
    }
}

impl From<Bytes> for EncodedCommand {
    fn from(command: Bytes) -> EncodedCommand {
        let mut payload = BytesMut::with_capacity(1 + command.len());
        payload.put_u8(KIND_COMMAND);
        payload.put_slice(&command);
        EncodedCommand { payload: payload.freeze() }
    }
}

impl From<&Command> for EncodedCommand {
    fn from(command: &Command) -> EncodedCommand {
        EncodedCommand::encode(command)
    }
}

impl fmt::Debug for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedCommand({} bytes)", self.payload.len())
    }
}

impl fmt::Display for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// About how many bytes the payload takes, so that the usual command is encoded with one allocation.
fn size_hint(command: &Command) -> usize {
    match command {
        Command::Put(put) => 64 + put.key.len() + put.value.len(),
        Command::DeleteRange(_)
        | Command::Txn(_)
        | Command::Compact { .. }
        | Command::Alarm(_)
        | Command::SetFeatureLevel { .. }
        | Command::SetMember(_) => 512,
    }
}
