//! The messages of a request, cut out of the frames that they come in.
//!
//! ```text
//!   flag u8 (1: compressed) | length u32 BE | message          any number of these, across HTTP/2 frames at will
//! ```
//!
//! gzip is understood, which etcd's server understands too. Answers are never compressed.

use std::future::poll_fn;
use std::io::Read as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;
use hyper::body::{Body, Incoming};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::error::{ApiError, Effect};
use crate::grpc::error::ProtocolError;

/// Flag and length before each message.
pub(super) const PREFIX_BYTES: usize = 5;
/// What messages may be compressed with.
pub(super) const GZIP: &str = "gzip";

/// How long a client whose call is over is waited for to close its half, and what it may send until then.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
const CLOSE_BYTES_MAX: usize = 64 * 1024;

/// Reads the messages of a request one after the other. Holds nothing between messages.
pub(crate) struct Messages<B = Incoming> {
    body: B,
    /// What has come and was not given out yet.
    held: Bytes,
    /// More than one frame of a message, until it is whole.
    joined: BytesMut,
    limit: usize,
    /// What the client says messages are compressed with, if their flag says so.
    encoding: Option<Box<str>>,
    /// A compressed message, on its way to what it was.
    inflating: Option<Inflating>,
}

type Inflating = Pin<Box<dyn Future<Output = Result<Bytes, ApiError>> + Send>>;

/// A few bytes may become a message of the largest size, so that is done one after the other, away from the threads that
/// serve everybody: a client that sends many of them makes only those wait who send some, too.
static INFLATES: Semaphore = Semaphore::const_new(1);

impl<B: Body<Data = Bytes> + Unpin> Messages<B> {
    /// Reads messages of up to `limit` bytes.
    pub(super) fn new(body: B, limit: usize, encoding: Option<Box<str>>) -> Self {
        Messages { body, held: Bytes::new(), joined: BytesMut::new(), limit, encoding, inflating: None }
    }

    /// The next message; `None` once the client has closed its half.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Waits a while for the client to close its half, as it does after its only message, if with a frame of its own.
    ///
    /// An answer before that would have HTTP/2 reset the stream and forget it, where there are many such; what the client
    /// sends then, be it only that it closes its half, is taken for a mistake, and of many mistakes the last ends the
    /// connection. Who sends much more is not waited for.
    pub(crate) async fn closed(&mut self) {
        if self.body.is_end_stream() {
            return;
        }
        let mut left = CLOSE_BYTES_MAX;
        let closed = poll_fn(|cx| {
            loop {
                let Some(Ok(frame)) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else { return Poll::Ready(()) };
                match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                    Some(less) => left = less,
                    None => return Poll::Ready(()),
                }
            }
        });
        // Closed or not, it is answered.
        let _ = timeout(CLOSE_PATIENCE, closed).await;
    }

    /// As [`Messages::next`].
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ApiError>> {
        loop {
            if let Some(inflating) = &mut self.inflating {
                let message = ready!(inflating.as_mut().poll(cx));
                self.inflating = None;
                return Poll::Ready(message.map(Some));
            }
            match self.length()? {
                Some(length) if self.available() >= PREFIX_BYTES + length => {
                    if !self.joined.is_empty() {
                        self.held = std::mem::take(&mut self.joined).freeze();
                    }
                    let mut message = self.held.split_to(PREFIX_BYTES + length);
                    let is_compressed = message[0] != 0;
                    message.advance(PREFIX_BYTES);
                    if is_compressed {
                        self.inflating = Some(Box::pin(inflate_aside(message, self.limit)));
                        continue;
                    }
                    return Poll::Ready(Ok(Some(message)));
                }
                _ => {}
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.take(data);
                    }
                }
                // The client has reset the stream, or is gone.
                Some(Err(_)) => return Poll::Ready(Err(ApiError::Canceled)),
                None if self.available() == 0 => return Poll::Ready(Ok(None)),
                None if self.available() < PREFIX_BYTES => return Poll::Ready(Err(ProtocolError::NoMessage.into())),
                None => return Poll::Ready(Err(ProtocolError::Truncated.into())),
            }
        }
    }

    fn available(&self) -> usize {
        if self.joined.is_empty() { self.held.len() } else { self.joined.len() }
    }

    fn take(&mut self, data: Bytes) {
        if self.joined.is_empty() {
            if self.held.is_empty() {
                self.held = data;
                return;
            }
            self.joined.extend_from_slice(&self.held);
            self.held = Bytes::new();
        }
        self.joined.extend_from_slice(&data);
    }

    /// The length of the message that begins what has come, as soon as it is known.
    fn length(&self) -> Result<Option<usize>, ApiError> {
        let begun = if self.joined.is_empty() { &self.held[..] } else { &self.joined[..] };
        let Some(&[flag, a, b, c, d]) = begun.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        match (flag, &self.encoding) {
            (0, _) => {}
            (1, Some(encoding)) if **encoding == *GZIP => {}
            (1, None) => return Err(ProtocolError::Compressed.into()),
            (1, Some(encoding)) => return Err(ProtocolError::Encoding { found: encoding.to_string() }.into()),
            (found, _) => return Err(ProtocolError::PayloadFormat { found }.into()),
        }
        let bytes = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if bytes > self.limit { Err(ApiError::MessageTooLarge { bytes, limit: self.limit }) } else { Ok(Some(bytes)) }
    }
}

async fn inflate_aside(compressed: Bytes, limit: usize) -> Result<Bytes, ApiError> {
    let turn = INFLATES.acquire().await.map_err(|_| ApiError::Stopped(Effect::None))?;
    let inflated = spawn_blocking(move || {
        // Even if nobody waits for it any more.
        let _turn = turn;
        inflate(&compressed, limit)
    });
    Ok(inflated.await.map_err(|_| ApiError::Defect { what: "inflating a message panicked" })??)
}

/// A message that was compressed; never more than `limit` bytes of it are made.
fn inflate(compressed: &[u8], limit: usize) -> Result<Bytes, ProtocolError> {
    let mut message = Vec::new();
    let bytes_max = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    MultiGzDecoder::new(compressed).take(bytes_max).read_to_end(&mut message).map_err(ProtocolError::Inflate)?;
    if message.len() > limit { Err(ProtocolError::InflatedTooLarge { limit }) } else { Ok(message.into()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use hyper::body::Frame;
    use proptest::prelude::*;

    use super::*;

    /// A body that arrives in these pieces.
    struct Pieces(VecDeque<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut out = vec![0];
        out.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        out.extend_from_slice(message);
        out
    }

    fn read(pieces: &[&[u8]], limit: usize, encoding: Option<&str>) -> (Vec<Bytes>, Option<String>) {
        let pieces = Pieces(pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect());
        let mut messages = Messages::new(pieces, limit, encoding.map(Box::from));
        let mut read = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        loop {
            match messages.poll_next(&mut cx) {
                Poll::Ready(Ok(Some(message))) => read.push(message),
                Poll::Ready(Ok(None)) => return (read, None),
                Poll::Ready(Err(error)) => return (read, Some(error.to_string())),
                Poll::Pending => panic!("the pieces are all there"),
            }
        }
    }

    #[test]
    fn a_message_in_one_piece_is_not_copied() {
        let body = Bytes::from(framed(b"message"));
        let at = body[PREFIX_BYTES..].as_ptr();
        let mut messages = Messages::new(Pieces([body].into()), 7, None);
        let message = messages.poll_next(&mut Context::from_waker(std::task::Waker::noop()));
        let Poll::Ready(Ok(Some(message))) = message else { panic!("{message:?}") };
        assert_eq!((&message[..], message.as_ptr()), (&b"message"[..], at));
    }

    #[test]
    fn what_is_wrong_is_said_in_the_words_of_grpc_go() {
        let wrong = |pieces: &[&[u8]], encoding| read(pieces, 4, encoding).1.unwrap();
        assert_eq!(wrong(&[&framed(b"12345")], None), "grpc: received message larger than max (5 vs. 4)");
        assert_eq!(wrong(&[b"\0\xff\xff\xff\xff"], None), "grpc: received message larger than max (4294967295 vs. 4)");
        assert_eq!(wrong(&[b"\x01\0\0\0\0"], None), "grpc: compressed flag set with identity or empty encoding");
        assert_eq!(
            wrong(&[b"\x01\0\0\0\0"], Some("snappy")),
            "grpc: Decompressor is not installed for grpc-encoding \"snappy\""
        );
        assert_eq!(wrong(&[b"\x02\0\0\0\0"], None), "grpc: received unexpected payload format 2");
        assert_eq!(wrong(&[b"\0\0\0\0\x02a"], None), "unexpected EOF");
        assert_eq!(wrong(&[b"\0\0"], None), "EOF");
        // The flag alone does not matter if the message is not compressed.
        assert_eq!(read(&[&framed(b"1")], 4, Some("gzip")), (vec!["1".into()], None));
    }

    async fn read_compressed(pieces: &[&[u8]], limit: usize) -> (Vec<Bytes>, Option<String>) {
        let pieces = Pieces(pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect());
        let mut messages = Messages::new(pieces, limit, Some(GZIP.into()));
        let mut read = Vec::new();
        loop {
            match messages.next().await {
                Ok(Some(message)) => read.push(message),
                Ok(None) => return (read, None),
                Err(error) => return (read, Some(error.to_string())),
            }
        }
    }

    #[tokio::test]
    async fn compressed_messages_are_inflated_up_to_the_limit() {
        let zip = |message: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(message).unwrap();
            let mut frame = framed(&encoder.finish().unwrap());
            frame[0] = 1;
            frame
        };
        let both = [zip(b"one"), framed(b"two"), zip(b"")].concat();
        let (messages, error) = read_compressed(&[&both[..9], &both[9..]], 64).await;
        assert_eq!((messages, error), (vec!["one".into(), "two".into(), Bytes::new()], None));
        let full = vec![0; 1 << 20];
        assert_eq!(read_compressed(&[&zip(&full)], full.len()).await, (vec![full.clone().into()], None));
        let (messages, error) = read_compressed(&[&zip(&full)], full.len() - 1).await;
        assert!(messages.is_empty());
        let broken = read_compressed(&[b"\x01\0\0\0\x02\x1f\x8b"], 64).await.1.unwrap();
        assert!(broken.starts_with("grpc: failed to decompress the received message: "), "{broken}");
        assert_eq!(error.unwrap(), "grpc: received message after decompression larger than max 1048575");
    }

    proptest! {
        #[test]
        fn messages_come_out_whole_however_they_are_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cuts in prop::collection::vec(0usize..400, 0..12),
        ) {
            let body: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (body.len() + 1)).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|ends| &body[ends[0]..ends[1]]).collect();
            let (read, error) = read(&pieces, 40, None);
            prop_assert_eq!(error, None);
            prop_assert_eq!(read, messages.into_iter().map(Bytes::from).collect::<Vec<_>>());
        }
    }
}
