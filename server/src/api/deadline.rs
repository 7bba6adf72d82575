//! How long the client of a request waits: `grpc-timeout`, which etcd's gateway takes from JSON requests too.

use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::try_unfold;
use futures_util::{Stream, StreamExt as _};
use hyper::header::HeaderValue;
use tokio::time::{Instant, timeout_at};

use crate::error::{ApiError, Effect};

/// More digits than this no `grpc-timeout` has.
const DIGITS_MAX: usize = 8;

/// The time that the `grpc-timeout` of a gRPC call stands for; none if it is no such thing.
pub(crate) fn read_timeout(value: &HeaderValue) -> Option<Duration> {
    let (digits, unit) = split(value)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_nanos(digits.parse::<u64>().ok()?.saturating_mul(unit)))
}

/// The same of a JSON request, as etcd's gateway reads it: any whole number, of which zero is no limit (the inner `None`) and
/// one below zero is over already.
pub(crate) fn read_gateway_timeout(value: &HeaderValue) -> Option<Option<Duration>> {
    let (digits, unit) = split(value)?;
    let number: i64 = digits.parse().ok()?;
    Some(match u64::try_from(number) {
        Ok(0) => None,
        Ok(number) => Some(Duration::from_nanos(number.saturating_mul(unit))),
        Err(_) => Some(Duration::ZERO),
    })
}

/// The number in front, and the unit in nanoseconds.
fn split(value: &HeaderValue) -> Option<(&str, u64)> {
    let (number, unit) = value.to_str().ok()?.split_at_checked(value.len().checked_sub(1)?)?;
    let nanos = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return None,
    };
    Some((number, nanos))
}

/// Any number of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, ApiError>> + Send>>;

/// Ends the answers when the client's deadline is over.
pub(crate) fn until<T: Send + 'static>(deadline: Option<Instant>, answers: Answers<T>) -> Answers<T> {
    let Some(deadline) = deadline else { return answers };
    Box::pin(try_unfold(answers, move |mut answers| async move {
        match timeout_at(deadline, answers.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(answer)) => Ok(Some((answer?, answers))),
            Err(_) => Err(ApiError::DeadlineExceeded(Effect::None)),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_eight_digits_and_a_unit() {
        let read = |text: &'static str| read_timeout(&HeaderValue::from_static(text));
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("99999999H"), Some(Duration::from_nanos(u64::MAX)), "some 584 years");
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        for bad in ["", "S", "5", "5s", "123456789S", "-1S", "1.5S", "+1S", "5 S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_gateway_takes_any_whole_number() {
        let read = |text: &'static str| read_gateway_timeout(&HeaderValue::from_static(text));
        assert_eq!(read("123456789S"), Some(Some(Duration::from_secs(123_456_789))));
        assert_eq!(read("+1m"), Some(Some(Duration::from_millis(1))));
        assert_eq!(read("9223372036854775807H"), Some(Some(Duration::from_nanos(u64::MAX))));
        assert_eq!((read("0S"), read("-0n"), read("-1S")), (Some(None), Some(None), Some(Some(Duration::ZERO))));
        for bad in ["", "S", "5", "5s", "1.5S", "5 S", "9223372036854775808n"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
