//! Answers that go on, sent past HTTP.
//!
//! What HTTP does for each part of an answer over HTTP/1.1, looking for requests, taking the part, framing and flushing it,
//! costs as much as making it. Of most answers there is one part, but of a stream of changes there are very many, and a
//! thousand streams may wait for the same change. So once such a body has to wait, its connection asks it, and writes each
//! part as one chunk to the socket. As HTTP sees it the body says nothing any more, until its end.
//!
//! ```text
//!              until it waits                       from then on
//!   HTTP ◄────────────────────── Body ─┐
//!                                      ├─ answer ────────────► Direct ──► chunks ──► socket
//!   HTTP ◄── the end ─────────── Body ─┘
//! ```
//!
//! How a chunk is written depends on nothing before it ([RFC 9112], section 7.1), so HTTP need not know of these.
//!
//! - **Invariant**: HTTP and this never write at once. It begins when what HTTP was given has left, HTTP is given the end
//!   when the last chunk has left whole, and nothing in between.
//! - **Invariant**: one part is made when the one before has left, so a client that does not read costs one.
//! - **Invariant**: the answer is HTTP's. It goes when HTTP lets go of it, whoever sends it.
//!
//! Whoever has the same for many answers need not have each of their connections ask for it: while one rests, it lends its
//! socket, and takes whole chunks by its [`Outlet`].
//!
//! - **Invariant**: an outlet takes nothing from the moment in which its connection goes on until that rests again.
//!
//! [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::connections::Connection;
use super::front::Tracked;
use super::io::{Reporting, Socket};

/// The size of a chunk in hexadecimal, and the end of its line.
const HEAD_BYTES_MAX: usize = 2 * size_of::<usize>() + CRLF.len();
const CRLF: &[u8] = b"\r\n";

/// While HTTP reads nothing, how often it is seen to that the client is still there.
const LOOK_INTERVAL: Duration = if cfg!(test) { Duration::from_millis(10) } else { Duration::from_secs(5) };

type Part = Option<Result<Frame<Bytes>, axum::Error>>;

/// The body of an answer that goes on, which HTTP asks at first.
struct Answer {
    body: Tracked,
    turn: Turn,
}

enum Turn {
    Http,
    Direct,
    /// What HTTP still has to hear: the end, or why it is one.
    Over(Option<Part>),
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked while it wrote has left a part of it unsaid at most, which is for its connection to go on with.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a connection finds the answer that it is to ask itself, and the answer its connection.
#[derive(Default)]
pub(super) struct Slot {
    answer: Mutex<Option<Weak<Mutex<Answer>>>>,
    wire: OnceLock<Weak<dyn Lend>>,
}

impl Slot {
    /// Shows an answer to the connection; HTTP gets what is returned. It must be one over HTTP/1.1, which sends it in
    /// chunks: of no length that is known.
    pub(super) fn share(&self, answer: Tracked) -> Body {
        let answer = Arc::new(Mutex::new(Answer { body: answer, turn: Turn::Http }));
        *lock(&self.answer) = Some(Arc::downgrade(&answer));
        Body(answer)
    }

    /// For what makes such an answer.
    pub(super) fn outlet(&self) -> Option<Outlet> {
        self.wire.get()?.upgrade().map(Outlet)
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Slot").finish_non_exhaustive()
    }
}

/// HTTP's side of an answer.
pub(super) struct Body(Arc<Mutex<Answer>>);

impl HttpBody for Body {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Part> {
        let mut answer = lock(&self.0);
        match &mut answer.turn {
            Turn::Http => {}
            Turn::Direct => return Poll::Pending,
            Turn::Over(end) => return Poll::Ready(end.take().flatten()),
        }
        let part = Pin::new(&mut answer.body).poll_frame(cx);
        if part.is_pending() {
            answer.turn = Turn::Direct;
        }
        part
    }
}

/// What HTTP reads and writes, when the connection writes to it too.
pub(super) struct Io<S>(Arc<Mutex<Wire<S>>>);

struct Wire<S> {
    socket: Reporting<S>,
    /// HTTP could not write all that it had.
    is_blocked: bool,
    /// HTTP is told when something comes, or the client is gone. It is not while it has read what it cannot use yet.
    is_reading: bool,
    /// What is being sent past HTTP.
    chunk: Chunk,
    /// The connection rests until there is more to send past HTTP. Meanwhile HTTP may have turns, but has nothing to write.
    is_lent: bool,
}

impl<S: Socket + AsyncWrite> Wire<S> {
    /// Sends the rest of the chunk, if there is one.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.chunk.poll_send(cx, &mut self.socket)
    }
}

impl<S> Wire<S> {
    fn note<T>(&mut self, result: Poll<T>) -> Poll<T> {
        self.is_blocked = result.is_pending();
        result
    }
}

impl<S: Socket + AsyncRead> AsyncRead for Io<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.0);
        let result = Pin::new(&mut wire.socket).poll_read(cx, buf);
        wire.is_reading = result.is_pending();
        result
    }
}

impl<S: Socket + AsyncWrite> AsyncWrite for Io<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut wire = lock(&self.0);
        let result = Pin::new(&mut wire.socket).poll_write(cx, bytes);
        wire.note(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut wire = lock(&self.0);
        let result = Pin::new(&mut wire.socket).poll_write_vectored(cx, slices);
        wire.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.0).socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).socket).poll_shutdown(cx)
    }
}

/// A connection's side of its answers.
pub(super) struct Direct<S> {
    wire: Arc<Mutex<Wire<S>>>,
    connection: Arc<Connection>,
    /// The answer that is being sent. HTTP may have let go of it.
    answer: Option<Weak<Mutex<Answer>>>,
    /// When it is looked whether the client is there, if HTTP does not.
    look: Option<Pin<Box<Sleep>>>,
}

impl<S: Socket + AsyncWrite + Send + 'static> Direct<S> {
    /// Of a connection, with what its HTTP is to read and write.
    pub(super) fn new(socket: Reporting<S>, connection: Arc<Connection>) -> (Io<S>, Direct<S>) {
        let chunk = Chunk::default();
        let wire = Wire { socket, is_blocked: false, is_reading: true, chunk, is_lent: false };
        let wire = Arc::new(Mutex::new(wire));
        let lent: Weak<Mutex<Wire<S>>> = Arc::downgrade(&wire);
        connection.direct.wire.get_or_init(|| lent);
        (Io(Arc::clone(&wire)), Direct { wire, connection, answer: None, look: None })
    }
}

impl<S: Socket + AsyncWrite> Direct<S> {
    /// Whether there is an answer to send, after HTTP has had its turn.
    pub(super) fn has_answer(&mut self) -> bool {
        if !self.connection.listens() {
            return false;
        }
        if let Some(new) = lock(&self.connection.direct.answer).take() {
            self.answer = Some(new);
        }
        if self.answer.as_ref().is_some_and(|answer| answer.strong_count() == 0) {
            self.answer = None;
            lock(&self.wire).is_lent = false;
        }
        let looks = self.answer.is_some() && !lock(&self.wire).is_reading;
        if looks != self.look.is_some() {
            self.look = looks.then(|| Box::pin(sleep(LOOK_INTERVAL)));
        }
        self.answer.is_some()
    }

    /// Sends what there is. `Ready` at the answer's end, which HTTP is to be told of.
    ///
    /// # Errors
    /// Of the socket: nothing can be sent any more.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(answer) = self.answer.as_ref().and_then(Weak::upgrade) else { return Poll::Pending };
        while let Some(look) = &mut self.look
            && look.as_mut().poll(cx).is_ready()
        {
            if lock(&self.wire).socket.is_left() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            self.look = Some(Box::pin(sleep(LOOK_INTERVAL)));
        }
        loop {
            let mut wire = lock(&self.wire);
            wire.is_lent = false;
            if wire.is_blocked {
                // It is HTTP that is woken when there is room.
                return Poll::Pending;
            }
            ready!(wire.poll_send(cx))?;
            drop(wire);
            let mut answer = lock(&answer);
            if !matches!(answer.turn, Turn::Direct) {
                return Poll::Pending;
            }
            match Pin::new(&mut answer.body).poll_frame(cx) {
                Poll::Pending => {
                    lock(&self.wire).is_lent = true;
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(part))) => {
                    // An empty chunk would be the last.
                    if let Some(data) = part.into_data().ok().filter(|data| !data.is_empty()) {
                        lock(&self.wire).chunk = Chunk::new(data);
                    }
                }
                Poll::Ready(end) => {
                    answer.turn = Turn::Over(Some(end));
                    self.answer = None;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

/// How a chunk of so many bytes begins, and how long that is.
fn head(bytes: usize) -> ([u8; HEAD_BYTES_MAX], usize) {
    let mut head = [0; HEAD_BYTES_MAX];
    let mut room = &mut head[..];
    let written = write!(room, "{bytes:x}\r\n");
    let head_bytes = HEAD_BYTES_MAX - room.len();
    debug_assert!(written.is_ok(), "there is room for every length");
    (head, head_bytes)
}

/// A part of an answer with the frame of a chunk around it, to be sent to many.
pub(crate) struct Framed(Bytes);

impl Framed {
    /// `part` must not be empty: such a chunk would be the last.
    pub(crate) fn new(part: &[u8]) -> Framed {
        let (head, head_bytes) = head(part.len());
        Framed([&head[..head_bytes], part, CRLF].concat().into())
    }
}

/// The way to the client of an answer, for whoever has chunks for it while its connection rests. It stands among the extensions
/// of a request whose answer may go on.
#[derive(Clone)]
pub(crate) struct Outlet(Arc<dyn Lend>);

impl Outlet {
    /// Takes a chunk, unless the connection does not rest, or is still at the one before. The client has it after everything that
    /// was said before, if the connection lasts; `waker` is what it asked its answer with, to go on with the chunk where there is
    /// no room for it.
    pub(crate) fn send(&self, chunk: &Framed, waker: &Waker) -> bool {
        self.0.send(chunk, waker)
    }
}

/// [`Outlet`], whatever the socket.
trait Lend: Send + Sync {
    fn send(&self, chunk: &Framed, waker: &Waker) -> bool;
}

impl<S: Socket + AsyncWrite + Send> Lend for Mutex<Wire<S>> {
    fn send(&self, chunk: &Framed, waker: &Waker) -> bool {
        let mut wire = lock(self);
        if !wire.is_lent || wire.is_blocked || !wire.chunk.data.is_empty() {
            return false;
        }
        wire.chunk = Chunk { data: chunk.0.clone(), is_framed: true, ..Chunk::default() };
        if let Poll::Ready(Err(_)) = wire.poll_send(&mut Context::from_waker(waker)) {
            // The connection finds that out for itself, as the chunk is still there.
            waker.wake_by_ref();
        }
        true
    }
}

/// A chunk that is being sent; none if there is no data.
#[derive(Default)]
struct Chunk {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: usize,
    data: Bytes,
    /// The frame is around the data already.
    is_framed: bool,
    /// So much of it all has been.
    sent: usize,
}

impl Chunk {
    fn new(data: Bytes) -> Chunk {
        let (head, head_bytes) = head(data.len());
        Chunk { head, head_bytes, data, is_framed: false, sent: 0 }
    }

    fn poll_send<S: Socket + AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Reporting<S>,
    ) -> Poll<io::Result<()>> {
        if self.data.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let end = if self.is_framed { &[] } else { CRLF };
        let bytes = self.head_bytes + self.data.len() + end.len();
        while self.sent < bytes {
            let mut parts = [&self.head[..self.head_bytes], &self.data, end].map(IoSlice::new);
            let mut left = if self.is_framed { &mut parts[1..2] } else { &mut parts[..] };
            IoSlice::advance_slices(&mut left, self.sent);
            match ready!(Pin::new(&mut *socket).poll_write_vectored(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        // A stream that waits keeps no memory for it.
        *self = Chunk::default();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[path = "direct_tests.rs"]
mod tests;
