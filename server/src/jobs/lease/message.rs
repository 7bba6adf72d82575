//! What members ask the leader about leases. The bytes are sent between members, so their form is fixed.
//!
//! ```text
//! kind 1, renew          wait u8 | ids, each i64      each: seconds granted i64 | 0 gone | -1 ask again
//! kind 2, time to live   id i64                       seconds left i64 | -1 gone
//! ```
//! All numbers are big-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Leases that are to be renewed.
pub(super) const RENEW: u8 = 1;
/// A lease whose remaining time is asked for.
pub(super) const TIME_TO_LIVE: u8 = 2;

/// What a renewal of one lease came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewed {
    /// It lives on for so many seconds.
    For(i64),
    /// There is no such lease (any more).
    Gone,
    /// Not yet known: something that is on its way through the log decides it.
    Later,
}

/// The question for renewals; with `wait`, the leader takes a moment to find out those that it would ask to ask again.
pub(super) fn renew_question(wait: bool, ids: &[i64]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + 8 * ids.len());
    out.put_u8(u8::from(wait));
    ids.iter().for_each(|id| out.put_i64(*id));
    out.freeze()
}

pub(super) fn read_renew_question(mut question: Bytes) -> Option<(bool, Vec<i64>)> {
    if question.len() % 8 != 1 {
        return None;
    }
    let wait = match question.get_u8() {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some((wait, integers(question)))
}

pub(super) fn renew_answer(renewed: &[Renewed]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 * renewed.len());
    for one in renewed {
        out.put_i64(match one {
            Renewed::For(seconds) => *seconds,
            Renewed::Gone => 0,
            Renewed::Later => -1,
        });
    }
    out.freeze()
}

/// `None` if it is not the answer to a question about `asked` leases.
pub(super) fn read_renew_answer(answer: Bytes, asked: usize) -> Option<Vec<Renewed>> {
    if answer.len() != 8 * asked {
        return None;
    }
    let read = |number| match number {
        0 => Some(Renewed::Gone),
        -1 => Some(Renewed::Later),
        seconds if seconds > 0 => Some(Renewed::For(seconds)),
        _ => None,
    };
    integers(answer).into_iter().map(read).collect()
}

/// One number: an id, or seconds.
pub(super) fn integer(number: i64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

pub(super) fn read_integer(bytes: &Bytes) -> Option<i64> {
    bytes[..].try_into().ok().map(i64::from_be_bytes)
}

fn integers(mut bytes: Bytes) -> Vec<i64> {
    let mut numbers = Vec::with_capacity(bytes.len() / 8);
    while bytes.len() >= 8 {
        numbers.push(bytes.get_i64());
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_read_back() {
        let ids = [1, -2, i64::MAX];
        assert_eq!(read_renew_question(renew_question(true, &ids)), Some((true, ids.to_vec())));
        assert_eq!(read_renew_question(renew_question(false, &[])), Some((false, vec![])));
        let renewed = [Renewed::For(60), Renewed::Gone, Renewed::Later];
        assert_eq!(read_renew_answer(renew_answer(&renewed), 3), Some(renewed.to_vec()));
        assert_eq!(read_integer(&integer(-1)), Some(-1));
    }

    #[test]
    fn the_bytes_are_fixed() {
        assert_eq!(renew_question(true, &[258])[..], [1, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(renew_answer(&[Renewed::Later])[..], [0xff; 8]);
    }

    #[test]
    fn other_bytes_are_refused() {
        for bytes in [&[][..], &[2], &[1, 0], &[0; 8]] {
            assert_eq!(read_renew_question(Bytes::copy_from_slice(bytes)), None, "{bytes:?}");
        }
        assert_eq!(read_renew_answer(integer(5), 2), None);
        assert_eq!(read_renew_answer(integer(-2), 1), None);
        assert_eq!(read_integer(&Bytes::from_static(b"short")), None);
    }
}
