//! The client API: what each RPC does, apart from how it is asked and answered.
//!
//! ```text
//!   JSON:  json ──► wire::decode ──┐                                                    ┌──► wire::response ──► JSON
//!                                  ├──► message ──► kv, cluster, … ──► domain reply ────┤
//!   gRPC:  grpc ──► proto, From ───┘         preflight, propose / barrier + view        └──► grpc::write ──► protobuf
//! ```
//!
//! One function per RPC takes a message of [`wire`](crate::wire) and returns values of the rooms below, or an [`ApiError`]. It
//! knows nothing of HTTP. Two thin writers, one per wire form, turn its reply into bytes. There are no layers to pay for
//! per request: one table ([`Route`]) knows every path, and one `match` per form calls the function.
//!
//! # How to add an RPC
//!
//! 1. A row in the table of `route`: names in gRPC, JSON paths, name in metrics.
//! 2. A message in `wire/request` (read from JSON) and `From` its protobuf form in `grpc/convert`.
//! 3. The function here: `async fn name(&State, Message) -> Result<Reply, ApiError>`.
//! 4. A line in the `match` of `json` with a writer in `wire/response`, and one in the `match` of `grpc/unary` with a writer in
//!    `grpc/write` (or a message of `proto`, where nothing depends on speed).
//! 5. A stream instead takes its requests from `grpc::Messages` (gRPC) or the body (JSON), and returns a stream of messages:
//!    `grpc/stream`.
//!
//! Metrics, `hasleader`, learner refusal, deadlines and limits come with it.

pub(crate) mod auth;
mod body;
pub(crate) mod cluster;
pub(crate) mod deadline;
pub(crate) mod election;
mod follow;
mod json;
pub(crate) mod kv;
pub(crate) mod lease;
mod lease_lines;
pub(crate) mod lock;
pub(crate) mod maintenance;
mod metrics;
mod propose;
mod queue;
mod range;
mod route;
mod state;
pub(crate) mod stream;
pub(crate) mod watch;

use crate::error::ApiError;

pub(crate) use json::{Asked, no_router, router};
pub(crate) use metrics::{Metrics, Running};
pub(crate) use range::{ANSWER_BYTES_MAX, Unread, Whole};
use route::json_route;
pub(crate) use route::{Exchange, Route, route};
pub(crate) use state::{Limits, Parts, State};

/// What every request passes first, as in etcd.
pub(crate) fn admit(state: &State, route: Route, requires_leader: bool) -> Result<(), ApiError> {
    if !route.is_for_learners() {
        state.refuse_if_learner()?;
    }
    if requires_leader && !state.has_leader() { Err(ApiError::NoLeader) } else { Ok(()) }
}
