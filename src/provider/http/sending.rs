//! A body on its way, and what became of a request that broke off.

use std::io::{self, ErrorKind, Read};

use ureq::Timeout;

use crate::provider::{CallClass, CallError, Fate};

pub(super) fn bad_request(problem: &str) -> CallError {
    CallError::new(Fate::NotSent, CallClass::Invalid, problem)
}

/// A body on its way: exactly as many bytes as were announced, or an error.
pub(super) struct Sending<'b> {
    reader: &'b mut dyn Read,
    length: u64,
    sent: u64,
    problem: Option<&'static str>,
}

impl<'b> Sending<'b> {
    pub(super) fn new(length: u64, reader: &'b mut dyn Read) -> Self {
        Self { reader, length, sent: 0, problem: None }
    }

    fn fail(&mut self, problem: &'static str) -> io::Error {
        self.problem = Some(problem);
        io::Error::new(ErrorKind::InvalidData, problem)
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.reader.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(self.fail("the body could not be read")),
                Ok(count) => return Ok(count),
            }
        }
    }
}

impl Read for Sending<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length - self.sent;
        let room = usize::try_from(left).map_or(buffer.len(), |left| buffer.len().min(left));
        if room == 0 {
            return Ok(0);
        }
        let count = self.read_some(&mut buffer[..room])?;
        if count == 0 {
            return Err(self.fail("the body is shorter than was said"));
        }
        // Before the last piece goes out, so that a body which is not what was meant never arrives whole.
        if count as u64 == left && self.read_some(&mut [0])? > 0 {
            return Err(self.fail("the body is longer than was said"));
        }
        self.sent += count as u64;
        Ok(count)
    }
}

/// What became of a request that has no answer.
pub(super) fn unanswered(error: &ureq::Error, sending: &Sending<'_>) -> CallError {
    use ureq::Error;
    if let Some(problem) = sending.problem {
        let fate = if sending.sent > 0 { Fate::Ambiguous } else { Fate::NotSent };
        return CallError::new(fate, CallClass::Transport, problem);
    }
    let never_sent = match error {
        Error::BadUri(_) | Error::Http(_) => return bad_request("the request is not valid HTTP"),
        // The body is read when the head has gone out: if nothing was taken of it, the request did not arrive whole. If
        // something was, no kind of error can tell that it did not, least of all one of TLS, which may come at any time.
        _ if sending.length > 0 => sending.sent == 0,
        Error::HostNotFound | Error::Timeout(Timeout::Resolve | Timeout::Connect) => true,
        Error::Tls(_) | Error::Rustls(_) | Error::TlsRequired | Error::ConnectionFailed => true,
        Error::Io(inner) => matches!(
            inner.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::AddrNotAvailable
        ),
        _ => false,
    };
    let fate = if never_sent { Fate::NotSent } else { Fate::Ambiguous };
    CallError::new(fate, CallClass::Transport, explain(error))
}

/// What broke, without addresses and without anything that came over the wire.
pub(super) fn explain(error: &ureq::Error) -> String {
    use ureq::Error;
    match error {
        Error::HostNotFound => "the host was not found".to_owned(),
        Error::Timeout(Timeout::Connect | Timeout::Resolve) => "no connection within the time for it".to_owned(),
        Error::Timeout(Timeout::SendRequest | Timeout::SendBody | Timeout::PerWrite) => {
            "timed out while sending".to_owned()
        }
        Error::Timeout(Timeout::RecvBody | Timeout::PerRead) => "timed out while receiving".to_owned(),
        Error::Timeout(_) => "timed out".to_owned(),
        Error::Io(inner) => match inner.kind() {
            ErrorKind::ConnectionRefused => "the connection was refused".to_owned(),
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                "the connection broke".to_owned()
            }
            ErrorKind::UnexpectedEof => "the connection was closed before the answer's end".to_owned(),
            kind => format!("the connection failed: {kind}"),
        },
        Error::Protocol(_) | Error::LargeResponseHeader(..) => "the answer is not valid HTTP".to_owned(),
        Error::Tls(_) | Error::Rustls(_) => {
            let mut text = format!("no secure connection: {error}");
            text.truncate(text.floor_char_boundary(300));
            text
        }
        _ => "the connection failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_tls_after_the_body_has_gone_out_is_ambiguous() {
        let fate = |length, sent| {
            let mut nothing = io::empty();
            let mut sending = Sending::new(length, &mut nothing);
            sending.sent = sent;
            [ureq::Error::Tls("broken"), ureq::Error::Io(ErrorKind::ConnectionRefused.into())]
                .map(|error| unanswered(&error, &sending).fate)
        };
        assert_eq!(fate(10, 10), [Fate::Ambiguous; 2]);
        assert_eq!(fate(10, 1), [Fate::Ambiguous; 2]);
        assert_eq!(fate(10, 0), [Fate::NotSent; 2]);
        assert_eq!(fate(0, 0), [Fate::NotSent; 2]);
    }
}
