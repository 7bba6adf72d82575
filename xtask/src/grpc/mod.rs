//! gRPC as a client that shares its cores with the server it measures: HTTP/2 by `h2`, messages written by hand.
//!
//! *Is* the framing and the few messages that load generators need. *Is not* a client library: no codegen, no retries, no
//! balancing, no compression, and nothing is decoded that nobody looks at.

mod channel;
mod message;

pub(crate) use channel::{Channel, Stream};
pub(crate) use message::{Fields, Value, bytes, find, frame, nested, number};

/// The methods of etcd v3 that are called here.
pub(crate) mod method {
    pub(crate) const PUT: &str = "/etcdserverpb.KV/Put";
    pub(crate) const RANGE: &str = "/etcdserverpb.KV/Range";
    pub(crate) const TXN: &str = "/etcdserverpb.KV/Txn";
    pub(crate) const WATCH: &str = "/etcdserverpb.Watch/Watch";
    pub(crate) const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
    pub(crate) const LEASE_KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
    pub(crate) const LEASE_LEASES: &str = "/etcdserverpb.Lease/LeaseLeases";
}
