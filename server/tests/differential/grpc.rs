//! A gRPC client that shows everything: raw messages out, and the status, message and bytes that come back.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// More than anybody sends: a stream that nobody reads must not hold up the others.
const WINDOW_BYTES: u32 = 1 << 30;

type Body = StreamBody<UnboundedReceiverStream<Result<Frame<Bytes>, Infallible>>>;

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The HTTP status where it is not 200, else `grpc-status`.
    pub(crate) code: i64,
    pub(crate) message: String,
}

/// What a stream gives.
#[derive(Debug)]
pub(crate) enum Item {
    Message(Vec<u8>),
    End(Ended),
}

/// A connection. Its tasks run on a runtime that all connections share.
pub(crate) struct Grpc {
    address: SocketAddr,
    send: Option<SendRequest<Body>>,
}

/// One runtime for all connections of a run.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: std::sync::OnceLock<Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap())
}

impl Grpc {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, send: None }
    }

    async fn connection(&mut self) -> &mut SendRequest<Body> {
        if self.send.as_ref().is_none_or(SendRequest::is_closed) {
            let socket = tokio::net::TcpStream::connect(self.address).await.unwrap();
            socket.set_nodelay(true).unwrap();
            let mut builder = Builder::new(TokioExecutor::new());
            builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
            let (send, connection) = builder.handshake(TokioIo::new(socket)).await.unwrap();
            runtime().spawn(async move { drop(connection.await) });
            self.send = Some(send);
        }
        self.send.as_mut().unwrap()
    }

    /// Sends these bytes as the whole body of a request and gives how it ended, and the messages before that. Headers
    /// replace the usual ones of the same name; those without a value take it away.
    pub(crate) fn raw(&mut self, path: &str, body: Vec<Bytes>, headers: &[(&str, &str)]) -> (Ended, Vec<Vec<u8>>) {
        let ended = self.raw_within(path, body, headers, PATIENCE);
        ended.unwrap_or_else(|| panic!("{path} at {} has not ended in {PATIENCE:?}", self.address))
    }

    /// The same, or `None` if it has not ended within that time.
    pub(crate) fn raw_within(
        &mut self,
        path: &str,
        body: Vec<Bytes>,
        headers: &[(&str, &str)],
        patience: Duration,
    ) -> Option<(Ended, Vec<Vec<u8>>)> {
        let (sender, items) = mpsc::channel();
        let requests = self.open_with(path, headers, sender);
        for bytes in body {
            requests.send(Ok(Frame::data(bytes))).unwrap_or(());
        }
        drop(requests);
        let mut messages = Vec::new();
        loop {
            match items.recv_timeout(patience) {
                Ok(Item::Message(message)) => messages.push(message),
                Ok(Item::End(ended)) => return Some((ended, messages)),
                Err(_) => return None,
            }
        }
    }

    /// A call with one message in, and at most one out.
    pub(crate) fn call(&mut self, path: &str, message: &[u8]) -> Result<Vec<u8>, Ended> {
        let (ended, mut messages) = self.raw(path, vec![framed(message)], &[]);
        match (ended.code, messages.pop()) {
            (0, Some(message)) if messages.is_empty() => Ok(message),
            (0, left) => panic!("{path}: {} messages and status 0", messages.len() + usize::from(left.is_some())),
            _ => Err(ended),
        }
    }

    /// Opens a stream; what arrives is sent on.
    pub(crate) fn open(&mut self, path: &str, items: mpsc::Sender<Item>) -> Requests {
        Requests(self.open_with(path, &[], items))
    }

    fn open_with(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        items: mpsc::Sender<Item>,
    ) -> UnboundedSender<Result<Frame<Bytes>, Infallible>> {
        let (requests, body) = unbounded_channel();
        let mut request = Request::post(format!("http://{}{path}", self.address))
            .body(StreamBody::new(UnboundedReceiverStream::new(body)))
            .unwrap();
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(headers) {
            let name: hyper::header::HeaderName = name.parse().unwrap();
            if value.is_empty() {
                request.headers_mut().remove(name);
            } else {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
        }
        // The call has left before the first message of it is given; its answer may be a long way off.
        let connection = runtime().block_on(async {
            let connection = self.connection().await;
            connection.ready().await.unwrap();
            connection
        });
        let response = connection.send_request(request);
        runtime().spawn(async move {
            let ended = match response.await {
                Ok(response) => read(response, &items).await,
                Err(error) => broken(&error),
            };
            // Whoever opened it may be gone.
            items.send(Item::End(ended)).unwrap_or(());
        });
        requests
    }
}

/// The sending half of a stream; dropping it ends the requests, not the stream.
pub(crate) struct Requests(UnboundedSender<Result<Frame<Bytes>, Infallible>>);

impl Requests {
    pub(crate) fn send(&self, message: &[u8]) {
        self.0.send(Ok(Frame::data(framed(message)))).unwrap_or(());
    }
}

/// A message with the five bytes before it.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut out = vec![0];
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out.into()
}

fn broken(error: &hyper::Error) -> Ended {
    let mut source = std::error::Error::source(error);
    let mut message = error.to_string();
    while let Some(inner) = source {
        message = inner.to_string();
        source = inner.source();
    }
    Ended { code: -1, message }
}

async fn read(response: hyper::Response<Incoming>, items: &mpsc::Sender<Item>) -> Ended {
    let status = response.status().as_u16();
    let (parts, mut body) = response.into_parts();
    let (mut arrived, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => arrived.extend_from_slice(&data),
            Ok(Err(frame)) => trailers = frame.into_trailers().unwrap_or_default(),
            Err(error) => return broken(&error),
        }
        while let Some(length) = arrived.get(1..5).map(|prefix| u32::from_be_bytes(prefix.try_into().unwrap()) as usize)
        {
            if status != 200 || arrived.len() < 5 + length {
                break;
            }
            items.send(Item::Message(arrived[5..5 + length].to_vec())).unwrap_or(());
            arrived.drain(..5 + length);
        }
    }
    let field = |name: &str| {
        let value = trailers.get(name).or(parts.headers.get(name))?;
        Some(percent_decoded(value.as_bytes()))
    };
    let code = field("grpc-status").and_then(|code| code.parse().ok());
    let message = field("grpc-message").unwrap_or_default();
    Ended { code: code.unwrap_or(i64::from(status)), message }
}

fn percent_decoded(text: &[u8]) -> String {
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let code =
            text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match (text[at], code) {
            (b'%', Some(code)) => {
                out.push(code);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
