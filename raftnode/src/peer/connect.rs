//! Connections: a URL in, an HTTP/2 connection out. TLS will be put here, between the socket and HTTP.

use std::io;
use std::time::Duration;

use axum::http::Uri;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::outgoing::{Outgoing, Task};

/// Bytes that may be under way on one stream before the receiver has taken them: the other side's answers.
pub(super) const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// The same for a whole connection.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Bytes of one HTTP/2 frame. Large ones, so that a frame of ours mostly comes in one piece and need not be put together.
pub(super) const HTTP_FRAME_BYTES_MAX: u32 = 1 << 20;
/// Bytes that wait to be written to the socket.
const SEND_BUFFER_BYTES: usize = 4 << 20;
/// Time between two pings on a connection, also on an idle one.
const PING_INTERVAL: Duration = Duration::from_millis(500);

/// A connection to a peer; closed when dropped.
pub(super) struct Connection {
    pub(super) requests: SendRequest<Outgoing>,
    /// Drives the connection as long as this lives.
    pub(super) _driver: Task<()>,
    /// Where it leads, for the requests.
    pub(super) authority: String,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// Not a URL that a peer can have.
    #[error("{url} is no URL of a peer: {detail}")]
    Url { url: String, detail: &'static str },
    /// No socket.
    #[error("cannot connect to {url}: {source}")]
    Socket { url: String, source: io::Error },
    /// No HTTP/2.
    #[error("{url} does not speak HTTP/2: {source}")]
    Http { url: String, source: hyper::Error },
}

/// Connects to a peer URL.
pub(super) async fn connect(url: &str, ping_timeout: Duration) -> Result<Connection, ConnectError> {
    let Target { authority, host, port } = target(url)?;
    let socket_error = |source| ConnectError::Socket { url: url.to_owned(), source };
    let socket = TcpStream::connect((host.as_str(), port)).await.map_err(socket_error)?;
    // Frames are written whole: waiting for more to send would only delay them.
    socket.set_nodelay(true).map_err(socket_error)?;
    let (requests, connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP_FRAME_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(Some(PING_INTERVAL))
        .keep_alive_timeout(ping_timeout)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(socket))
        .await
        .map_err(|source| ConnectError::Http { url: url.to_owned(), source })?;
    // Whatever ends the connection also ends the bodies on it, and there the error is seen.
    let driver = Task::spawn(async { drop(connection.await) });
    Ok(Connection { requests, _driver: driver, authority })
}

struct Target {
    authority: String,
    host: String,
    port: u16,
}

fn target(url: &str) -> Result<Target, ConnectError> {
    let bad = |detail| ConnectError::Url { url: url.to_owned(), detail };
    let uri: Uri = url.parse().map_err(|_| bad("it cannot be read"))?;
    let scheme = uri.scheme_str().ok_or_else(|| bad("it has no scheme"))?;
    let default_port = match scheme {
        "http" => 80,
        "https" => return Err(bad("TLS between peers is not supported yet")),
        _ => return Err(bad("its scheme is not http")),
    };
    let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().unwrap_or(default_port);
    Ok(Target { authority: authority.as_str().to_owned(), host, port })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn targets() {
        let found = |url: &str| target(url).map(|found| (found.host, found.port)).map_err(|error| error.to_string());
        assert_eq!(found("http://127.0.0.1:2380"), Ok(("127.0.0.1".to_owned(), 2380)));
        assert_eq!(found("http://[::1]:7"), Ok(("::1".to_owned(), 7)));
        assert_eq!(found("http://member.example"), Ok(("member.example".to_owned(), 80)));
        assert!(found("https://127.0.0.1:1").unwrap_err().contains("TLS"));
        for url in ["127.0.0.1:2380", "", "http://", "unix://x", "/path"] {
            found(url).unwrap_err();
        }
    }
}
