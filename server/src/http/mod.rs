//! HTTP/1.1 and HTTP/2 on one port: the accept loop and the life of a connection.

mod connections;
mod front;
mod io;
mod listener;
mod takeover;

use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use connections::{Connections, Limits, descriptor_limit};
use connections::{Order, Place};
pub(crate) use front::Front;
pub use listener::BindError;
use listener::ListenSocket;
pub(crate) use listener::{Bound, Listener};
pub(crate) use takeover::Takeover;

/// Pause after a connection could not be accepted, for example because no file descriptor was left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What a peer may send before it has to wait for this member to take it: one stream, and all of a connection.
const PEER_STREAM_WINDOW_BYTES: u32 = 4 << 20;
const PEER_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Large frames make few of a batch of entries or a piece of a state.
const PEER_FRAME_BYTES: u32 = 1 << 20;
/// Streams of one peer connection; a member uses one or two.
const PEER_STREAMS_MAX: u32 = 64;
/// A peer that is cut off says nothing: its connection is found dead by pings, and its streams with it.
const PEER_PING_INTERVAL: Duration = Duration::from_secs(10);
const PEER_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What the listeners of a server share.
#[derive(Clone)]
pub(crate) struct Http {
    builder: Arc<Builder<TokioExecutor>>,
    connections: Arc<Connections>,
}

/// What clients may do over HTTP/2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Http2 {
    pub(crate) streams_max: u32,
    /// Zero for no pings.
    pub(crate) ping_interval: Duration,
    pub(crate) ping_timeout: Duration,
}

impl Http {
    pub(crate) fn new(connections: Arc<Connections>, http2: Http2) -> Http {
        let builder = builder(connections.limits().head_bytes_max, http2);
        Http { builder: Arc::new(builder), connections }
    }

    /// For other members: room for a link that is fast and long.
    pub(crate) fn for_peers(connections: Arc<Connections>) -> Http {
        let http2 =
            Http2 { streams_max: PEER_STREAMS_MAX, ping_interval: PEER_PING_INTERVAL, ping_timeout: PEER_PING_TIMEOUT };
        let mut builder = builder(connections.limits().head_bytes_max, http2);
        builder
            .http2()
            .initial_stream_window_size(PEER_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(PEER_CONNECTION_WINDOW_BYTES)
            .max_frame_size(PEER_FRAME_BYTES);
        Http { builder: Arc::new(builder), connections }
    }

    /// Accepts connections until dropped.
    pub(crate) async fn serve(self, listener: Listener, front: Arc<Front>) {
        match listener.socket {
            ListenSocket::Tcp(socket) => loop {
                match socket.accept().await {
                    Ok((stream, _)) => {
                        // Answers are written whole: waiting for more to send would only delay them.
                        let _ = stream.set_nodelay(true);
                        self.accept(stream, &front);
                    }
                    Err(error) => pause(error).await,
                }
            },
            ListenSocket::Unix(socket, _file) => loop {
                match socket.accept().await {
                    Ok((stream, _)) => self.accept(stream, &front),
                    Err(error) => pause(error).await,
                }
            },
        }
    }

    /// Starts a task for the connection, or drops it if there are too many.
    fn accept<S>(&self, socket: S, front: &Arc<Front>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if let Some(place) = self.connections.admit() {
            tokio::spawn(connection(Arc::clone(&self.builder), socket, Arc::clone(front), place));
        }
    }
}

fn builder(head_bytes_max: usize, http2: Http2) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // Timeouts are kept by `connections`: hyper's own would also cut idle connections off after 30 seconds.
    // Flushes are not held back for pipelined requests (`pipeline_flush`): with that, hyper buffers a streamed response for
    // a client that does not read without any bound.
    builder.http1().header_read_timeout(None).max_buf_size(head_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(http2.streams_max)
        .keep_alive_interval(Some(http2.ping_interval).filter(|interval| !interval.is_zero()))
        .keep_alive_timeout(http2.ping_timeout)
        .max_header_list_size(u32::try_from(head_bytes_max).unwrap_or(u32::MAX));
    builder
}

async fn pause(error: std::io::Error) {
    match error.kind() {
        // The client gave up while it waited.
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted => {}
        _ => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_RETRY).await;
        }
    }
}

async fn connection<S>(builder: Arc<Builder<TokioExecutor>>, socket: S, front: Arc<Front>, place: Place)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shared = Arc::clone(&place.connection);
    let place = Arc::new(place);
    let service = service_fn(move |request| Arc::clone(&front).call(request, Arc::clone(&place)));
    let io = TokioIo::new(io::Reporting::new(socket, Arc::clone(&shared)));
    // A connection that is taken over ends here and goes on elsewhere: see `Takeover`.
    let mut http = pin!(builder.serve_connection_with_upgrades(io, service));
    loop {
        let ordered = tokio::select! {
            biased;
            // Whatever went wrong is the client's doing: it closed, or spoke no HTTP.
            _ = http.as_mut() => return,
            () = shared.wake.notified() => shared.order(),
        };
        match ordered {
            Order::Continue => {}
            // HTTP/2 has a farewell of its own, which says which requests were taken.
            Order::Finish if shared.is_http2() => http.as_mut().graceful_shutdown(),
            // The next answer says that it is the last one.
            Order::Finish => {}
            Order::Drain => http.as_mut().graceful_shutdown(),
            Order::Close => return,
        }
    }
}
