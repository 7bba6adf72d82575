//! The client API over HTTP: `POST` with a JSON body at the paths of etcd's gateway.
//!
//! ```text
//!   request ──► route ──► body (bounded) ──► wire::decode ──► convert ──► preflight ──► propose / barrier + view
//!   response ◄── wire::response ◄────────────────────────────────────── outcome / range, whole or in pieces
//! ```
//!
//! One function takes every request and one table knows every path: there are no layers to pay for per request.

mod body;
mod cluster;
mod kv;
mod maintenance;
mod metrics;
mod propose;
mod range;
mod state;
mod stream;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};

use crate::error::ApiError;
use crate::wire::{decode, response};

pub(crate) use metrics::Metrics;
pub(crate) use state::{Limits, Parts, State};

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Range,
    Put,
    DeleteRange,
    Txn,
    Compaction,
    Status,
    Hash,
    HashKv,
    TransferLeadership,
    MemberAdd,
    MemberRemove,
    MemberUpdate,
    MemberList,
    MemberPromote,
}

impl Route {
    pub(crate) const ALL: [Route; 14] = [
        Route::Range,
        Route::Put,
        Route::DeleteRange,
        Route::Txn,
        Route::Compaction,
        Route::Status,
        Route::Hash,
        Route::HashKv,
        Route::TransferLeadership,
        Route::MemberAdd,
        Route::MemberRemove,
        Route::MemberUpdate,
        Route::MemberList,
        Route::MemberPromote,
    ];

    /// What stands behind `/v3/`.
    fn of(path: &str) -> Option<Route> {
        Some(match path {
            "kv/range" => Route::Range,
            "kv/put" => Route::Put,
            "kv/deleterange" => Route::DeleteRange,
            "kv/txn" => Route::Txn,
            "kv/compaction" => Route::Compaction,
            "maintenance/status" => Route::Status,
            "maintenance/hash" => Route::Hash,
            "maintenance/hashkv" => Route::HashKv,
            "maintenance/transfer-leadership" => Route::TransferLeadership,
            "cluster/member/add" => Route::MemberAdd,
            "cluster/member/remove" => Route::MemberRemove,
            "cluster/member/update" => Route::MemberUpdate,
            "cluster/member/list" => Route::MemberList,
            "cluster/member/promote" => Route::MemberPromote,
            _ => return None,
        })
    }

    /// What a learner answers too; of ranges, those that do not have to be linearizable.
    fn is_for_learners(self) -> bool {
        matches!(self, Route::Range | Route::Status)
    }
}

/// The body of a result.
pub(crate) enum Answer {
    Whole(Vec<u8>),
    Pieces(stream::Pieces),
}

/// Set to `true`, a request wants to hear at once that there is no leader. The first is how etcd's gateway wants it written.
const HAS_LEADER: [&str; 2] = ["grpc-metadata-hasleader", "hasleader"];

fn requires_leader(request: &Request) -> bool {
    HAS_LEADER.iter().any(|name| request.headers().get(*name).is_some_and(|value| value == "true"))
}

/// All routes of the client API. Paths that nobody else knows end here too and are answered as etcd answers them.
pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new().fallback(move |request: Request| {
        let state = Arc::clone(&state);
        async move { handle(&state, request).await }
    })
}

async fn handle(state: &State, request: Request) -> Response {
    let path = request.uri().path();
    // `/v3beta/` is what the gateway was called before 3.4.
    let route = match path.strip_prefix("/v3/").or_else(|| path.strip_prefix("/v3beta/")).map(Route::of) {
        Some(Some(route)) if request.method() == Method::POST => Ok(route),
        Some(Some(_)) => Err(refusal(&ApiError::WrongMethod)),
        Some(None) => Err(refusal(&ApiError::UnknownPath)),
        None => Err(page_not_found()),
    };
    let route = match route {
        Ok(route) => route,
        Err(response) => {
            body::discard(request.into_body(), state.body_bytes_max).await;
            return response;
        }
    };
    let started = Instant::now();
    state.metrics.started(route);
    let requires_leader = requires_leader(&request);
    let result = match body::read(request.into_body(), state.body_bytes_max).await {
        Ok(body) => {
            state.metrics.received(body.len());
            answer(state, route, requires_leader, &body).await
        }
        Err(error) => Err(error),
    };
    state.metrics.finished(route, started.elapsed(), result.as_ref().err());
    match result {
        Ok(Answer::Whole(body)) => {
            state.metrics.sent(body.len());
            success(Body::from(body))
        }
        Ok(Answer::Pieces(pieces)) => success(Body::new(pieces)),
        Err(error) => refusal(&error),
    }
}

async fn answer(state: &State, route: Route, requires_leader: bool, body: &[u8]) -> Result<Answer, ApiError> {
    if !route.is_for_learners() {
        state.refuse_if_learner()?;
    }
    if requires_leader && !state.has_leader() {
        return Err(ApiError::NoLeader);
    }
    match route {
        Route::Range => kv::range(state, decode(body)?).await,
        Route::Put => kv::put(state, decode(body)?).await,
        Route::DeleteRange => kv::delete_range(state, decode(body)?).await,
        Route::Txn => kv::txn(state, decode(body)?).await,
        Route::Compaction => kv::compaction(state, decode(body)?).await,
        Route::Status => maintenance::status(state, decode(body)?),
        Route::Hash => maintenance::hash(state, decode(body)?).await,
        Route::HashKv => maintenance::hash_kv(state, decode(body)?).await,
        Route::TransferLeadership => maintenance::transfer_leadership(state, decode(body)?).await,
        Route::MemberAdd => cluster::add(state, decode(body)?).await,
        Route::MemberRemove => cluster::remove(state, decode(body)?).await,
        Route::MemberUpdate => cluster::update(state, decode(body)?).await,
        Route::MemberList => cluster::list(state, decode(body)?).await,
        Route::MemberPromote => cluster::promote(state, decode(body)?).await,
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

fn success(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    // etcd's gateway passes on what its inner gRPC response said.
    headers.insert(HeaderName::from_static("grpc-metadata-content-type"), HeaderValue::from_static("application/grpc"));
    response
}

fn refusal(error: &ApiError) -> Response {
    let mut response = Response::new(Body::from(response::error(error)));
    *response.status_mut() = error.status();
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn page_not_found() -> Response {
    let mut response = Response::new(Body::from("404 page not found\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_paths_of_etcd() {
        for (path, route) in [
            ("kv/range", Some(Route::Range)),
            ("maintenance/hashkv", Some(Route::HashKv)),
            ("maintenance/transfer-leadership", Some(Route::TransferLeadership)),
            ("cluster/member/promote", Some(Route::MemberPromote)),
            ("cluster/member", None),
            ("kv/range/", None),
            ("kv", None),
            ("KV/range", None),
            ("/kv/range", None),
            ("", None),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }
}
