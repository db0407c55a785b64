//! How requests are read and answers are sent: whole, packed, in chunks, or cut short.

use std::io::{Read, Write};
use std::net::TcpStream;

use flate2::Compression;
use flate2::write::GzEncoder;
use jobmill::Timestamp;
use serde_json::Value;

use crate::support::http::{Connection, Request};
use crate::support::provider_server::memory::{State, Stream};
use crate::support::provider_server::script::{Framing, Route};

/// Reads the head of a request, in the form that `Connection::request` does not know: with an announced body.
pub(super) fn read_head(connection: &mut Connection) -> Option<Request> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        connection.stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.trim_end().lines();
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let request = Request { line, headers, body: Vec::new() };
    if request.header("expect") == Some("100-continue") {
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n");
    }
    Some(request)
}

pub(super) fn read_body(connection: &mut Connection, request: &mut Request, most: usize) -> Option<()> {
    let length: usize = request.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    request.body = vec![0; length.min(most)];
    connection.stream.read_exact(&mut request.body).ok()
}

/// An answer that is made.
pub(super) enum Reply {
    Json(u16, Value),
    Results(Vec<u8>),
    Stream(Stream),
}

/// What goes with an answer.
pub(super) struct Meta {
    pub(super) date: String,
    pub(super) retry_after: Option<u64>,
    pub(super) packs: bool,
    pub(super) framing: Framing,
    pub(super) content_type: Option<&'static str>,
}

impl Meta {
    pub(super) fn plain() -> Self {
        Self { date: String::new(), retry_after: None, packs: false, framing: Framing::Length, content_type: None }
    }

    pub(super) fn of(state: &State, route: Route, request: &Request) -> Self {
        let accepts = request.header("accept-encoding").is_some_and(|value| value.contains("gzip"));
        Self {
            date: http_date((state.clock)()),
            retry_after: state.retry_after.filter(|_| route == Route::Poll),
            packs: state.packs && accepts,
            framing: state.framing,
            content_type: state.content_type,
        }
    }
}

fn http_date(at: Timestamp) -> String {
    let at = jiff::Timestamp::from_microsecond(at.as_micros()).expect("a moment");
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).expect("a date")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes).expect("memory");
    packer.finish().expect("memory")
}

/// Writes each piece as a chunk.
struct Chunks<'s>(&'s mut TcpStream);

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if !bytes.is_empty() {
            write!(self.0, "{:x}\r\n", bytes.len())?;
            self.0.write_all(bytes)?;
            self.0.write_all(b"\r\n")?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Sends an answer. False if the connection cannot be used for another.
pub(super) fn send(connection: &mut Connection, reply: &Reply, meta: &Meta, headers: &[(&str, &str)]) -> bool {
    let mut head = String::new();
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let status = match reply {
        Reply::Json(status, _) => *status,
        _ => 200,
    };
    let mut body = match reply {
        Reply::Json(_, body) => {
            head += "Content-Type: application/json\r\n";
            body.to_string().into_bytes()
        }
        Reply::Results(bytes) => bytes.clone(),
        Reply::Stream(_) => Vec::new(),
    };
    if meta.packs && !matches!(reply, Reply::Stream(_)) {
        head += "Content-Encoding: gzip\r\n";
        body = gzip(&body);
    }
    let framing = if matches!(reply, Reply::Json(..)) { Framing::Length } else { meta.framing };
    if !matches!(reply, Reply::Json(..)) {
        head += &meta.content_type.map_or_else(String::new, |kind| format!("Content-Type: {kind}\r\n"));
    }
    head += &match framing {
        Framing::Chunked | Framing::NoLastChunk => "Transfer-Encoding: chunked\r\n".to_owned(),
        Framing::Length => format!("Content-Length: {}\r\n", body.len()),
        Framing::ShortLength => format!("Content-Length: {}\r\n", body.len() + 10),
        Framing::Close => "Connection: close\r\n".to_owned(),
    };
    if !connection.send(format!("HTTP/1.1 {status} Something\r\n{head}\r\n").as_bytes()) {
        return false;
    }
    let chunked = matches!(framing, Framing::Chunked | Framing::NoLastChunk);
    let sent = if let Reply::Stream(stream) = reply {
        let mut pieces = std::io::BufWriter::with_capacity(64 << 10, Chunks(&mut connection.stream));
        stream(&mut pieces).is_ok() && pieces.flush().is_ok()
    } else if chunked {
        // In small pieces, for lines are torn by them.
        body.chunks(1000).all(|piece| Chunks(&mut connection.stream).write(piece).is_ok())
    } else {
        connection.send(&body)
    };
    match framing {
        Framing::Chunked => sent && connection.send(b"0\r\n\r\n"),
        Framing::Length => sent,
        _ => false,
    }
}
