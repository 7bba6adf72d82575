//! A socket that reports progress to its [`Connection`].

use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};

use super::authority::{Authority, Seen};
use super::connections::Connection;
use super::pings::{DATA, FAREWELL, Frames, HEADERS, Judge, is_ping};

/// How every HTTP/2 connection begins, and no HTTP/1.1 request.
const HTTP2_BEGINS: &[u8] = b"PRI";

/// At most so much is read over HTTP/2 at once, except of a large frame.
const READ_BYTES_MAX: usize = 4 << 10;
/// What the library keeps for each frame until its request takes it, beside what is in it: in memory that it gives back when
/// the connection ends. And once the records of small frames have grown to half its window, it ends the connection.
const FRAME_RECORD_BYTES: usize = 256;
/// Once what was read takes so much, HTTP's turn is over: then the requests have theirs.
const TURN_BYTES: usize = 16 << 10;

/// Pieces that have no more bytes together are written as one.
const JOINED_BYTES_MAX: usize = 1024;

/// Over HTTP/2 so much at once is kept until HTTP's turn ends, and so much in all. The library flushes every answer that is
/// not very small by itself, but what costs most about a small answer is its system call.
const KEPT_AT_ONCE_MAX: usize = 4 << 10;
const KEPT_MAX: usize = 32 << 10;

/// What bytes come and go by.
pub(super) trait Socket: Unpin {
    /// Waits for its bytes in this runtime from now on, not in the one that it was opened in. Where that fails it is woken
    /// from there, which takes longer.
    fn move_here(&mut self) {}

    /// Whether the client has ended its side, as far as that is known without reading.
    fn is_left(&self) -> bool {
        false
    }
}

impl Socket for UnixStream {
    fn is_left(&self) -> bool {
        self.ready(Interest::READABLE).now_or_never().is_some_and(is_read_closed)
    }
}

/// Of the readiness of a socket.
fn is_read_closed(ready: io::Result<Ready>) -> bool {
    ready.map_or(true, |ready| ready.is_read_closed())
}

impl Socket for TcpStream {
    fn is_left(&self) -> bool {
        self.ready(Interest::READABLE).now_or_never().is_some_and(is_read_closed)
    }

    fn move_here(&mut self) {
        let moved = self.as_fd().try_clone_to_owned().map(std::net::TcpStream::from).and_then(TcpStream::from_std);
        if let Ok(moved) = moved {
            *self = moved;
        }
    }
}

pub(super) struct Reporting<S> {
    socket: S,
    connection: Arc<Connection>,
    /// Whether the first bytes have been seen, and what they said.
    http2: Option<bool>,
    /// `None` on connections of other members, and of HTTP/1.1.
    pings: Option<Box<Pings>>,
    /// Until it is known that the client's requests are as they should be.
    authority: Option<Authority>,
    /// What has been read of something that is not there whole: of the first letters, or of a request's head.
    held: Vec<u8>,
    /// What is to be sent before anything else, and how much of it has been.
    kept: Vec<u8>,
    sent: usize,
}

/// Watches over a client's frames.
struct Pings {
    read: Frames,
    written: Frames,
    /// `None` if the client may ping as often as it likes.
    judge: Option<Judge>,
    /// What of the farewell is still to be written, once the client has to go.
    farewell: Option<&'static [u8]>,
}

impl<S> Reporting<S> {
    /// Over HTTP/2 the client may ping every `ping_interval_min`, or as often as it likes if that is zero; `None` is another
    /// member, who is not watched over.
    pub(super) fn new(socket: S, connection: Arc<Connection>, ping_interval_min: Option<Duration>) -> Self {
        let pings = ping_interval_min.map(|interval_min| {
            let (read, written) = (Frames::of_client(), Frames::default());
            let judge = (!interval_min.is_zero()).then(|| Judge::new(interval_min));
            Box::new(Pings { read, written, judge, farewell: None })
        });
        Reporting {
            socket,
            connection,
            http2: None,
            pings,
            authority: Some(Authority::new()),
            held: Vec::new(),
            kept: Vec::new(),
            sent: 0,
        }
    }

    /// How much may be read at once: nothing once the turn is over, and `None` is as much as there is room for. A turn does
    /// not end within a large frame, for which nobody has a use before it is whole.
    fn read_bytes_max(&self) -> Option<usize> {
        let frames = self.pings.as_ref()?;
        match frames.read.left() {
            left if left >= READ_BYTES_MAX => Some(left),
            _ if self.connection.turn_bytes() >= TURN_BYTES => Some(0),
            _ => Some(READ_BYTES_MAX),
        }
    }

    /// Looks at what was read. Returns how many bytes of its end are held back, to be seen together with what follows.
    fn has_read(&mut self, new: &mut [u8]) -> usize {
        if self.http2.is_none() && new.len() < HTTP2_BEGINS.len() && HTTP2_BEGINS.starts_with(new) {
            self.held.extend_from_slice(new);
            return new.len();
        }
        let http2 = *self.http2.get_or_insert_with(|| new.starts_with(HTTP2_BEGINS));
        self.connection.on_read(http2);
        if !http2 {
            self.pings = None;
            self.authority = None;
        }
        let held = match self.authority.as_mut().map_or(Seen::More, |authority| authority.pass(new)) {
            Seen::Enough => {
                self.authority = None;
                0
            }
            Seen::More => 0,
            Seen::Part(bytes) => bytes,
        };
        let (new, part) = new.split_at(new.len() - held);
        self.held.extend_from_slice(part);
        self.judge(new);
        held
    }

    /// Counts the pings among what the library is given.
    fn judge(&mut self, new: &[u8]) {
        let Some(pings) = &mut self.pings else { return };
        let Pings { read, judge, farewell, .. } = &mut **pings;
        let connection = &self.connection;
        read.pass(new, |kind, flags| {
            connection.add_to_turn(FRAME_RECORD_BYTES);
            if is_ping(kind, flags)
                && let Some(judge) = judge
                && judge.is_too_much(Instant::now(), connection.was_answered(), connection.is_idle())
            {
                farewell.get_or_insert(FAREWELL);
            }
        });
    }

    /// Looks at the frames among the first so many bytes of what was written.
    fn has_written(&mut self, written: &[io::IoSlice<'_>], bytes: usize) {
        if let Some(pings) = &mut self.pings {
            let mut left = bytes;
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

impl<S: Socket> Reporting<S> {
    /// Whether the client has ended its side, as far as that is known without reading.
    pub(super) fn is_left(&self) -> bool {
        self.socket.is_left()
    }

    /// The socket, in the runtime that asks for it.
    fn socket(&mut self) -> Pin<&mut S> {
        if self.connection.was_moved() {
            self.socket.move_here();
        }
        Pin::new(&mut self.socket)
    }
}

impl<S: Socket + AsyncWrite> Reporting<S> {
    /// Whether the client is to be said farewell as soon as may be.
    fn is_to_go(&self) -> bool {
        self.pings.as_ref().is_some_and(|pings| pings.farewell.is_some())
    }

    /// Sends what was kept.
    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.kept.len() {
            let result = Pin::new(&mut self.socket).poll_write(cx, &self.kept[self.sent..]);
            self.connection.on_write(result.is_ready());
            match ready!(result)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.sent += bytes,
            }
        }
        // An idle connection keeps no memory for it.
        self.kept = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

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

/// Writes; little in one piece, as the system's call for several of them takes longer than copying so much.
fn poll_send<S: AsyncWrite>(
    socket: Pin<&mut S>,
    cx: &mut Context<'_>,
    slices: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [slice] = slices {
        return socket.poll_write(cx, slice);
    }
    let mut joined = [0; JOINED_BYTES_MAX];
    let mut bytes = 0;
    for slice in slices {
        let Some(room) = joined.get_mut(bytes..bytes + slice.len()) else {
            return socket.poll_write_vectored(cx, slices);
        };
        room.copy_from_slice(slice);
        bytes += slice.len();
    }
    socket.poll_write(cx, &joined[..bytes])
}

impl<S: Socket + AsyncRead> AsyncRead for Reporting<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let most = self.read_bytes_max();
        if most == Some(0) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if !self.held.is_empty() {
                if self.held.len() >= buf.remaining() {
                    // Nobody reads into so little; what comes then stays as it is.
                    self.authority = None;
                    self.http2.get_or_insert(false);
                    let rest = self.held.split_off(buf.remaining());
                    let given = std::mem::replace(&mut self.held, rest);
                    buf.put_slice(&given);
                    self.judge(&given);
                    return Poll::Ready(Ok(()));
                }
                buf.put_slice(&self.held);
            }
            let read = match most {
                None => self.socket().poll_read(cx, buf),
                Some(most) => Pin::new(&mut self.socket().take(most as u64)).poll_read(cx, buf),
            };
            let new = &mut buf.filled_mut()[before..];
            if !matches!(read, Poll::Ready(Ok(()))) {
                buf.set_filled(before);
                return read;
            }
            self.connection.add_to_turn(new.len() - self.held.len());
            if new.len() == self.held.len() {
                // The client has ended what it sends, and what was held back is its last.
                self.held.clear();
                return read;
            }
            self.held.clear();
            let held = self.has_read(new);
            let filled = buf.filled().len() - held;
            buf.set_filled(filled);
            if filled > before {
                return read;
            }
        }
    }
}

impl<S: Socket + AsyncWrite> AsyncWrite for Reporting<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.http2 == Some(true) && self.pings.is_some() {
            let bytes = slices.iter().map(|slice| slice.len()).sum();
            let room = self.kept.is_empty() || self.kept.len() + bytes <= KEPT_MAX;
            if bytes <= KEPT_AT_ONCE_MAX && room && !self.is_to_go() {
                slices.iter().for_each(|slice| self.kept.extend_from_slice(slice));
                self.has_written(slices, bytes);
                self.connection.keep();
                return Poll::Ready(Ok(bytes));
            }
            ready!(self.poll_kept(cx))?;
        }
        if let Some(ended) = self.poll_farewell(cx) {
            return ended.map(Err);
        }
        let result = poll_send(self.socket(), cx, slices);
        self.connection.on_write(result.is_ready());
        if let Poll::Ready(Ok(bytes)) = result {
            self.has_written(slices, bytes);
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.kept.is_empty() {
            if self.connection.gathers() && !self.is_to_go() {
                self.connection.keep();
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_kept(cx))?;
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_kept(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};

    use super::super::authority::tests::{MENDED, RECORDED, recorded};
    use super::*;

    impl Socket for tokio::io::DuplexStream {}

    impl Socket for &[u8] {}

    #[tokio::test]
    async fn what_is_read_is_mended_and_whole_however_it_comes() {
        let whole = recorded(RECORDED);
        for cut in 1..whole.len() {
            let (mut client, server) = duplex(whole.len());
            let mut read = Reporting::new(server, Arc::default(), Some(Duration::from_secs(5)));
            // With room, as the library reads.
            let mut seen = Vec::with_capacity(8 << 10);
            client.write_all(&whole[..cut]).await.unwrap();
            while read.read_buf(&mut seen).now_or_never().is_some() {}
            client.write_all(&whole[cut..]).await.unwrap();
            drop(client);
            while read.read_buf(&mut seen).await.unwrap() > 0 {}
            assert_eq!(seen, recorded(MENDED), "cut at {cut}");
            assert!(read.pings.unwrap().read.is_between(), "cut at {cut}");
        }
    }

    /// What a reader with much room gets until it has to wait, and whether it is to come again at once.
    fn turn(read: &mut Reporting<&[u8]>, seen: &mut Vec<u8>) -> Option<usize> {
        let (flag, mut bytes) = (Arc::new(Woken::default()), 0);
        let waker = Arc::clone(&flag).into();
        read.connection.begin_turn();
        loop {
            let mut room = vec![0; 64 << 10];
            let mut buf = ReadBuf::new(&mut room);
            match Pin::new(&mut *read).poll_read(&mut Context::from_waker(&waker), &mut buf) {
                Poll::Pending => return flag.0.load(Ordering::Relaxed).then_some(bytes),
                Poll::Ready(result) => result.unwrap(),
            }
            if buf.filled().is_empty() {
                return None;
            }
            bytes += buf.filled().len();
            seen.extend_from_slice(buf.filled());
        }
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn frames_of(content: usize, count: usize) -> Vec<u8> {
        let mut frame = (content as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[DATA, 0, 0, 0, 0, 1]);
        frame.resize(frame.len() + content, b'x');
        [recorded(MENDED), frame.repeat(count)].concat()
    }

    #[test]
    fn a_flood_of_small_frames_is_read_in_turns() {
        let sent = frames_of(20, 10_000);
        for ping_interval_min in [Duration::from_secs(5), Duration::ZERO] {
            let mut read = Reporting::new(&sent[..], Arc::default(), Some(ping_interval_min));
            let (mut seen, mut turns) = (Vec::new(), 0);
            while let Some(bytes) = turn(&mut read, &mut seen) {
                let frames = bytes / (9 + 20);
                assert!(frames <= 256, "{frames} frames in turn {turns}");
                turns += 1;
            }
            assert!(seen == sent, "{} bytes of {}", seen.len(), sent.len());
        }
    }

    #[test]
    fn a_large_frame_is_read_whole() {
        let sent = frames_of(16 << 10, 20);
        let mut read = Reporting::new(&sent[..], Arc::default(), Some(Duration::from_secs(5)));
        let mut seen = Vec::new();
        while turn(&mut read, &mut seen).is_some() {
            let left = read.pings.as_ref().unwrap().read.left();
            assert!(left < READ_BYTES_MAX, "a turn ended {left} bytes before the end of a frame");
        }
        assert!(seen == sent, "{} bytes of {}", seen.len(), sent.len());
    }

    /// A connection over HTTP/2, and its client's end.
    async fn greeted(room: usize) -> (Reporting<DuplexStream>, DuplexStream) {
        let (mut client, server) = duplex(room);
        let mut connection = Reporting::new(server, Arc::default(), Some(Duration::from_secs(5)));
        client.write_all(&recorded(RECORDED)).await.unwrap();
        let mut seen = Vec::with_capacity(8 << 10);
        while connection.read_buf(&mut seen).now_or_never().is_some() {}
        assert_eq!(connection.http2, Some(true));
        (connection, client)
    }

    /// What has arrived by now.
    fn arrived(client: &mut DuplexStream) -> Vec<u8> {
        let mut seen = Vec::with_capacity(1 << 20);
        while client.read_buf(&mut seen).now_or_never().is_some() {}
        seen
    }

    #[tokio::test]
    async fn what_is_answered_in_a_turn_is_sent_when_it_ends() {
        let (mut connection, mut client) = greeted(1 << 20).await;
        let shared = Arc::clone(&connection.connection);
        shared.begin_turn();
        for answer in [&b"one"[..], b"two", b"three"] {
            connection.write_all(answer).await.unwrap();
            connection.flush().await.unwrap();
        }
        assert_eq!(arrived(&mut client), b"");
        assert!(shared.end_turn());
        connection.flush().await.unwrap();
        assert_eq!(arrived(&mut client), b"onetwothree");
        assert!(!shared.end_turn(), "nothing is left");
        // Nothing overtakes what was kept: neither much at once nor the end.
        shared.begin_turn();
        connection.write_all(b"small").await.unwrap();
        let much = vec![b'm'; KEPT_AT_ONCE_MAX + 1];
        connection.write_all(&much).await.unwrap();
        assert_eq!(arrived(&mut client), [b"small", &much[..]].concat());
        connection.write_all(b"last").await.unwrap();
        connection.shutdown().await.unwrap();
        assert_eq!(arrived(&mut client), b"last");
    }

    #[tokio::test]
    async fn what_is_kept_for_a_client_that_does_not_read_is_bounded_and_comes_whole() {
        const PIECES: usize = 100;
        let (mut connection, mut client) = greeted(2 << 10).await;
        let shared = Arc::clone(&connection.connection);
        let piece = vec![b'p'; 1 << 10];
        let (mut written, mut seen) = (0, 0);
        while written < PIECES * piece.len() {
            shared.begin_turn();
            while let Some(bytes) = connection.write(&piece).now_or_never() {
                written += bytes.unwrap();
                assert!(connection.kept.len() <= KEPT_MAX);
                if written >= PIECES * piece.len() {
                    break;
                }
            }
            assert!(written <= seen + KEPT_MAX + (2 << 10), "{written} bytes of which {seen} were read");
            assert!(connection.flush().now_or_never().is_some(), "in a turn it is put off");
            shared.end_turn();
            let _ = connection.flush().now_or_never();
            seen += arrived(&mut client).len();
        }
        while seen < written {
            let _ = connection.flush().now_or_never();
            seen += arrived(&mut client).len();
        }
        assert_eq!(connection.kept.capacity(), 0);
    }

    #[tokio::test]
    async fn the_end_of_a_client_gives_what_was_held_back() {
        let mut whole = recorded(RECORDED);
        whole.pop();
        let mut read = Reporting::new(&whole[..], Arc::default(), None);
        let mut seen = Vec::new();
        read.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, whole);
    }

    #[tokio::test]
    async fn a_reader_without_room_gets_all_the_same() {
        let whole = recorded(RECORDED);
        let mut read = Reporting::new(&whole[..], Arc::default(), None);
        let (mut seen, mut room) = (Vec::new(), [0; 3]);
        loop {
            let bytes = read.read(&mut room).await.unwrap();
            if bytes == 0 {
                break;
            }
            seen.extend_from_slice(&room[..bytes]);
        }
        assert_eq!(seen.len(), whole.len());
    }
}
