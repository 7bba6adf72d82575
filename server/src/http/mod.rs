//! HTTP/1.1 and HTTP/2 on one port: the accept loop and the life of a connection.

mod ages;
mod authority;
mod connections;
mod direct;
mod front;
mod gather;
mod io;
mod lanes;
mod limits;
mod listener;
mod pings;
mod streams;
mod takeover;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::TcpKeepalive;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use connections::{Connection, Order, Place};
pub(crate) use connections::{Connections, Patience};
use direct::Direct;
pub(crate) use direct::{Framed, Outlet};
pub(crate) use front::Front;
pub(crate) use lanes::Lanes;
pub(crate) use limits::{Limits, descriptor_limit, raise_descriptor_limit};
pub use listener::BindError;
use listener::ListenSocket;
pub(crate) use listener::{Bound, Listener};
use streams::{Executor, Parts};
pub(crate) use takeover::Takeover;

/// Pause after a connection could not be accepted, for example because no file descriptor was left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A client that has been silent is asked whether it is still there, by its system, which answers by itself.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));

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

/// Requests that a client may have canceled before they were looked at: many of its calls may end in the same moment.
const CANCELED_MAX: usize = 1_000;

/// What the listeners of a server share.
#[derive(Clone)]
pub(crate) struct Http {
    settings: Settings,
    connections: Arc<Connections>,
    lanes: Lanes,
}

/// How connections are spoken on.
#[derive(Clone, Copy)]
enum Settings {
    Clients(Http2),
    Peers,
}

/// What clients may do over HTTP/2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Http2 {
    pub(crate) streams_max: u32,
    /// Zero for no pings.
    pub(crate) ping_interval: Duration,
    pub(crate) ping_timeout: Duration,
    /// Between two pings of a client; zero for as many as it likes.
    pub(crate) client_ping_interval_min: Duration,
}

impl Http {
    pub(crate) fn new(connections: Arc<Connections>, lanes: Lanes, http2: Http2) -> Http {
        Http { settings: Settings::Clients(http2), connections, lanes }
    }

    /// For other members: room for a link that is fast and long.
    pub(crate) fn for_peers(connections: Arc<Connections>) -> Http {
        Http { settings: Settings::Peers, connections, lanes: Lanes::none() }
    }

    /// Accepts connections until dropped.
    pub(crate) async fn serve(self, listener: Listener, front: Arc<Front>) {
        match listener.socket {
            ListenSocket::Tcp(socket) => loop {
                match socket.accept().await {
                    Ok((stream, _)) => {
                        // Answers are written whole: waiting for more to send would only delay them.
                        let _ = stream.set_nodelay(true);
                        // A client whose machine is gone says nothing; a stream that waits for changes would not notice.
                        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
                        self.accept_tcp(stream, &front);
                    }
                    Err(error) => pause(error).await,
                }
            },
            ListenSocket::Unix(socket, _file) => loop {
                match socket.accept().await {
                    Ok((stream, _)) => self.accept_unix(stream, &front),
                    Err(error) => pause(error).await,
                }
            },
        }
    }

    /// Serves the connection, or drops it if there are too many.
    fn accept_tcp(&self, socket: TcpStream, front: &Arc<Front>) {
        if let Some(place) = self.connections.admit() {
            let (settings, head_bytes_max, front) = (self.settings, self.head_bytes_max(), Arc::clone(front));
            let shared = Arc::clone(&place.connection);
            self.lanes.run(socket, shared, move |socket| connection(settings, head_bytes_max, socket, front, place));
        }
    }

    /// The same for a connection from this machine.
    fn accept_unix(&self, socket: UnixStream, front: &Arc<Front>) {
        if let Some(place) = self.connections.admit() {
            let head_bytes_max = self.head_bytes_max();
            self.lanes.run_home(connection(self.settings, head_bytes_max, socket, Arc::clone(front), place));
        }
    }

    fn head_bytes_max(&self) -> usize {
        self.connections.limits().head_bytes_max
    }
}

impl Settings {
    fn builder(self, executor: Executor, head_bytes_max: usize) -> Builder<Executor> {
        let mut builder = Builder::new(executor);
        // Timeouts are kept by `connections`: hyper's own would also cut idle connections off after 30 seconds.
        // Flushes are not held back for pipelined requests (`pipeline_flush`): with that, hyper buffers a streamed response
        // for a client that does not read without any bound.
        builder.http1().header_read_timeout(None).max_buf_size(head_bytes_max);
        let mut http2 = builder.http2();
        http2.timer(TokioTimer::new()).max_header_list_size(u32::try_from(head_bytes_max).unwrap_or(u32::MAX));
        match self {
            Settings::Clients(clients) => http2
                .max_concurrent_streams(clients.streams_max)
                .keep_alive_interval(Some(clients.ping_interval).filter(|interval| !interval.is_zero()))
                .keep_alive_timeout(clients.ping_timeout)
                .max_pending_accept_reset_streams(CANCELED_MAX),
            Settings::Peers => http2
                .max_concurrent_streams(PEER_STREAMS_MAX)
                .keep_alive_interval(PEER_PING_INTERVAL)
                .keep_alive_timeout(PEER_PING_TIMEOUT)
                .initial_stream_window_size(PEER_STREAM_WINDOW_BYTES)
                .initial_connection_window_size(PEER_CONNECTION_WINDOW_BYTES)
                .max_frame_size(PEER_FRAME_BYTES),
        };
        builder
    }
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

async fn connection<S>(settings: Settings, head_bytes_max: usize, socket: S, front: Arc<Front>, place: Place)
where
    S: io::Socket + AsyncRead + AsyncWrite + Send + 'static,
{
    let shared = Arc::clone(&place.connection);
    let place = Arc::new(place);
    // In a box, which goes when the response begins: what stands in the future of an HTTP/2 stream stays as long as the
    // stream, and a watch stream stays for days.
    let service = service_fn(move |request| Box::pin(Arc::clone(&front).call(request, Arc::clone(&place))));
    let (local, mut driver) = Executor::for_connection();
    let (executor, pings) = match settings {
        Settings::Clients(http2) => (local, Some(http2.client_ping_interval_min)),
        Settings::Peers => (Executor::Tasks, None),
    };
    let (io, direct) = Direct::new(io::Reporting::new(socket, Arc::clone(&shared), pings), Arc::clone(&shared));
    let builder = settings.builder(executor, head_bytes_max);
    // A connection that is taken over ends here and goes on elsewhere: see `Takeover`.
    let http = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
    let mut parts = HttpAndDirect { http, direct, connection: &shared };
    loop {
        let ordered = tokio::select! {
            biased;
            // Whatever went wrong is the client's doing: it closed, or spoke no HTTP.
            () = poll_fn(|cx| driver.poll(cx, &mut parts)) => return,
            () = shared.wake.notified() => shared.order(),
        };
        let http = &mut parts.http;
        match ordered {
            Order::Continue => {}
            // HTTP/2 has a farewell of its own, which says which requests were taken.
            Order::Finish if shared.is_http2() => http.as_mut().graceful_shutdown(),
            // The next answer says that it is the last one.
            Order::Finish => {}
            Order::Drain => http.as_mut().graceful_shutdown(),
            Order::Close => return,
        }
        driver.prompt();
    }
}

/// What has turns on a connection, beside its requests.
struct HttpAndDirect<'a, H, S> {
    http: Pin<&'a mut H>,
    direct: Direct<S>,
    connection: &'a Connection,
}

impl<H: Future, S: io::Socket + AsyncWrite> Parts for &mut HttpAndDirect<'_, H, S> {
    type Ended = ();

    fn poll_http(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.connection.begin_turn();
        let ended = self.http.as_mut().poll(cx);
        let ended = if self.connection.end_turn() && ended.is_pending() { self.http.as_mut().poll(cx) } else { ended };
        ended.map(drop)
    }

    fn sends_directly(&mut self) -> bool {
        self.direct.has_answer()
    }

    fn poll_direct(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        self.direct.poll(cx).map(|sent| sent.err().map(drop))
    }
}
