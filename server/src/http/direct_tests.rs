//! Answers that go on, over connections with little room.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::*;
use crate::config::Allowed;
use crate::http::connections::{Connections, Order};
use crate::http::limits::Limits;
use crate::http::{Front, Http2, Settings, connection};

const SETTINGS: Settings = Settings::Clients(Http2 {
    streams_max: 100,
    ping_interval: Duration::ZERO,
    ping_timeout: Duration::from_secs(20),
    client_ping_interval_min: Duration::ZERO,
});
/// How long anything may take that is bound to come.
const PATIENCE: Duration = Duration::from_secs(60);
const LISTEN: &[u8] = b"POST /v3/watch HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n";
const ASK: &[u8] = b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n";

/// A connection, as its client and as what tells it see it.
struct Served {
    client: DuplexStream,
    shared: Arc<Connection>,
    /// Where the parts of each stream that the client opens come from.
    streams: UnboundedReceiver<UnboundedSender<Bytes>>,
    /// Parts that were asked for, of all streams.
    taken: Arc<AtomicUsize>,
    /// Streams have no parts.
    over_at_once: Arc<AtomicBool>,
    /// The way to the client, as the newest answer has it, with what it was asked by.
    outlet: Arc<Mutex<Option<(Outlet, Waker)>>>,
    arrived: Vec<u8>,
}

impl Served {
    /// With room for so many bytes on the way.
    fn with_room(bytes: usize) -> Served {
        let (client, socket) = duplex(bytes);
        Served::on(socket, client)
    }

    /// Over what goes to that client.
    fn on<S>(socket: S, client: DuplexStream) -> Served
    where
        S: Socket + AsyncRead + AsyncWrite + Send + 'static,
    {
        let (opened, streams) = unbounded_channel();
        let taken = Arc::new(AtomicUsize::new(0));
        let over_at_once = Arc::new(AtomicBool::new(false));
        let (counter, is_over) = (Arc::clone(&taken), Arc::clone(&over_at_once));
        let outlet: Arc<Mutex<Option<(Outlet, Waker)>>> = Arc::default();
        let way = Arc::clone(&outlet);
        let listen = move |request: axum::extract::Request| {
            let (parts, mut stream) = unbounded_channel::<Bytes>();
            let (way, lent) = (Arc::clone(&way), request.extensions().get::<Outlet>().cloned());
            if !is_over.load(Relaxed) {
                opened.send(parts).unwrap();
            }
            let stream = futures_util::stream::poll_fn(move |cx| {
                *lock(&way) = lent.clone().map(|outlet| (outlet, cx.waker().clone()));
                stream.poll_recv(cx).map(|part| part.map(Ok::<_, std::convert::Infallible>))
            });
            let counter = Arc::clone(&counter);
            let body = axum::body::Body::from_stream(stream.inspect(move |_| {
                counter.fetch_add(1, Relaxed);
            }));
            std::future::ready(body)
        };
        let routes = Router::new().route("/v3/watch", post(listen)).route("/version", get(|| async { "1" }));
        let front = Arc::new(Front::new(routes, Allowed::All, Allowed::All));
        let place = Arc::new(Connections::new(Limits::default())).admit().unwrap();
        let shared = Arc::clone(&place.connection);
        tokio::spawn(connection(SETTINGS, 8 << 10, socket, front, place));
        Served { client, shared, streams, taken, over_at_once, outlet, arrived: Vec::new() }
    }

    /// Opens a stream whose answer has begun.
    async fn listen(&mut self) -> UnboundedSender<Bytes> {
        self.client.write_all(LISTEN).await.unwrap();
        let parts = self.streams.recv().await.unwrap();
        parts.send(Bytes::from_static(b"begun")).unwrap();
        self.expect(b"5\r\nbegun\r\n").await;
        let head = self.arrived.drain(..).collect::<Vec<_>>();
        assert!(head.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&head));
        self.settle().await;
        parts
    }

    /// Reads until something comes that ends so.
    async fn expect(&mut self, end: &[u8]) {
        while !self.arrived.ends_with(end) {
            let read = timeout(PATIENCE, self.client.read_buf(&mut self.arrived)).await;
            let read = read.unwrap_or_else(|_| panic!("nothing came after {} bytes", self.arrived.len())).unwrap();
            assert!(read > 0, "the connection has ended after {}", String::from_utf8_lossy(&self.arrived));
        }
    }

    /// Puts a chunk with this part into the newest answer's outlet.
    fn put(&self, part: &[u8]) -> bool {
        let (outlet, waker) = lock(&self.outlet).clone().expect("there is an outlet");
        outlet.send(&Framed::new(part), &waker)
    }

    /// Lets the connection go on until it can no more.
    async fn settle(&self) {
        for _ in 0..100 {
            yield_now().await;
        }
    }
}

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

fn part(letter: u8, bytes: usize) -> Bytes {
    vec![letter; bytes].into()
}

#[tokio::test]
async fn parts_come_whole_and_in_order_and_the_connection_goes_on_after_them() {
    for room in [7, 64, 1 << 20] {
        let mut served = Served::with_room(room);
        for _ in 0..2 {
            let parts = served.listen().await;
            let mut expected = Vec::new();
            for (letter, bytes) in (b'a'..).zip([1, 15, 16, 0, 700, 1_017, 1_018, 1_024, 5_000, 70_000]) {
                let part = part(letter, bytes);
                if bytes > 0 {
                    expected.extend(chunk(&part));
                }
                parts.send(part).unwrap();
                if bytes % 2 == 0 {
                    served.settle().await;
                }
            }
            drop(parts);
            served.expect(b"0\r\n\r\n").await;
            expected.extend(b"0\r\n\r\n");
            assert!(served.arrived == expected, "{} bytes of {}", served.arrived.len(), expected.len());
            served.arrived.clear();
        }
        served.client.write_all(ASK).await.unwrap();
        served.expect(b"\r\n\r\n1").await;
    }
}

/// What HTTP was given fills the way; what comes then must wait for it.
#[tokio::test]
async fn nothing_overtakes_what_http_has_to_send() {
    let mut served = Served::with_room(64);
    served.client.write_all(LISTEN).await.unwrap();
    let parts = served.streams.recv().await.unwrap();
    parts.send(part(b'a', 1_000)).unwrap();
    served.settle().await;
    parts.send(part(b'b', 5)).unwrap();
    served.settle().await;
    drop(parts);
    served.expect(b"0\r\n\r\n").await;
    let expected = [chunk(&[b'a'; 1_000]), chunk(b"bbbbb"), b"0\r\n\r\n".to_vec()].concat();
    assert!(served.arrived.ends_with(&expected), "{}", String::from_utf8_lossy(&served.arrived));
}

#[tokio::test]
async fn what_is_put_into_the_outlet_comes_whole_and_in_its_place() {
    for room in [7, 64, 1 << 20] {
        let mut served = Served::with_room(room);
        for _ in 0..2 {
            let parts = served.listen().await;
            assert!(served.put(&[b'a'; 500]));
            let goes_on = room > 500;
            // There is one on the way for which there is no room.
            assert_eq!(served.put(b"b"), goes_on);
            parts.send(part(b'c', 300)).unwrap();
            let mut expected = chunk(&[b'a'; 500]);
            if goes_on {
                expected.extend(chunk(b"b"));
            }
            expected.extend(chunk(&[b'c'; 300]));
            served.expect(&chunk(&[b'c'; 300])).await;
            assert!(served.arrived == expected, "{}", String::from_utf8_lossy(&served.arrived));
            served.settle().await;
            served.arrived.clear();
            assert!(served.put(&[b'd'; 100]));
            drop(parts);
            served.expect(b"0\r\n\r\n").await;
            assert_eq!(served.arrived, [chunk(&[b'd'; 100]), b"0\r\n\r\n".to_vec()].concat());
            served.arrived.clear();
            served.settle().await;
            assert!(!served.put(b"x"), "the answer is over");
        }
        served.client.write_all(ASK).await.unwrap();
        served.expect(b"\r\n\r\n1").await;
    }
}

/// HTTP has not sent what it was given, or the connection is at a part of its own.
#[tokio::test]
async fn a_connection_that_is_busy_is_not_lent() {
    let mut served = Served::with_room(64);
    served.client.write_all(LISTEN).await.unwrap();
    let parts = served.streams.recv().await.unwrap();
    parts.send(part(b'a', 1_000)).unwrap();
    served.settle().await;
    assert!(!served.put(b"x"));
    served.expect(&chunk(&[b'a'; 1_000])).await;
    served.settle().await;
    parts.send(part(b'b', 1_000)).unwrap();
    served.settle().await;
    assert!(!served.put(b"x"));
    served.arrived.clear();
    served.expect(&chunk(&[b'b'; 1_000])).await;
    assert_eq!(served.arrived, chunk(&[b'b'; 1_000]));
    served.settle().await;
    assert!(served.put(b"c"));
    served.expect(&chunk(b"c")).await;
}

#[tokio::test]
async fn a_chunk_for_a_client_that_is_gone_ends_the_stream() {
    for bytes in [1, 500] {
        let mut served = Served::with_room(64);
        let parts = served.listen().await;
        drop(std::mem::replace(&mut served.client, duplex(1).0));
        served.put(&part(b'x', bytes));
        parts.closed().await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_costs_one_part() {
    let mut served = Served::with_room(64);
    let parts = served.listen().await;
    let before = served.taken.load(Relaxed);
    for _ in 0..100 {
        parts.send(part(b'x', 500)).unwrap();
        served.settle().await;
    }
    assert_eq!(served.taken.load(Relaxed) - before, 1);
    drop(parts);
    served.expect(b"0\r\n\r\n").await;
    assert_eq!(served.arrived, [chunk(&[b'x'; 500]).repeat(100), b"0\r\n\r\n".to_vec()].concat());
}

#[tokio::test]
async fn a_stream_ends_with_its_client() {
    let mut served = Served::with_room(64);
    let parts = served.listen().await;
    drop(served.client);
    parts.closed().await;
    // Also if it is being sent something.
    let mut served = Served::with_room(64);
    let parts = served.listen().await;
    parts.send(part(b'x', 500)).unwrap();
    served.settle().await;
    drop(served.client);
    parts.closed().await;
}

#[tokio::test]
async fn a_connection_that_is_to_finish_sends_what_is_left() {
    let mut served = Served::with_room(64);
    let parts = served.listen().await;
    served.shared.command(Order::Drain);
    served.settle().await;
    parts.send(part(b'x', 500)).unwrap();
    drop(parts);
    served.client.read_to_end(&mut served.arrived).await.unwrap();
    assert_eq!(served.arrived, [chunk(&[b'x'; 500]), b"0\r\n\r\n".to_vec()].concat());
}

/// Whatever holds an answer, its end must end its request, and that of its connection everything.
#[tokio::test]
async fn an_answer_that_is_over_at_once_leaves_nothing() {
    for (close, last) in [("", "HTTP/1.1 200 OK\r\n"), ("Connection: close\r\n", "connection: close\r\n")] {
        let mut served = Served::with_room(1 << 10);
        let request = format!("POST /v3/watch HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n{close}\r\n");
        served.over_at_once.store(true, Relaxed);
        served.client.write_all(request.as_bytes()).await.unwrap();
        served.expect(b"0\r\n\r\n").await;
        let answer = String::from_utf8(std::mem::take(&mut served.arrived)).unwrap();
        assert!(answer.contains(last), "{answer}");
        served.settle().await;
        assert!(served.shared.is_idle());
        if close.is_empty() {
            served.client.write_all(ASK).await.unwrap();
            served.expect(b"\r\n\r\n1").await;
        }
        let Served { client, shared, outlet, .. } = served;
        lock(&outlet).take();
        drop(client);
        while Arc::strong_count(&shared) > 1 {
            yield_now().await;
        }
    }
}

/// HTTP has read what it cannot use before the stream ends, and reads no more.
#[tokio::test]
async fn a_client_that_is_gone_is_noticed_though_it_has_said_more() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    let (mut client, mut served) = (client.unwrap(), Served::on(accepted.unwrap().0, duplex(1).0));
    client.write_all(&[LISTEN, b"x"].concat()).await.unwrap();
    let parts = served.streams.recv().await.unwrap();
    parts.send(Bytes::from_static(b"begun")).unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"begun\r\n") {
        client.read_buf(&mut seen).await.unwrap();
    }
    tokio::time::sleep(3 * LOOK_INTERVAL).await;
    assert!(!parts.is_closed());
    drop(client);
    parts.closed().await;
}

/// The body of an answer over HTTP/1.0 is no row of chunks.
#[tokio::test]
async fn an_older_client_gets_the_parts_as_they_are() {
    let mut served = Served::with_room(64);
    served.client.write_all(b"POST /v3/watch HTTP/1.0\r\nHost: h\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let parts = served.streams.recv().await.unwrap();
    parts.send(part(b'a', 5)).unwrap();
    served.settle().await;
    parts.send(part(b'b', 5)).unwrap();
    drop(parts);
    served.client.read_to_end(&mut served.arrived).await.unwrap();
    assert!(served.arrived.ends_with(b"\r\n\r\naaaaabbbbb"), "{}", String::from_utf8_lossy(&served.arrived));
}
