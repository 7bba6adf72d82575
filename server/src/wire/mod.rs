//! The JSON form of etcd's messages: requests in, responses out. Nothing here knows HTTP, Raft or the store's inner life.
//!
//! ```text
//!   body ──► syntax (one JSON value?) ──► read/base64 (typed fields) ──► request (messages) ──► convert (domain requests)
//!   stored records, replies ──► write (digits, base64, strings) ──► response (messages) ──► body
//! ```
//!
//! - **Invariant**: decoding never panics, recurses at most `TXN_DEPTH_MAX` transactions deep, and allocates no more than
//!   a small multiple of the body.
//! - **Invariant**: a response is written once, straight from the stored records; no intermediate tree.

mod base64;
pub(crate) mod concurrency;
mod convert;
pub(crate) mod lease;
mod objects;
mod read;
mod request;
pub(crate) mod response;
mod syntax;
pub(crate) mod watch;
mod write;

pub(crate) use concurrency::{
    CampaignMessage, LeaderKey, LeaderMessage, LockMessage, ProclaimMessage, ResignMessage, UnlockMessage,
};
pub(crate) use convert::{delete_range, put, range, txn};
pub(crate) use lease::{LeaseGrantMessage, LeaseMessage, LeaseTimeToLiveMessage};
pub(crate) use objects::Objects;
pub(crate) use read::DecodeError;
pub(crate) use request::{
    AlarmMessage, CompactionMessage, CompareMessage, DeleteRangeMessage, EmptyMessage, Figure, HashKvMessage,
    MemberAddMessage, MemberListMessage, MemberMessage, MemberUpdateMessage, OpMessage, PutMessage, RangeMessage,
    TransferMessage, TxnMessage, decode, reads_are_serializable,
};
pub(crate) use response::{AuthStatus, Header, Identity, Member, Members, RangeWriter, Status};
pub(crate) use watch::{WatchCreateMessage, WatchFields, WatchMessage};
