//! The first words on every channel: who speaks, and why somebody is not spoken to.
//!
//! ```text
//! Hello    directory 16 bytes | start u64 | last u64 | applied u64 | more, from newer programs
//! Reject   verdict u8 | two u64 | more, from newer programs
//! ```
//! A member that has lost its log has lost its vote and the entries it has acknowledged: if it took part again as if
//! nothing had happened, an entry could be committed and then gone. So both sides look at who the other is before they
//! believe it: the UUID of its data directory must be the published one, and its log must still reach as far as it has
//! said, to this process, that it holds committed entries.

use bytes::{BufMut, Bytes};

use super::body::Input;
use super::frame::{Address, FrameError, Kind, VERSION, encode};
use super::inbound::{Inbound, InboundError};
use super::net::Net;
use super::peers::Peer;
use super::{Host, Standing};
use crate::codec::CodecError;

/// Bytes of a Hello.
const HELLO_BYTES: usize = 40;
/// Bytes of a Reject.
const REJECT_BYTES: usize = 17;

/// Why a member is refused by another one. The text speaks to the one that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Verdict {
    /// The other one is in another cluster.
    #[error(
        "the other member is of cluster {cluster:x}: check the peer URLs, the initial cluster and its token on both sides"
    )]
    WrongCluster {
        /// The cluster of the one that refuses.
        cluster: u64,
    },
    /// The other one is not the member that was addressed.
    #[error("the member behind this peer URL is {member:x}, another one than was addressed: check the peer URLs")]
    WrongReceiver {
        /// The one that refuses.
        member: u64,
    },
    /// This member was removed from the cluster.
    #[error(
        "this member was removed from the cluster for ever: delete its data directory, and add it as a new member if it \
         is to come back"
    )]
    Removed,
    /// This member's data directory is not the one that the cluster knows.
    #[error(
        "this member's data directory is not the one with which it joined: what it had acknowledged and voted is lost; \
         put the right directory back, or remove the member, and add it again with an empty directory"
    )]
    DirectoryReplaced,
    /// This member's data directory is older than it was.
    #[error(
        "this member's log ends at {found}, but it has acknowledged committed entries up to {acked}: an older copy of \
         its data directory was put in place; put the newest one back, or remove the member, and add it again with an \
         empty directory"
    )]
    Behind {
        /// What it had acknowledged.
        acked: u64,
        /// The last entry of its log.
        found: u64,
    },
    /// Another process speaks for this member.
    #[error(
        "another process runs as this member, with a copy of its data directory: stop one of the two, and delete its directory"
    )]
    Twin,
    /// The programs have no version of the frames in common.
    #[error("the other member speaks version {supported} of the peer protocol: run programs of adjacent versions")]
    Version {
        /// What the one that refuses speaks.
        supported: u8,
    },
}

impl Verdict {
    fn to_parts(self) -> (u8, u64, u64) {
        match self {
            Verdict::WrongCluster { cluster } => (1, cluster, 0),
            Verdict::WrongReceiver { member } => (2, member, 0),
            Verdict::Removed => (3, 0, 0),
            Verdict::DirectoryReplaced => (4, 0, 0),
            Verdict::Behind { acked, found } => (5, acked, found),
            Verdict::Version { supported } => (6, supported.into(), 0),
            Verdict::Twin => (7, 0, 0),
        }
    }

    pub(super) fn decode(body: Bytes) -> Result<Verdict, CodecError> {
        let mut input = Input::new("refusal", body);
        match (input.u8()?, input.u64()?, input.u64()?) {
            (1, cluster, _) => Ok(Verdict::WrongCluster { cluster }),
            (2, member, _) => Ok(Verdict::WrongReceiver { member }),
            (3, ..) => Ok(Verdict::Removed),
            (4, ..) => Ok(Verdict::DirectoryReplaced),
            (5, acked, found) => Ok(Verdict::Behind { acked, found }),
            (6, supported, _) => Ok(Verdict::Version { supported: u8::try_from(supported).unwrap_or(u8::MAX) }),
            (7, ..) => Ok(Verdict::Twin),
            _ => Err(input.malformed("a verdict that this program does not know")),
        }
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// The UUID of its data directory.
    pub(super) directory: [u8; 16],
    /// Random per start of its process.
    pub(super) start_id: u64,
    /// The last entry of its log.
    pub(super) last: u64,
    /// Up to where it has applied, and so holds committed entries durably.
    pub(super) applied: u64,
}

impl Hello {
    /// This member's own, as of now.
    pub(super) fn own(net: &Net, host: &dyn Host) -> Hello {
        let local = &net.inner.local;
        // Applied before last: the log never ends before what is applied.
        let applied = host.applied();
        Hello { directory: local.directory, start_id: local.start_id, last: host.log_last().max(applied), applied }
    }

    pub(super) fn frame(&self, address: Address) -> Bytes {
        encode(address, Kind::Hello, HELLO_BYTES, |out| {
            out.put_slice(&self.directory);
            out.put_u64(self.start_id);
            out.put_u64(self.last);
            out.put_u64(self.applied);
        })
    }

    pub(super) fn decode(body: Bytes) -> Result<Hello, CodecError> {
        let mut input = Input::new("greeting", body);
        Ok(Hello { directory: input.array()?, start_id: input.u64()?, last: input.u64()?, applied: input.u64()? })
    }

    /// Whether its sender may take part. What it says about itself is remembered only if so.
    pub(super) fn check(&self, net: &Net, host: &dyn Host, peer: &Peer) -> Result<(), Verdict> {
        self.check_standing(host, peer)?;
        // A process cannot fall behind itself: its greeting may only be older than what it has acknowledged since.
        let (acked, found) = (peer.kept(), self.last);
        if found < acked && !peer.is_process(self.start_id) {
            return Err(Verdict::Behind { acked, found });
        }
        // As long as it takes to be sure that a process is gone; the one that replaces it tries again meanwhile.
        if !peer.admits(self.start_id, net.inner.config.connect_timeout) {
            return Err(Verdict::Twin);
        }
        peer.keeps(self.applied);
        Ok(())
    }

    /// Whether its sender still may take part, with what has been learned since it said Hello.
    pub(super) fn check_standing(&self, host: &dyn Host, peer: &Peer) -> Result<(), Verdict> {
        match host.standing(peer.id) {
            Standing::Removed => Err(Verdict::Removed),
            Standing::Known { directory: Some(published) } if published != self.directory => {
                Err(Verdict::DirectoryReplaced)
            }
            Standing::Known { .. } | Standing::Unknown => Ok(()),
        }
    }
}

/// The frame that tells a verdict.
pub(super) fn reject(address: Address, verdict: Verdict) -> Bytes {
    let (code, first, second) = verdict.to_parts();
    encode(address, Kind::Reject, REJECT_BYTES, |out| {
        out.put_u8(code);
        out.put_u64(first);
        out.put_u64(second);
    })
}

/// What the first frame of a channel said.
pub(super) enum Greeting {
    /// A Hello from that member.
    Hello(u64, Hello),
    /// This member is refused by that one.
    Rejected(u64, Verdict),
    /// That member is to be refused.
    Refused(u64, Verdict),
}

/// Why the first frame of a channel says nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetingError {
    #[error(transparent)]
    Inbound(#[from] InboundError),
    #[error(transparent)]
    Body(#[from] CodecError),
    #[error("the first frame is of kind {0:?} instead of a greeting")]
    Kind(Kind),
}

impl From<FrameError> for GreetingError {
    fn from(error: FrameError) -> GreetingError {
        GreetingError::Inbound(error.into())
    }
}

/// Reads the first frame.
pub(super) async fn greeting(net: &Net, inbound: &mut Inbound) -> Result<Greeting, GreetingError> {
    let frame = inbound.next().await?;
    let Address { cluster, from, to } = frame.address;
    let local = &net.inner.local;
    match frame.kind {
        Kind::Reject => Ok(Greeting::Rejected(from, Verdict::decode(frame.body)?)),
        Kind::Hello if frame.version != VERSION => Ok(Greeting::Refused(from, Verdict::Version { supported: VERSION })),
        Kind::Hello if cluster != local.cluster_id => {
            Ok(Greeting::Refused(from, Verdict::WrongCluster { cluster: local.cluster_id }))
        }
        Kind::Hello if to != local.member_id || from == local.member_id => {
            Ok(Greeting::Refused(from, Verdict::WrongReceiver { member: local.member_id }))
        }
        Kind::Hello => Ok(Greeting::Hello(from, Hello::decode(frame.body)?)),
        found => Err(GreetingError::Kind(found)),
    }
}

/// Tells the host that a peer refuses this member, and logs it once.
pub(super) fn refused_here(net: &Net, by: u64, verdict: Verdict) {
    net.inner.complaints.make(super::complaints::Complaint::RefusedHere, by, &verdict);
    if let Some(host) = net.host() {
        host.told(verdict, by);
    }
}
