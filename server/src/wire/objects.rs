//! A body that is one JSON object after the other, cut into its objects as its bytes arrive.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::wire::read::DecodeError;
use crate::wire::request::{Message, decode};
use crate::wire::syntax;

/// Finds the objects of a body.
///
/// **Invariant**: each byte is looked at once until its object is complete, however small the pieces are in which it
/// arrives.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    buffer: BytesMut,
    /// Bytes of the buffer that have been looked at.
    seen: usize,
    /// Braces and brackets that are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Objects {
    /// Takes more of the body.
    pub(crate) fn extend(&mut self, piece: &Bytes) {
        self.buffer.extend_from_slice(piece);
    }

    /// Bytes that belong to an object whose end has not come yet.
    pub(crate) fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// Says that the body has ended.
    ///
    /// # Errors
    /// [`DecodeError`]: it ended inside an object.
    pub(crate) fn finish(&self) -> Result<(), DecodeError> {
        if self.buffer.is_empty() { Ok(()) } else { Err(syntax::SyntaxError::BodyEnds.into()) }
    }

    /// The next message, if it is complete.
    ///
    /// # Errors
    /// [`DecodeError`]: what stands there is not one. Nothing after it can be made sense of.
    pub(crate) fn next<M: Message>(&mut self) -> Result<Option<M>, DecodeError> {
        let Some(end) = self.end()? else { return Ok(None) };
        let message = decode(&self.buffer[..end]);
        self.buffer.advance(end);
        self.seen = 0;
        if self.buffer.is_empty() {
            // A long message should not be paid for as long as the stream lives.
            self.buffer = BytesMut::new();
        }
        message.map(Some)
    }

    /// Where the first value ends, if it does.
    fn end(&mut self) -> Result<Option<usize>, DecodeError> {
        if self.depth == 0 && self.seen == 0 {
            let space = self.buffer.iter().take_while(|byte| syntax::is_space(**byte)).count();
            self.buffer.advance(space);
            match self.buffer.first() {
                None => return Ok(None),
                Some(b'{') => {}
                Some(_) => return Ok(self.other_end()),
            }
        }
        while let Some(byte) = self.buffer.get(self.seen) {
            self.seen += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Ok(Some(self.seen));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Where a first value ends that is no object, if it does: a null, which is a message without fields, or something
    /// that is no message. What is wrong with that is found by reading it.
    fn other_end(&self) -> Option<usize> {
        match syntax::first_value(&self.buffer) {
            Ok(Some(value)) => Some(value.end),
            // Anything else that is not complete is wrong already, and looked at once.
            Err(syntax::SyntaxError::BodyEnds) if b"null".starts_with(&self.buffer) => None,
            Ok(None) | Err(_) => Some(self.buffer.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::WatchMessage;

    fn all(pieces: &[&str]) -> Result<Vec<WatchMessage>, DecodeError> {
        let (mut objects, mut found) = (Objects::default(), Vec::new());
        for piece in pieces {
            objects.extend(&Bytes::copy_from_slice(piece.as_bytes()));
            while let Some(message) = objects.next()? {
                found.push(message);
            }
        }
        Ok(found)
    }

    #[test]
    fn objects_are_found_wherever_the_body_is_cut() {
        let body = r#" {"cancel_request":{"watch_id":"1"}}{"progress_request":{}} {"create_request":{"key":"fX0i","x":"}\"]"}} "#;
        let whole = all(&[body]).unwrap();
        assert_eq!(whole.len(), 3);
        for cut in 0..body.len() {
            assert_eq!(all(&[&body[..cut], &body[cut..]]).unwrap(), whole, "cut at {cut}");
        }
        let bytes: Vec<String> = body.chars().map(String::from).collect();
        assert_eq!(all(&bytes.iter().map(String::as_str).collect::<Vec<_>>()).unwrap(), whole);
    }

    #[test]
    fn a_null_is_a_message_and_what_follows_it_another() {
        let body = r#"null{"cancel_request":{"watch_id":"7"}} null null{"progress_request":{}}"#;
        let wanted = [
            WatchMessage::Empty,
            WatchMessage::Cancel { watch_id: 7 },
            WatchMessage::Empty,
            WatchMessage::Empty,
            WatchMessage::Progress,
        ];
        for cut in 0..body.len() {
            assert_eq!(all(&[&body[..cut], &body[cut..]]).unwrap(), wanted, "cut at {cut}");
        }
        let mut objects = Objects::default();
        objects.extend(&Bytes::from_static(b"nul"));
        assert_eq!(objects.next::<WatchMessage>().unwrap(), None);
        assert!(objects.finish().is_err());
        objects.extend(&Bytes::from_static(b"x"));
        assert!(objects.next::<WatchMessage>().is_err());
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bad in ["x", "[]", "1", "{]}", r#"{"create_request":1}"#, r#"{"cancel_request":{"watch_id":"x"}}"#, "}"] {
            assert!(all(&[bad]).is_err(), "{bad}");
        }
        assert!(all(&[r#"{"a":"#]).unwrap().is_empty());
        let error = |body: &str| all(&[body]).unwrap_err().to_string();
        assert_eq!(error("x"), "invalid character 'x' looking for beginning of value");
        assert_eq!(error("[1,"), "unexpected EOF");
        assert_eq!(error("true {}"), error("true"));
    }
}
