//! The gate: which commands the raised alarms let through. It looks at replicated state alone.

use tally_mvcc::{Op, TxnRequest};

use crate::alarm::{AlarmKind, Alarms};
use crate::command::Command;
use crate::outcome::Rejection;

/// Refuses what the alarms forbid: under NOSPACE whatever adds data, under CORRUPT every client command.
pub(crate) fn check(alarms: &Alarms, command: &Command) -> Result<(), Rejection> {
    let administrative = match command {
        Command::Put(_) | Command::DeleteRange(_) | Command::Txn(_) | Command::Compact { .. } => false,
        Command::Alarm(_) | Command::SetFeatureLevel { .. } => true,
        Command::SetMember(_) | Command::RemoveMember { .. } => true,
        Command::LeaseGrant { .. } | Command::LeaseRevoke { .. } | Command::LeaseExpire { .. } => false,
        // It says how long leases last, not what is stored; and renewing one needs it.
        Command::LeaseCheckpoint { .. } => true,
    };
    if administrative {
        return Ok(());
    }
    if alarms.any(AlarmKind::Corrupt) {
        return Err(Rejection::Corrupt);
    }
    let adds_data = match command {
        Command::Put(_) | Command::LeaseGrant { .. } => true,
        Command::Txn(txn) => puts(txn),
        Command::DeleteRange(_)
        | Command::Compact { .. }
        | Command::Alarm(_)
        | Command::SetFeatureLevel { .. }
        | Command::SetMember(_)
        | Command::RemoveMember { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeaseCheckpoint { .. }
        | Command::LeaseExpire { .. } => false,
    };
    if adds_data && alarms.any(AlarmKind::NoSpace) { Err(Rejection::NoSpace) } else { Ok(()) }
}

/// Whether any branch of the transaction puts, nested ones included.
fn puts(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Put(_) => true,
        Op::Txn(nested) => puts(nested),
        Op::Range(_) | Op::Delete(_) => false,
    })
}
