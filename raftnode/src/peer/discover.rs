//! Asking a cluster who is in it, before one is a member of it.

use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, Uri, Version};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use super::connect::connect;
use super::frame::{Kind, Limits};
use super::inbound::Inbound;
use super::outgoing::outgoing;
use super::{messages, serve};
use crate::member::ClusterView;

/// Why nobody has said who is in the cluster.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// No URL was given.
    #[error("there is no peer URL to ask")]
    NoUrls,
    /// None of the members could be asked.
    #[error("no member of the cluster answers: {}", Reasons(failures))]
    NoAnswer {
        /// What went wrong, by URL.
        failures: Vec<(String, String)>,
    },
}

struct Reasons<'a>(&'a [(String, String)]);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (url, reason)) in self.0.iter().enumerate() {
            write!(f, "{}{url}: {reason}", if at > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

/// Asks all the URLs at the same time, and returns the first answer of somebody who knows any members; if there is none,
/// an answer of somebody who knows no members yet.
///
/// # Errors
/// [`DiscoverError`], with what went wrong at each URL.
pub async fn discover(peer_urls: &[String], timeout: Duration) -> Result<ClusterView, DiscoverError> {
    if peer_urls.is_empty() {
        return Err(DiscoverError::NoUrls);
    }
    let mut answers: FuturesUnordered<_> =
        peer_urls.iter().map(|url| async move { (url, ask(url, timeout).await) }).collect();
    let (mut newcomer, mut failures) = (None, Vec::new());
    while let Some((url, answer)) = answers.next().await {
        match answer {
            Ok(view) if !view.members.is_empty() => return Ok(view),
            Ok(view) => newcomer = Some(view),
            Err(reason) => failures.push((url.clone(), reason)),
        }
    }
    newcomer.ok_or(DiscoverError::NoAnswer { failures })
}

async fn ask(url: &str, limit: Duration) -> Result<ClusterView, String> {
    timeout(limit, ask_one(url, limit))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} ms", limit.as_millis())))
}

async fn ask_one(url: &str, limit: Duration) -> Result<ClusterView, String> {
    let text = |error: &dyn fmt::Display| error.to_string();
    let mut connection = connect(url, limit).await.map_err(|error| text(&error))?;
    let uri = Uri::builder().scheme("http").authority(connection.authority.as_str()).path_and_query(serve::MEMBERS);
    // The request has no body: its queue ends at once.
    let (_, body) = outgoing();
    let request = Request::builder().method(Method::POST).version(Version::HTTP_2);
    let request = uri.build().and_then(|uri| request.uri(uri).body(body)).map_err(|error| text(&error))?;
    let response = connection.requests.send_request(request).await.map_err(|error| text(&error))?;
    match response.status() {
        StatusCode::OK => {}
        status => return Err(format!("it answers with HTTP status {status}")),
    }
    let mut inbound = Inbound::new(Body::new(response.into_body()), Limits::STRANGER);
    let frame = inbound.next().await.map_err(|error| text(&error))?;
    match frame.kind {
        Kind::Members => messages::view(frame.body).map_err(|error| text(&error)),
        found => Err(format!("a frame of kind {found:?} instead of the members")),
    }
}
