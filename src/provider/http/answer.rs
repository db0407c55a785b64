//! Answers: what their heads say, their bodies within bounds, and what a refusal means.

use std::io::Read;
use std::time::Duration;

use ::http::{HeaderMap, Response, header};
use flate2::read::MultiGzDecoder;
use jiff::fmt::rfc2822;
use serde_json::Value;

use crate::model::time::Timestamp;
use crate::provider::http::key::Secret;
use crate::provider::http::lines::{Lines, broken};
use crate::provider::{CallClass, CallError, CallResult, Fate};

/// The longest that a provider may ask to be left alone for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(86_400);
/// The most bytes of an answer that is read as a whole, unpacked.
const MAX_JSON_BYTES: u64 = 16 << 20;
/// The most bytes that are read of a refusal.
const MAX_REFUSAL_BYTES: u64 = 64 << 10;
/// The longest text that is kept of what a provider says.
const MAX_MESSAGE_BYTES: usize = 500;

/// An answer whose head has come.
pub(crate) struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Box<dyn Read>,
    /// Whether its end can be told from a connection that was closed.
    has_end: bool,
    secret: Secret,
}

/// The whole of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// JSON, presumably.
    pub(crate) text: String,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) server_now: Option<Timestamp>,
}

/// What a provider's own words add to the status of a refusal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Explained {
    /// Where it is another than the status says.
    pub(crate) class: Option<CallClass>,
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
}

impl Answer {
    pub(super) fn new(response: Response<ureq::Body>, secret: Secret) -> Self {
        let (head, body) = response.into_parts();
        let says = |name, word: &str| {
            head.headers
                .get_all(name)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
        };
        let is_packed = says(header::CONTENT_ENCODING, "gzip") || says(header::CONTENT_ENCODING, "x-gzip");
        // What is packed tells its own end.
        let has_end = is_packed
            || head.headers.contains_key(header::CONTENT_LENGTH)
            || says(header::TRANSFER_ENCODING, "chunked");
        let reader = body.into_reader();
        let body: Box<dyn Read> = if is_packed { Box::new(MultiGzDecoder::new(reader)) } else { Box::new(reader) };
        Self { status: head.status.as_u16(), headers: head.headers, body, has_end, secret }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok().map(str::trim)
    }

    /// The provider's clock.
    pub(crate) fn server_now(&self) -> Option<Timestamp> {
        moment(self.header("date")?)
    }

    /// What the provider asks to be left alone for.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let ms = self.header("retry-after-ms").and_then(|text| text.parse().ok()).map(|ms: f64| ms / 1000.0);
        let seconds = match (ms, self.header("retry-after")) {
            (Some(seconds), _) => seconds,
            (None, Some(text)) => match text.parse() {
                Ok(seconds) => seconds,
                // By the provider's own clock: ours may differ.
                Err(_) => moment(text)?.since(self.server_now()?).as_secs_f64(),
            },
            (None, None) => return None,
        };
        let wait = seconds.clamp(0.0, MAX_RETRY_AFTER.as_secs_f64());
        // A NaN is no time.
        (wait > 0.0).then(|| Duration::from_secs_f64(wait))
    }

    /// The same answer, if it is one of success.
    ///
    /// # Errors
    /// What the refusal means: by its status, and by what the provider says in it.
    pub(crate) fn success(self, explain: impl Fn(&Value, &Self) -> Explained) -> CallResult<Self> {
        if (200..300).contains(&self.status) { Ok(self) } else { Err(self.refused(explain)) }
    }

    fn refused(mut self, explain: impl Fn(&Value, &Self) -> Explained) -> CallError {
        let mut bytes = Vec::new();
        let body = std::mem::replace(&mut self.body, Box::new(std::io::empty()));
        let is_whole = body.take(MAX_REFUSAL_BYTES).read_to_end(&mut bytes).is_ok();
        let said = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let explained = explain(&said, &self);
        let (fate, class) = by_status(self.status);
        let fate = if is_whole { fate } else { Fate::Ambiguous };
        let class = explained.class.unwrap_or(class);
        let short = |text: String| {
            let mut text = self.secret.redact(&text);
            text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES));
            text
        };
        let message = explained.message.filter(|message| !message.trim().is_empty()).map(short);
        let message = message.unwrap_or_else(|| match self.status {
            300..=399 => "the provider redirects, and redirects are not followed".to_owned(),
            _ => "the provider refused the request".to_owned(),
        });
        let mut error = CallError::new(fate, class, message);
        error.status = Some(self.status);
        error.code = explained.code.map(short);
        error.retry_after = self.retry_after();
        error
    }

    /// The whole of it.
    ///
    /// # Errors
    /// It broke off, or is larger than an answer may be. What was asked for may have been done.
    pub(crate) fn whole(mut self) -> CallResult<Told> {
        let (retry_after, server_now) = (self.retry_after(), self.server_now());
        let mut bytes = Vec::new();
        self.body.by_ref().take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 > MAX_JSON_BYTES {
            return Err(unreadable("the answer is larger than an answer may be"));
        }
        let text = String::from_utf8(bytes).map_err(|_| unreadable("the answer is not UTF-8"))?;
        Ok(Told { text, retry_after, server_now })
    }

    /// Its lines, as they come.
    pub(crate) fn lines(self) -> Lines {
        Lines::new(self.body, self.has_end, self.secret)
    }
}

/// What a status means where nothing else is said.
fn by_status(status: u16) -> (Fate, CallClass) {
    match status {
        // These ask for the very request to be sent elsewhere, so nothing was done; others may follow upon something done.
        301 | 307 | 308 => (Fate::Rejected, CallClass::Server),
        401..=403 => (Fate::Rejected, CallClass::Account),
        404 | 410 => (Fate::Rejected, CallClass::NotFound),
        405 => (Fate::Rejected, CallClass::Unsupported),
        408 | 409 => (Fate::Ambiguous, CallClass::Server),
        413 => (Fate::Rejected, CallClass::TooLarge),
        // What was refused is not the request, but that it was announced.
        417 => (Fate::Rejected, CallClass::Server),
        425 | 429 => (Fate::Rejected, CallClass::RateLimited),
        400..=499 => (Fate::Rejected, CallClass::Invalid),
        _ => (Fate::Ambiguous, CallClass::Server),
    }
}

/// An answer of success that cannot be read.
pub(crate) fn unreadable(problem: impl Into<String>) -> CallError {
    CallError::new(Fate::Ambiguous, CallClass::Server, problem)
}

/// A moment as HTTP writes it. A wrong day of the week does not make it unclear.
fn moment(text: &str) -> Option<Timestamp> {
    let parser = rfc2822::DateTimeParser::new().relaxed_weekday(true);
    Some(Timestamp::from_micros(parser.parse_timestamp(text).ok()?.as_microsecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let body = ureq::Body::builder().data(body.to_owned());
        Answer::new(response.body(body).expect("an answer"), Secret::of("sk-test-0123456789"))
    }

    #[test]
    fn retry_after_is_read_in_each_form_and_bounded() {
        const DATE: (&str, &str) = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        let day = Some(MAX_RETRY_AFTER);
        let ms = |ms| Some(Duration::from_millis(ms));
        type Headers = &'static [(&'static str, &'static str)];
        let table: [(Headers, Option<Duration>); 17] = [
            (&[], None),
            (&[("retry-after", "10")], ms(10_000)),
            (&[("retry-after", " 1.5 ")], ms(1500)),
            (&[("retry-after", "0")], None),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "NaN")], None),
            (&[("retry-after", "inf")], day),
            (&[("retry-after", "99999999999999999999999999")], day),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after-ms", "250")], ms(250)),
            (&[("retry-after-ms", "250"), ("retry-after", "10")], ms(250)),
            (&[("retry-after-ms", "x"), ("retry-after", "10")], ms(10_000)),
            // Without the provider's clock a moment says nothing.
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:38 GMT")], None),
            (&[DATE, ("retry-after", "Sun, 06 Nov 1994 08:49:38 GMT")], ms(1000)),
            (&[DATE, ("retry-after", "Sun, 06 Nov 1994 08:49:36 GMT")], None),
            (&[DATE, ("retry-after", "Thu, 30 Dec 2199 00:00:00 GMT")], day),
        ];
        for (headers, wait) in table {
            assert_eq!(answer(429, headers, "").retry_after(), wait, "{headers:?}");
        }
        let now = answer(200, &[DATE], "").server_now().expect("a date");
        assert_eq!(now.to_string(), "1994-11-06T08:49:37.000000Z");
    }

    #[test]
    fn a_refusal_is_understood_by_its_status() {
        use CallClass::{Account, Invalid, NotFound, RateLimited, Server, TooLarge, Unsupported};
        use Fate::{Ambiguous, Rejected};
        let table = [
            (300, Ambiguous, Server),
            (301, Rejected, Server),
            (302, Ambiguous, Server),
            (303, Ambiguous, Server),
            (307, Rejected, Server),
            (308, Rejected, Server),
            (400, Rejected, Invalid),
            (401, Rejected, Account),
            (402, Rejected, Account),
            (403, Rejected, Account),
            (404, Rejected, NotFound),
            (405, Rejected, Unsupported),
            (408, Ambiguous, Server),
            (409, Ambiguous, Server),
            (413, Rejected, TooLarge),
            (417, Rejected, Server),
            (418, Rejected, Invalid),
            (429, Rejected, RateLimited),
            (500, Ambiguous, Server),
            (503, Ambiguous, Server),
            (529, Ambiguous, Server),
        ];
        for (status, fate, class) in table {
            let Err(error) = answer(status, &[], "").success(|_, _| Explained::default()) else {
                panic!("{status} is no success");
            };
            assert_eq!((error.status, error.fate, error.class), (Some(status), fate, class));
        }
        assert!(answer(299, &[], "").success(|_, _| Explained::default()).is_ok());
    }

    #[test]
    fn what_a_refusal_says_is_kept_short_and_without_the_key() {
        let body = format!(r#"{{"m":"bad key sk-test-0123456789 {}","c":"sk-test-0123456789"}}"#, "\u{e9}".repeat(900));
        let said = |body: &Value, _: &Answer| Explained {
            class: None,
            code: body["c"].as_str().map(str::to_owned),
            message: body["m"].as_str().map(str::to_owned),
        };
        let error = answer(401, &[("retry-after", "3")], &body).success(said).err().expect("a refusal");
        assert!(error.message.starts_with("bad key [redacted] \u{e9}") && error.message.len() <= MAX_MESSAGE_BYTES);
        assert_eq!(error.code.as_deref(), Some("[redacted]"));
        assert_eq!(error.retry_after, Some(Duration::from_secs(3)));
    }
}
