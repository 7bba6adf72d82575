//! The messages of etcd's gRPC services, made from `proto/` by the build script.
//!
//! **Invariant**: a stored record goes out as the bytes that are stored, and an event as bytes that were written once for
//! everybody who watches it.

mod stored;

pub(crate) use stored::{Event, KeyValue};

/// Messages and services of `etcdserverpb`.
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub(crate) mod etcdserverpb {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}

/// Messages and service of `v3lockpb`.
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub(crate) mod v3lockpb {
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.rs"));
}

/// Messages and service of `v3electionpb`.
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub(crate) mod v3electionpb {
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.rs"));
}

/// Messages of `grpc.health.v1`.
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub(crate) mod health {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}
