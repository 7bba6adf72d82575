//! The JSON form: `POST` with a JSON body at the paths of etcd's gateway.
//!
//! ```text
//!   request ──► route ──► body (bounded) ──► wire::decode ──► rpc ──► wire::response, whole or in pieces
//! ```

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::StreamExt as _;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::{Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use crate::api::deadline::{Answers, read_gateway_timeout, until};
use crate::api::election::Leader;
use crate::api::range::{Begun, Unread};
use crate::api::stream::Pieces;
use crate::api::{
    Route, Running, State, admit, auth, body, cluster, election, json_route, kv, lease, lease_lines, lock, maintenance,
    watch,
};
use crate::error::{ApiError, Effect};
use crate::http::{Outlet, Patience};
use crate::wire::{self, EmptyMessage, Members, RangeWriter, concurrency, decode, response};

/// The body of a result.
enum Answer {
    Whole(Vec<u8>),
    Pieces(Pieces),
    Leaders(Leaders),
}

type Leaders = Answers<Leader>;

/// Whether this header says that a leader is wanted. The first name is how etcd's gateway wants it written.
fn wants_leader((name, value): (&HeaderName, &HeaderValue)) -> bool {
    matches!(name.as_str(), "grpc-metadata-hasleader" | "hasleader") && value == "true"
}

/// What the head of a request says about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// It wants to hear at once that there is no leader.
    pub(crate) requires_leader: bool,
    /// When the client waits no longer.
    pub(crate) deadline: Option<Instant>,
}

impl Asked {
    fn read(headers: &HeaderMap) -> Result<Asked, ApiError> {
        let mut asked = Asked::default();
        let mut timeout = None;
        // One pass: most requests have none of these.
        for (name, value) in headers {
            asked.requires_leader |= wants_leader((name, value));
            if timeout.is_none() && name.as_str() == "grpc-timeout" {
                timeout = Some(value);
            }
        }
        if let Some(value) = timeout.filter(|value| !value.is_empty()) {
            let found = || String::from_utf8_lossy(value.as_bytes()).into_owned();
            let timeout = read_gateway_timeout(value).ok_or_else(|| ApiError::BadTimeout { found: found() })?;
            asked.deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
            if asked.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(ApiError::DeadlineExceeded(Effect::None));
            }
        }
        Ok(asked)
    }
}

fn is_websocket(request: &Request) -> bool {
    request.method() == Method::GET
        && request.headers().get(UPGRADE).is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// All routes of the client API. Paths that nobody else knows end here too and are answered as etcd answers them.
pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new().fallback(move |request: Request| {
        let state = Arc::clone(&state);
        async move { handle(&state, request).await }
    })
}

/// What is found at the paths of the client API when JSON is not served: nothing. gRPC is taken out before them.
pub(crate) fn no_router(state: &State) -> Router {
    let body_bytes_max = state.body_bytes_max;
    Router::new().fallback(move |request: Request| async move {
        body::discard(request.into_body(), body_bytes_max).await;
        page_not_found()
    })
}

async fn handle(state: &Arc<State>, mut request: Request) -> Response {
    let patience = request.extensions_mut().remove::<Patience>();
    let outlet = request.extensions_mut().remove::<Outlet>();
    let path = request.uri().path();
    let route = match json_route(path) {
        Some(Some(Route::Watch)) if is_websocket(&request) => {
            // A limit of time is not read, as in etcd, whose proxy of WebSockets does not pass it on.
            let requires_leader = request.headers().iter().any(wants_leader);
            return watch::socket(state, requires_leader, request).await.unwrap_or_else(|error| refusal(&error));
        }
        Some(Some(route)) if request.method() == Method::POST => match Asked::read(request.headers()) {
            Ok(asked) => Ok((route, asked)),
            Err(error) => Err(refusal(&error)),
        },
        Some(Some(_)) => Err(refusal(&ApiError::WrongMethod)),
        Some(None) => Err(refusal(&ApiError::UnknownPath)),
        None => Err(page_not_found()),
    };
    let (route, asked) = match route {
        Ok(route) => route,
        Err(response) => {
            body::discard(request.into_body(), state.body_bytes_max).await;
            return response;
        }
    };
    if route == Route::Watch {
        return match watch::watch(state, asked, request.into_body(), outlet).await {
            Ok(body) => success(body),
            Err(error) => refusal(&error),
        };
    }
    if route == Route::LeaseKeepAlive {
        return match lease_lines::lines(state, asked, request.into_body()).await {
            Ok(lines) => success(lines),
            Err(error) => refusal(&error),
        };
    }
    let running = state.metrics.begin(route, None);
    let answered = async {
        let body = body::read(request.into_body(), state.body_bytes_max).await?;
        state.metrics.received(route, body.len());
        if let Some(patience) = patience {
            patience.begin();
        }
        answer(state, route, asked, &body).await
    };
    let result = match asked.deadline {
        None => answered.await,
        // What it has proposed by then is carried out or not: nobody knows.
        Some(deadline) => {
            Box::pin(timeout_at(deadline, answered)).await.unwrap_or(Err(ApiError::DeadlineExceeded(Effect::Unknown)))
        }
    };
    match result {
        Ok(Answer::Whole(body)) => {
            running.end(None);
            state.metrics.sent(route, body.len());
            success(Body::from(body))
        }
        Ok(Answer::Pieces(pieces)) => {
            running.end(None);
            // Its bytes are counted as they go.
            state.metrics.sent(route, 0);
            success(Body::new(pieces))
        }
        Ok(Answer::Leaders(leaders)) => success(lines(state, leaders, running)),
        Err(error) => {
            running.end(Some(&error));
            refusal(&error)
        }
    }
}

async fn answer(state: &Arc<State>, route: Route, asked: Asked, body: &[u8]) -> Result<Answer, ApiError> {
    admit(state, route, asked.requires_leader)?;
    // As in etcd, the headers of the cluster service have no revision.
    let members = |members: Members| response::members(&state.header(0), &members);
    Ok(Answer::Whole(match route {
        Route::Range => return range(state, kv::begin_range(state, decode(body)?).await?),
        Route::Put => {
            let reply = kv::put(state, decode(body)?).await?;
            response::put(&state.header(reply.revision), &reply)
        }
        Route::DeleteRange => {
            let reply = kv::delete_range(state, decode(body)?).await?;
            response::delete_range(&state.header(reply.revision), &reply)
        }
        Route::Txn => {
            let reply = kv::txn(state, decode(body)?).await?;
            response::txn(&state.header(reply.revision), &reply)
        }
        Route::Compact => response::header_only(&state.header(kv::compact(state, decode(body)?).await?)),
        Route::LeaseGrant => {
            let granted = lease::grant(state, decode(body)?).await?;
            wire::lease::granted(&state.header(granted.revision), &granted)
        }
        Route::LeaseRevoke => response::header_only(&state.header(lease::revoke(state, decode(body)?).await?)),
        Route::LeaseTimeToLive => {
            let left = lease::time_to_live(state, decode(body)?).await?;
            wire::lease::time_to_live(&state.header(left.revision), &left)
        }
        Route::LeaseLeases => {
            let EmptyMessage = decode(body)?;
            let (revision, ids) = lease::list(state).await?;
            wire::lease::leases(&state.header(revision), &ids)
        }
        Route::LeaseKeepAlive => return Err(ApiError::Defect { what: "a stream was called as a unary RPC" }),
        Route::Alarm => {
            let (revision, alarms) = maintenance::alarm(state, decode(body)?).await?;
            response::alarms(&state.header(revision), &alarms)
        }
        Route::Defragment => {
            maintenance::defragment(state, decode(body)?).await?;
            // etcd's answer has no header.
            b"{}".to_vec()
        }
        Route::Status => {
            let status = maintenance::status(state, decode(body)?);
            response::status(&state.header(status.revision), &status)
        }
        Route::Hash => {
            let (revision, hash) = maintenance::hash(state, decode(body)?).await?;
            response::hash(&state.header(revision), hash)
        }
        Route::HashKv => {
            let hashed = maintenance::hash_kv(state, decode(body)?).await?;
            response::hash_kv(&state.header(hashed.revision), &hashed)
        }
        Route::MoveLeader => {
            maintenance::move_leader(state, decode(body)?).await?;
            // etcd's answer has no header.
            b"{}".to_vec()
        }
        Route::MemberAdd => members(cluster::add(state, decode(body)?).await?),
        Route::MemberRemove => members(cluster::remove(state, decode(body)?).await?),
        Route::MemberUpdate => members(cluster::update(state, decode(body)?).await?),
        Route::MemberList => members(cluster::list(state, decode(body)?).await?),
        Route::MemberPromote => members(cluster::promote(state, decode(body)?).await?),
        Route::AuthStatus => {
            let status = auth::status(state, decode(body)?);
            response::auth_status(&state.header(status.revision), &status)
        }
        Route::Authenticate => return Err(auth::authenticate(decode(body)?)),
        Route::Lock => {
            let locked = lock::lock(state, decode(body)?).await?;
            concurrency::locked(&state.header(locked.revision), &locked.key)
        }
        Route::Unlock => response::header_only(&state.header(lock::unlock(state, decode(body)?).await?)),
        Route::Campaign => {
            let elected = election::campaign(state, decode(body)?).await?;
            concurrency::elected(&state.header(elected.revision), &elected.leader)
        }
        Route::Proclaim => response::header_only(&state.header(election::proclaim(state, decode(body)?).await?)),
        Route::Resign => response::header_only(&state.header(election::resign(state, decode(body)?).await?)),
        Route::Leader => {
            let leader = election::leader(state, decode(body)?).await?;
            concurrency::leader(&state.header(leader.revision), &leader.record)
        }
        Route::Observe => {
            let leaders = Box::pin(election::observe(state, asked.requires_leader, decode(body)?));
            return Ok(Answer::Leaders(until(asked.deadline, leaders)));
        }
        // They have no JSON path, or are streams.
        Route::Watch | Route::RangeStream | Route::HealthCheck | Route::HealthWatch => {
            return Err(ApiError::UnknownPath);
        }
    }))
}

/// A line for each leader, and for the error that ends them.
fn lines(state: &Arc<State>, leaders: Leaders, running: Running) -> Body {
    let (state, mut running) = (Arc::clone(state), Some(running));
    Body::from_stream(leaders.map(move |leader| {
        let line = match leader {
            Ok(leader) => {
                let line = concurrency::leader_line(&state.header(leader.revision), &leader.record);
                state.metrics.sent(Route::Observe, line.len());
                line
            }
            Err(error) => {
                if let Some(running) = running.take() {
                    running.end(Some(&error));
                }
                let mut line = Vec::new();
                response::stream_error(&mut line, &error);
                line
            }
        };
        Ok::<_, Infallible>(line)
    }))
}

fn range(state: &State, begun: Begun) -> Result<Answer, ApiError> {
    let Begun { result, rest } = begun;
    let Some(Unread { scan, permit }) = rest else {
        return Ok(Answer::Whole(response::range(&state.header(result.revision), &result)));
    };
    let mut writer = RangeWriter::new(&state.header(result.revision));
    writer.extend(&result.kvs);
    Ok(Answer::Pieces(Pieces::new(scan, writer, state.others.clone(), state.metrics.sent_bytes(), permit)))
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
