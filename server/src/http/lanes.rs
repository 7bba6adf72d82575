//! Which threads connections are served on.
//!
//! Raft, apply and everything in the background run on one runtime, *home*. Connections over HTTP/1.1 carry a request at a
//! time, so there are many of them where there is much to do, and what each costs (two system calls, a head, JSON) is more
//! than what Raft and apply take. Once home has some, further ones go to *lanes*: runtimes of one thread each, which run
//! nothing else.
//!
//! ```text
//! accept ──► home, as long as it has few, and for HTTP/2 ──► Raft, apply, background, connections
//!       └──► else the lane with the fewest ────────────────► connections
//! ```
//!
//! Connections over HTTP/2 stay home: what many calls cost together is little, and they gain more by leaving together than
//! by a second thread.
//!
//! - **Invariant**: a connection and all its requests stay where they began, until the client asks to be told of changes:
//!   then it moves home, where they come from, and takes no place there. Work that wanders between threads, as in one
//!   runtime with as many of them, costs a wake-up and cold caches at every step.
//! - **Invariant**: a few clients are served at home, whatever they speak. Nobody has to be woken for what stays on one
//!   thread, so a single client has its answer sooner.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;

use tokio::net::TcpStream;
use tokio::runtime::Handle;

use super::connections::{Connection, Order};

/// How many connections more than a lane home has before others go there.
const HOME_AHEAD: usize = 16;
/// How a connection begins that speaks HTTP/2, and none over HTTP/1.1 that is served here.
const HTTP2: &[u8] = b"PRI";

/// Where connections can be served.
#[derive(Clone)]
pub(crate) struct Lanes {
    home: Lane,
    others: Arc<[Lane]>,
}

#[derive(Clone)]
struct Lane {
    runtime: Handle,
    /// Connections that are served here.
    open: Arc<AtomicUsize>,
}

impl Lane {
    fn new(runtime: Handle) -> Lane {
        Lane { runtime, open: Arc::default() }
    }

    fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    fn sit(&self) -> Seat {
        self.open.fetch_add(1, Relaxed);
        Seat(Arc::clone(&self.open))
    }
}

/// A connection's place on a lane; dropping it makes room.
struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Lanes {
    /// The runtime that this is called in as home, and a lane for each other.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub(crate) fn new(others: impl IntoIterator<Item = Handle>) -> Lanes {
        Lanes { home: Lane::new(Handle::current()), others: others.into_iter().map(Lane::new).collect() }
    }

    /// Home alone.
    pub(crate) fn none() -> Lanes {
        Lanes::new([])
    }

    /// Serves a connection at home.
    pub(super) fn run_home(&self, served: impl Future<Output = ()> + Send + 'static) {
        let seat = self.home.sit();
        self.home.runtime.spawn(async move {
            served.await;
            drop(seat);
        });
    }

    /// Serves what `serve` makes of a connection where it belongs.
    pub(super) fn run<F>(
        &self,
        socket: TcpStream,
        connection: Arc<Connection>,
        serve: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(lane) = self.choose().cloned() else { return self.run_home(serve(socket)) };
        let (lanes, seat) = (self.clone(), lane.sit());
        // Not before it has said what it speaks.
        self.home.runtime.spawn(async move {
            let moved = match speaks_http2(&socket, &connection).await {
                Some(true) => return lanes.run_home(serve(socket)),
                Some(false) => socket.into_std(),
                None => return,
            };
            let runtime = lane.runtime.clone();
            let served = async move {
                match moved.and_then(TcpStream::from_std) {
                    Ok(socket) => {
                        let mut served = Box::pin(serve(socket));
                        if until_it_listens(served.as_mut(), &connection).await {
                            connection.move_on();
                            lanes.home.runtime.spawn(served);
                        }
                    }
                    Err(error) => tracing::warn!(%error, "cannot serve a connection"),
                }
                drop(seat);
            };
            runtime.spawn(served);
        });
    }

    /// The lane for one more connection; none for home.
    fn choose(&self) -> Option<&Lane> {
        let lane = self.others.iter().min_by_key(|lane| lane.open())?;
        (lane.open() + HOME_AHEAD <= self.home.open()).then_some(lane)
    }
}

/// Serves a connection until it ends, or listens to what happens: whether it does.
async fn until_it_listens(mut served: Pin<&mut impl Future<Output = ()>>, connection: &Connection) -> bool {
    poll_fn(|cx| match served.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(false),
        Poll::Pending if connection.listens() => Poll::Ready(true),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Whether a connection speaks HTTP/2; none if it ends before it says anything.
async fn speaks_http2(socket: &TcpStream, connection: &Connection) -> Option<bool> {
    let mut first = [0; HTTP2.len()];
    tokio::select! {
        biased;
        peeked = socket.peek(&mut first) => match peeked {
            Ok(0) | Err(_) => None,
            // Of less than all of it one cannot be sure; home serves both.
            Ok(count) => Some(first.get(..count).is_some_and(|first| HTTP2.starts_with(first))),
        },
        () = ended(connection) => None,
    }
}

/// Resolves when the connection is told to end. Until then its client may still send the request that it is about to.
async fn ended(connection: &Connection) {
    while matches!(connection.order(), Order::Continue | Order::Finish) {
        connection.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use tokio::time::timeout;

    use super::*;
    use crate::http::connections::Connections;
    use crate::http::limits::Limits;

    const HTTP1: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
    /// From then on it is told again where each thing that the client says is heard.
    const LISTENS: &[u8] = b"tell me";

    fn runtime(name: &str) -> Runtime {
        Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build().unwrap()
    }

    /// Lanes, connections on them, and where each is served.
    struct Served {
        lanes: Lanes,
        connections: Arc<Connections>,
        listener: TcpListener,
        report: UnboundedSender<String>,
        reports: UnboundedReceiver<String>,
    }

    impl Served {
        async fn on(lane: &Runtime) -> Served {
            let (report, reports) = unbounded_channel();
            Served {
                lanes: Lanes::new([lane.handle().clone()]),
                connections: Arc::new(Connections::new(Limits::default())),
                listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
                report,
                reports,
            }
        }

        /// One more, that is served until its client is gone.
        async fn connect(&self) -> TcpStream {
            let client = TcpStream::connect(self.listener.local_addr().unwrap());
            let (client, accepted) = tokio::join!(client, self.listener.accept());
            let (place, report) = (self.connections.admit().unwrap(), self.report.clone());
            let shared = Arc::clone(&place.connection);
            self.lanes.run(accepted.unwrap().0, shared, |mut socket| async move {
                let report = || report.send(std::thread::current().name().unwrap().to_owned()).unwrap();
                report();
                let mut seen = Vec::new();
                while socket.read_buf(&mut seen).await.is_ok_and(|bytes| bytes > 0) {
                    if seen.ends_with(LISTENS) {
                        place.connection.listen();
                    } else if place.connection.listens() {
                        report();
                    }
                }
                drop(place);
            });
            client.unwrap()
        }

        /// As many as are served at home whatever comes.
        async fn fill_home(&mut self) -> Vec<TcpStream> {
            let mut clients = Vec::new();
            for _ in 0..HOME_AHEAD {
                let (name, client) = self.serve(HTTP1).await;
                assert_eq!(name, "home");
                clients.push(client);
            }
            clients
        }

        /// One more, when it has said something: with where it is served.
        async fn serve(&mut self, begin: &[u8]) -> (String, TcpStream) {
            let mut client = self.connect().await;
            client.write_all(begin).await.unwrap();
            (self.reports.recv().await.unwrap(), client)
        }
    }

    #[test]
    fn a_few_connections_and_those_over_http2_are_served_at_home() {
        let (home, lane) = (runtime("home"), runtime("lane"));
        // The test itself is no worker of a runtime; whatever it starts is.
        home.block_on(async {
            let mut served = Served::on(&lane).await;
            let mut clients = served.fill_home().await;
            for (begin, expected) in [
                (HTTP1, "lane"),
                (HTTP1, "home"),
                (HTTP1, "lane"),
                (HTTP1, "home"),
                (b"PRI * HTTP/2.0\r\n", "home"),
                (b"P", "home"),
                (b"PUT / HTTP/1.1\r\n", "lane"),
            ] {
                let (name, client) = served.serve(begin).await;
                assert_eq!(name, expected, "after {}", clients.len());
                clients.push(client);
            }
            assert_eq!((served.lanes.home.open(), served.lanes.others[0].open()), (HOME_AHEAD + 4, 3));
            drop(clients);
            while served.connections.open() > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(served.serve(HTTP1).await.0, "home");
        });
    }

    #[test]
    fn a_connection_that_listens_is_served_at_home_from_then_on() {
        let (home, lane) = (runtime("home"), runtime("lane"));
        home.block_on(async {
            let mut served = Served::on(&lane).await;
            let _clients = served.fill_home().await;
            let (name, mut client) = served.serve(HTTP1).await;
            assert_eq!((name.as_str(), served.lanes.others[0].open()), ("lane", 1));
            client.write_all(LISTENS).await.unwrap();
            // Its place is free for one that asks.
            while served.lanes.others[0].open() > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(served.lanes.home.open(), HOME_AHEAD);
            for _ in 0..3 {
                client.write_all(b"still there?").await.unwrap();
                assert_eq!(served.reports.recv().await.unwrap(), "home");
            }
            drop(client);
            while served.connections.open() > HOME_AHEAD {
                tokio::task::yield_now().await;
            }
        });
    }

    #[test]
    fn a_connection_that_says_nothing_ends_when_it_is_told_to() {
        let (home, lane) = (runtime("home"), runtime("lane"));
        home.block_on(async {
            let mut served = Served::on(&lane).await;
            let clients = served.fill_home().await;
            // One that is gone, and one that is silent.
            drop(served.connect().await);
            let _silent = served.connect().await;
            drop(clients);
            while served.connections.open() > 1 || served.lanes.others[0].open() > 1 {
                tokio::task::yield_now().await;
            }
            served.connections.close().await;
            assert_eq!(served.connections.open(), 0);
            assert!(served.reports.try_recv().is_err());
        });
    }

    #[test]
    fn a_request_that_is_about_to_come_when_the_server_stops_is_served() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let (home, lane) = (runtime("home"), runtime("lane"));
        home.block_on(async {
            let mut served = Served::on(&lane).await;
            let clients = served.fill_home().await;
            let mut silent = served.connect().await;
            let connections = Arc::clone(&served.connections);
            let asks = async {
                // Whoever was told is likely to have heard.
                for _ in 0..1_000 {
                    tokio::task::yield_now().await;
                }
                silent.write_all(HTTP1).await.unwrap();
                let name = timeout(PATIENCE, served.reports.recv()).await.expect("it is served").unwrap();
                assert_eq!(name, "lane");
                drop((clients, silent));
            };
            tokio::join!(connections.drain(PATIENCE), asks);
        });
    }
}
