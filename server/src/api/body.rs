//! Reads a request's body, never more than the limit.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;

use crate::error::ApiError;

/// How many times the limit is read and thrown away, so that a client that sends too much gets to read why.
const DRAIN_FACTOR: usize = 8;

/// The whole body. Not copied if it arrives in one piece, as small ones do.
pub(crate) async fn read(mut body: Body, limit: usize) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > limit as u64 {
        return drain(body, 0, limit).await;
    }
    let Some(first) = next(&mut body).await? else { return Ok(Bytes::new()) };
    if first.len() > limit {
        return drain(body, first.len(), limit).await;
    }
    if body.is_end_stream() {
        return Ok(first);
    }
    let Some(second) = next(&mut body).await? else { return Ok(first) };
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(limit).min(limit);
    let mut whole = BytesMut::with_capacity(first.len() + second.len() + announced);
    whole.extend_from_slice(&first);
    drop(first);
    let mut piece = Some(second);
    while let Some(data) = piece {
        if whole.len() + data.len() > limit {
            return drain(body, whole.len() + data.len(), limit).await;
        }
        whole.extend_from_slice(&data);
        piece = next(&mut body).await?;
    }
    Ok(whole.freeze())
}

/// Reads a body that nobody wants, so that its connection can be used again; a very long one is left and costs it that.
pub(crate) async fn discard(body: Body, limit: usize) {
    // Whatever it would have been answered, the answer is fixed already.
    let _ = drain(body, 0, limit).await;
}

/// The next data of the body; trailers are ignored.
async fn next(body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::BodyBroken { detail: error.to_string() })?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Throws away the rest of a body that is too long, up to a point, and says that it was.
async fn drain(mut body: Body, mut read: usize, limit: usize) -> Result<Bytes, ApiError> {
    while read <= limit.saturating_mul(DRAIN_FACTOR) {
        match next(&mut body).await? {
            Some(data) => read += data.len(),
            None => break,
        }
    }
    Err(ApiError::BodyTooLarge { limit })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;

    /// A body that arrives in these pieces.
    struct Pieces(VecDeque<Bytes>);

    impl hyper::body::Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    async fn read_pieces(pieces: &[&'static [u8]], limit: usize) -> Result<Bytes, ApiError> {
        read(Body::new(Pieces(pieces.iter().map(|piece| Bytes::from_static(piece)).collect())), limit).await
    }

    #[tokio::test]
    async fn pieces_are_joined_up_to_the_limit() {
        assert_eq!(read(Body::empty(), 0).await.unwrap(), "");
        assert_eq!(read(Body::from("abc"), 3).await.unwrap(), "abc");
        assert_eq!(read_pieces(&[b"ab", b"", b"c"], 3).await.unwrap(), "abc");
        assert_eq!(read_pieces(&[b"a", b"b", b"c", b"d"], 4).await.unwrap(), "abcd");
        for too_long in [&[&b"abcd"[..]][..], &[b"ab", b"cd"], &[b"a", b"b", b"c", b"d"]] {
            let error = read_pieces(too_long, 3).await.unwrap_err();
            assert!(matches!(error, ApiError::BodyTooLarge { limit: 3 }));
        }
        assert!(matches!(read(Body::from("abcd"), 3).await, Err(ApiError::BodyTooLarge { limit: 3 })));
    }
}
