//! A socket that reports progress to its [`Connection`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::authority::Authority;
use super::connections::Connection;
use super::pings::{DATA, FAREWELL, Frames, HEADERS, Judge, is_ping};

/// How every HTTP/2 connection begins, and no HTTP/1.1 request.
const HTTP2_BEGINS: &[u8] = b"PRI";

pub(super) struct Reporting<S> {
    socket: S,
    connection: Arc<Connection>,
    /// Whether the first bytes have been seen, and what they said.
    http2: Option<bool>,
    pings: Option<Box<Pings>>,
    /// Until it is known that the client's requests are as they should be.
    authority: Option<Authority>,
}

/// Watches over a client's pings.
struct Pings {
    read: Frames,
    written: Frames,
    judge: Judge,
    /// What of the farewell is still to be written, once the client has to go.
    farewell: Option<&'static [u8]>,
}

impl<S> Reporting<S> {
    /// Over HTTP/2 the client may ping every `ping_interval_min`, or as often as it likes.
    pub(super) fn new(socket: S, connection: Arc<Connection>, ping_interval_min: Option<Duration>) -> Self {
        let pings = ping_interval_min.map(|interval_min| {
            let (read, written) = (Frames::of_client(), Frames::default());
            Box::new(Pings { read, written, judge: Judge::new(interval_min), farewell: None })
        });
        Reporting { socket, connection, http2: None, pings, authority: Some(Authority::new()) }
    }

    fn has_read(&mut self, new: &mut [u8]) {
        let http2 = *self.http2.get_or_insert_with(|| new.starts_with(HTTP2_BEGINS));
        self.connection.on_read(http2);
        if !http2 {
            self.pings = None;
            self.authority = None;
        }
        if self.authority.as_mut().is_some_and(|authority| !authority.pass(new)) {
            self.authority = None;
        }
        let Some(pings) = &mut self.pings else { return };
        let Pings { read, judge, farewell, .. } = &mut **pings;
        read.pass(new, |kind, flags| {
            if is_ping(kind, flags)
                && judge.is_too_much(Instant::now(), self.connection.was_answered(), self.connection.is_idle())
            {
                farewell.get_or_insert(FAREWELL);
            }
        });
    }

    fn has_written(&mut self, written: &[io::IoSlice<'_>], result: &Poll<io::Result<usize>>) {
        self.connection.on_write(result.is_ready());
        if let (Some(pings), Poll::Ready(Ok(bytes))) = (&mut self.pings, result) {
            let mut left = *bytes;
            for slice in written {
                let part = left.min(slice.len());
                // A client may measure how long an answer takes with every part of it that it is sent.
                pings.written.pass(&slice[..part], |kind, _| {
                    if matches!(kind, DATA | HEADERS) {
                        self.connection.on_answer();
                    }
                });
                left -= part;
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Reporting<S> {
    /// Says farewell to a client that has to go, between two frames; `Ready` is the end.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Option<Poll<io::Error>> {
        let pings = self.pings.as_mut()?;
        let farewell = pings.farewell.as_mut().filter(|_| pings.written.is_between())?;
        while !farewell.is_empty() {
            match Pin::new(&mut self.socket).poll_write(cx, farewell) {
                Poll::Ready(Ok(bytes)) => *farewell = &farewell[bytes..],
                Poll::Ready(Err(error)) => return Some(Poll::Ready(error)),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        Some(Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "the client pings too often")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Reporting<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        let new = &mut buf.filled_mut()[before..];
        if !new.is_empty() {
            self.has_read(new);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Reporting<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(ended) = self.poll_farewell(cx) {
            return ended.map(Err);
        }
        let result = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.has_written(slices, &result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
