//! What became of a delivery: what an answer means, and what it means that none came.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::time::Duration;

use jiff::fmt::rfc2822;
use ureq::http::{HeaderMap, Response};
use ureq::{Body, Timeout};

use crate::builtin::callback::doorman::Refused;
use crate::model::time::Timestamp;

/// The longest that a receiver may ask us to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(86_400);
/// The longest text that is kept of an error. A receiver's certificate is told in it, which may be of any length.
const MAX_ERROR_BYTES: usize = 500;

/// The receiver has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) status: u16,
}

/// The receiver does not have it, or did not say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Undelivered {
    /// The status of the answer, if one came.
    pub(crate) status: Option<u16>,
    /// What went wrong, without secrets and without anything that the receiver wrote.
    pub(crate) error: String,
    /// Whether another attempt may do better.
    pub(crate) retry: bool,
    /// How long the receiver asks us to wait before it. No more than a day.
    pub(crate) retry_after: Option<Duration>,
}

impl Undelivered {
    pub(super) fn without_answer(error: impl Into<Cow<'static, str>>, retry: bool) -> Self {
        let mut error = error.into().into_owned();
        error.truncate(error.floor_char_boundary(MAX_ERROR_BYTES));
        Self { status: None, error, retry, retry_after: None }
    }
}

/// What became of a message that has no answer.
pub(super) fn unanswered(error: &ureq::Error, timeout: Duration) -> Undelivered {
    use ureq::Error;
    let text: Cow<'static, str> = match error {
        Error::Other(inner) if inner.is::<Refused>() => {
            return Undelivered::without_answer(inner.to_string(), false);
        }
        // What was checked before is at fault, so it will be the next time as well.
        Error::BadUri(_) | Error::Http(_) => return Undelivered::without_answer("not a valid request", false),
        Error::Timeout(Timeout::Resolve) => format!("timed out after {:?} while looking up the host", timeout).into(),
        Error::Timeout(_) => format!("timed out after {:?}", timeout).into(),
        Error::HostNotFound => "the host was not found".into(),
        Error::Io(inner) => match inner.kind() {
            ErrorKind::ConnectionRefused => "the connection was refused".into(),
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                "the connection broke".into()
            }
            ErrorKind::UnexpectedEof => "the connection was closed before the answer".into(),
            _ => format!("the connection failed: {inner}").into(),
        },
        Error::Protocol(_) | Error::LargeResponseHeader(..) => "the answer is not valid HTTP".into(),
        other => format!("the connection failed: {other}").into(),
    };
    Undelivered::without_answer(text, true)
}

/// What an answer means.
pub(super) fn judge(response: &Response<Body>, now: Timestamp) -> Result<Delivered, Undelivered> {
    let status = response.status().as_u16();
    let (rule, retry) = match status {
        200..=299 => return Ok(Delivered { status }),
        300..=399 => (", and redirects are not followed", false),
        408 | 429 | 500..=599 => ("", true),
        _ => ("", false),
    };
    let retry_after = if matches!(status, 429 | 503) { retry_after(response.headers(), now) } else { None };
    Err(Undelivered {
        status: Some(status),
        error: format!("the receiver answered {status}{rule}"),
        retry,
        retry_after,
    })
}

/// How long a receiver asks us to wait: in seconds, or until a moment. Zero and what has passed ask for nothing.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // So many digits that they do not fit are a long time too.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        // A wrong day of the week does not make the moment unclear.
        let parser = rfc2822::DateTimeParser::new().relaxed_weekday(true);
        Timestamp::from_micros(parser.parse_timestamp(text).ok()?.as_microsecond()).since(now)
    };
    (!wait.is_zero()).then(|| wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_moment() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().expect("a header"));
            retry_after(&headers, Timestamp::from_micros(784_111_777_000_000))
        };
        let (secs, day) = (|secs| Some(Duration::from_secs(secs)), Some(MAX_RETRY_AFTER));
        let table = [
            ("1", secs(1)),
            (" 120 ", secs(120)),
            ("86400", day),
            ("86401", day),
            ("99999999999999999999999999", day),
            ("0", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:38 GMT", secs(1)),
            ("Sun, 06 Nov 1994 09:49:37 GMT", secs(3600)),
            // The wrong day of the week.
            ("Fri, 06 Nov 1994 08:50:37 GMT", secs(60)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("Thu, 01 Jan 1970 00:00:00 GMT", None),
            ("Thu, 30 Dec 9999 00:00:00 GMT", day),
            ("Sun, 06 Nov 0001 08:49:37 GMT", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
            ("1994-11-06T08:50:37Z", None),
        ];
        for (text, expected) in table {
            assert_eq!(read(text), expected, "{text:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), Timestamp::from_micros(0)), None);
    }

    #[test]
    fn errors_are_kept_short() {
        let long = Undelivered::without_answer("\u{e9}".repeat(MAX_ERROR_BYTES), true);
        assert!(long.error.len() <= MAX_ERROR_BYTES);
    }
}
