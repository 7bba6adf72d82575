//! One HTTP/2 connection with calls and streams on it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::message::PREFIX_BYTES;
use crate::error::{Error, Result};

/// What the server may send on one stream, and on all streams of a connection, before it waits for us.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// A connection. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    requests: SendRequest<Bytes>,
    authority: Authority,
    headers: HeaderMap,
}

impl Channel {
    /// Connects; a task of the current `LocalSet` drives the connection.
    pub(crate) async fn connect(address: SocketAddr) -> Result<Channel> {
        let action = || format!("connect to {address}");
        let socket = TcpStream::connect(address).await.map_err(Error::network(action()))?;
        socket.set_nodelay(true).map_err(Error::network(action()))?;
        let mut builder = Builder::new();
        builder.initial_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let (requests, connection) = builder.handshake(socket).await.map_err(broken(&action()))?;
        // How it ended is seen by whoever has a call on it.
        spawn_local(async move { drop(connection.await) });
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        let authority = Authority::try_from(address.to_string());
        let authority = authority.map_err(|error| Error::Check(format!("{address} is no authority: {error}")))?;
        Ok(Channel { requests, authority, headers })
    }

    /// Makes a call with one framed message; the message that answers it replaces what `answer` holds.
    pub(crate) async fn call(&mut self, path: &'static str, message: Bytes, answer: &mut Vec<u8>) -> Result<()> {
        answer.clear();
        let (response, mut send) = self.request(path).await?;
        send.send_data(message, true).map_err(broken(path))?;
        let response = response.await.map_err(broken(path))?;
        if let Some(status) = response.headers().get("grpc-status") {
            return Err(refused(path, status, response.headers()));
        }
        let mut body = response.into_body();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(broken(path))?;
            answer.extend_from_slice(&chunk);
            body.flow_control().release_capacity(chunk.len()).map_err(broken(path))?;
        }
        let trailers = body.trailers().await.map_err(broken(path))?.unwrap_or_default();
        match trailers.get("grpc-status") {
            Some(status) if status == "0" => {}
            status => return Err(refused(path, status.unwrap_or(&HeaderValue::from_static("missing")), &trailers)),
        }
        match prefixed(answer) {
            Some(length) if answer.len() == PREFIX_BYTES + length => {
                answer.drain(..PREFIX_BYTES);
                Ok(())
            }
            _ => Err(Error::Answer(format!("{path} was not answered with one message, but {} bytes", answer.len()))),
        }
    }

    /// Opens a stream in both directions.
    pub(crate) async fn open(&mut self, path: &'static str) -> Result<Stream> {
        let (response, send) = self.request(path).await?;
        Ok(Stream { path, send, receive: Receive::Waiting(response), arrived: Vec::new(), at: 0 })
    }

    async fn request(&mut self, path: &'static str) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        poll_fn(|cx| self.requests.poll_ready(cx)).await.map_err(broken(path))?;
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(PathAndQuery::from_static(path));
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_parts(parts).map_err(|error| Error::Check(format!("{path}: {error}")))?;
        *request.headers_mut() = self.headers.clone();
        self.requests.send_request(request, false).map_err(broken(path))
    }
}

/// A stream in both directions.
#[derive(Debug)]
pub(crate) struct Stream {
    path: &'static str,
    send: SendStream<Bytes>,
    receive: Receive,
    arrived: Vec<u8>,
    /// Everything before this has been given out.
    at: usize,
}

/// The server may keep its response's head until it has something to say.
#[derive(Debug)]
enum Receive {
    Waiting(ResponseFuture),
    Open(RecvStream),
}

impl Stream {
    /// Sends a framed message; it waits in memory while the server's window is closed.
    pub(crate) fn send(&mut self, message: Bytes) -> Result<()> {
        self.send.send_data(message, false).map_err(broken(self.path))
    }

    /// The next message. The end of the stream is an error: nobody here waits for one.
    pub(crate) async fn next(&mut self) -> Result<&[u8]> {
        let length = loop {
            if let Some(length) = prefixed(&self.arrived[self.at..]) {
                break length;
            }
            self.read().await?;
        };
        let begun = self.at + PREFIX_BYTES;
        self.at = begun + length;
        Ok(&self.arrived[begun..self.at])
    }

    /// Whether a whole message is there already.
    pub(crate) fn ready(&self) -> bool {
        prefixed(&self.arrived[self.at..]).is_some()
    }

    async fn read(&mut self) -> Result<()> {
        self.arrived.drain(..self.at);
        self.at = 0;
        if let Receive::Waiting(response) = &mut self.receive {
            let response = response.await.map_err(broken(self.path))?;
            if let Some(status) = response.headers().get("grpc-status") {
                return Err(refused(self.path, status, response.headers()));
            }
            self.receive = Receive::Open(response.into_body());
        }
        let Receive::Open(body) = &mut self.receive else { return Ok(()) };
        let Some(chunk) = body.data().await else {
            let trailers = body.trailers().await.map_err(broken(self.path))?.unwrap_or_default();
            let missing = HeaderValue::from_static("missing");
            return Err(refused(self.path, trailers.get("grpc-status").unwrap_or(&missing), &trailers));
        };
        let chunk = chunk.map_err(broken(self.path))?;
        self.arrived.extend_from_slice(&chunk);
        body.flow_control().release_capacity(chunk.len()).map_err(broken(self.path))
    }
}

/// The length of the message that `arrived` begins with, if it is whole.
fn prefixed(arrived: &[u8]) -> Option<usize> {
    let prefix = arrived.get(1..PREFIX_BYTES)?;
    let length = prefix.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    (arrived.len() >= PREFIX_BYTES + length).then_some(length)
}

fn broken(action: &str) -> impl FnOnce(h2::Error) -> Error + use<> {
    let action = action.to_owned();
    move |error| Error::network(action)(io::Error::other(error))
}

fn refused(path: &str, status: &HeaderValue, headers: &HeaderMap) -> Error {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let message = headers.get("grpc-message").map(text).unwrap_or_default();
    Error::Answer(format!("{path} ended with status {}: {message}", text(status)))
}

#[cfg(test)]
mod tests {
    use super::prefixed;

    #[test]
    fn a_message_counts_once_it_is_whole() {
        assert_eq!(prefixed(&[0, 0, 0, 0]), None);
        assert_eq!(prefixed(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(prefixed(&[0, 0, 0, 0, 2, 7]), None);
        assert_eq!(prefixed(&[0, 0, 0, 0, 2, 7, 7, 0]), Some(2));
        assert_eq!(prefixed(&[0, 0, 0, 1, 0]), None);
    }
}
