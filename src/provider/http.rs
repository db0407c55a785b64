//! HTTP as the providers speak it: one request, no retries, no redirects, keys to their own origin alone.

mod answer;
mod key;
mod lines;
mod place;
mod sending;

use std::fmt;
use std::io::{self, Read};
use std::net::ToSocketAddrs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use ureq::config::Config;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, NextTimeout, RustlsConnector, TcpConnector};
use ureq::{Agent, AsSendBody, SendBody};

use crate::error::{Error, Result};
pub(crate) use crate::provider::http::answer::{Answer, Explained, Told, unreadable};
pub use crate::provider::http::key::Key;
use crate::provider::http::key::Secret;
pub(crate) use crate::provider::http::lines::{Parsed, give};
pub(crate) use crate::provider::http::place::{Place, segment};
use crate::provider::http::sending::{Sending, bad_request, unanswered};
use crate::provider::{Body, CallClass, CallError, CallResult, Fate};

/// How many addresses of one name are tried: as many as the client has room for.
const MAX_ADDRESSES: usize = 16;
/// What an answer's head may have, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// A body longer than this is announced, so that a refusal may come before it is sent.
const ANNOUNCE_FROM: u64 = 1 << 20;
/// Headers that only this file sets: the body's form depends on them, or the key's safety.
const OWN_HEADERS: [&str; 8] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "expect",
    "accept-encoding",
    "proxy-authorization",
    "cookie",
];

/// Where the key goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Auth {
    /// Into `authorization`, after the word `Bearer`.
    Bearer,
    /// Into a header of this name, as it is.
    Header(HeaderName),
}

/// What a client must know.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) base_url: String,
    pub(crate) key: Key,
    pub(crate) auth: Auth,
    /// Sent with each request. The same name may stand there once.
    pub(crate) headers: Vec<(String, String)>,
    /// The longest that a connection may take.
    pub(crate) connect_timeout: Duration,
    /// The longest that an ordinary call may take, from its begin to the answer's end.
    pub(crate) call_timeout: Duration,
    /// The longest that a stream of any length may stand still.
    pub(crate) stall_timeout: Duration,
    /// Long bodies are announced with `expect: 100-continue`.
    pub(crate) announce: bool,
}

/// Neither the address nor the headers, which may hold secrets.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("auth", &self.auth).finish_non_exhaustive()
    }
}

impl Settings {
    pub(crate) fn new(base_url: impl Into<String>, key: Key, auth: Auth) -> Self {
        Self {
            base_url: base_url.into(),
            key,
            auth,
            headers: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(60),
            announce: true,
        }
    }
}

/// A client of one account, for any thread.
pub(crate) struct Http {
    place: Place,
    key: Key,
    auth: Auth,
    headers: HeaderMap,
    call_timeout: Duration,
    stall_timeout: Duration,
    /// Until the server says that it does not want that.
    announce: AtomicBool,
    /// For what may be asked at any time: its connections are used again.
    asking: Agent,
    /// For what has an effect. A connection that is used again may have been closed by the other side just now, and then
    /// nobody could tell whether the request had arrived.
    acting: Agent,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.keys().map(HeaderName::as_str).collect();
        f.debug_struct("Http")
            .field("base_url", &self.place.as_str())
            .field("key", &self.key)
            .field("headers", &names)
            .finish_non_exhaustive()
    }
}

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
enum Patience {
    /// So long in all.
    Whole(Duration),
    /// As long as something moves. The answer may begin after so long.
    Stream(Duration),
}

impl Http {
    /// A client with these settings.
    ///
    /// # Errors
    /// `Invalid` if a setting breaks its rule.
    pub(crate) fn new(settings: Settings) -> Result<Self> {
        let place = Place::parse(&settings.base_url)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &settings.headers {
            let parsed: HeaderName =
                name.parse().map_err(|_| Error::invalid("header", format_args!("{name:?} is not a header's name")))?;
            let is_key = match &settings.auth {
                Auth::Bearer => parsed == header::AUTHORIZATION,
                Auth::Header(own) => parsed == own,
            };
            if is_key || OWN_HEADERS.contains(&parsed.as_str()) {
                return Err(Error::invalid("header", format_args!("{name} is set by the client itself")));
            }
            let mut value: HeaderValue = value
                .parse()
                .map_err(|_| Error::invalid("header", format_args!("the value of {name} must be visible ASCII")))?;
            value.set_sensitive(true);
            headers.insert(parsed, value);
        }
        for (field, time) in [
            ("connect_timeout", settings.connect_timeout),
            ("call_timeout", settings.call_timeout),
            ("stall_timeout", settings.stall_timeout),
        ] {
            check_timeout(field, time)?;
        }
        let agent = |idle: usize| {
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .proxy(None)
                .user_agent(concat!("jobmill/", env!("CARGO_PKG_VERSION")))
                .max_response_header_size(MAX_HEAD_BYTES)
                .max_idle_connections(idle)
                .max_idle_connections_per_host(idle)
                // Shorter than servers keep a connection that nobody uses.
                .max_idle_age(Duration::from_secs(4))
                .timeout_connect(Some(settings.connect_timeout))
                .timeout_await_100(Some(Duration::from_secs(1)))
                .build();
            let sockets = ().chain(TcpConnector::default()).chain(RustlsConnector::default());
            Agent::with_parts(config, sockets, Names)
        };
        Ok(Self {
            place,
            key: settings.key,
            auth: settings.auth,
            headers,
            call_timeout: settings.call_timeout,
            stall_timeout: settings.stall_timeout,
            announce: AtomicBool::new(settings.announce),
            asking: agent(4),
            acting: agent(0),
        })
    }

    /// Where requests go.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The key as it is now.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn key(&self) -> CallResult<Secret> {
        self.key.read()
    }

    /// Asks for something below the base address. The path begins with a slash and may have a query.
    pub(crate) fn get(&self, path: &str) -> Ask<'_> {
        self.ask(Method::GET, self.place.below(path))
    }

    /// Asks for what lies at an address that the provider named: on the base address's own origin, or nowhere.
    ///
    /// # Errors
    /// It lies on another origin, or is no address.
    pub(crate) fn get_at(&self, url: &str) -> CallResult<Ask<'_>> {
        Ok(self.ask(Method::GET, self.place.resolve(url)?))
    }

    /// Has something done.
    pub(crate) fn post(&self, path: &str) -> Ask<'_> {
        self.ask(Method::POST, self.place.below(path))
    }

    /// Has something deleted.
    pub(crate) fn delete(&self, path: &str) -> Ask<'_> {
        self.ask(Method::DELETE, self.place.below(path))
    }

    fn ask(&self, method: Method, url: String) -> Ask<'_> {
        Ask { http: self, method, url, headers: Vec::new(), body: None, patience: Patience::Whole(self.call_timeout) }
    }
}

/// A timeout that is zero would let nothing happen, and one of years is a mistake.
pub(crate) fn check_timeout(field: &str, time: Duration) -> Result<()> {
    if time < Duration::from_millis(1) || time > Duration::from_secs(86_400) {
        return Err(Error::invalid(field, "must be from 1 ms to 1 day"));
    }
    Ok(())
}

/// A request that is being put together.
pub(crate) struct Ask<'h> {
    http: &'h Http,
    method: Method,
    url: String,
    headers: Vec<(HeaderName, String)>,
    body: Option<Body<'h>>,
    patience: Patience,
}

impl<'h> Ask<'h> {
    /// Sets a header.
    pub(crate) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sets what is sent, of what type it is, and how many bytes it has. It is read as it is sent.
    pub(crate) fn body(self, content_type: &str, length: u64, reader: &'h mut dyn Read) -> Self {
        let mut ask = self.header(header::CONTENT_TYPE, content_type);
        ask.body = Some(Body { length, reader });
        ask
    }

    /// Sets how long the call may take in all. Defaults to the client's setting.
    pub(crate) fn within(mut self, time: Duration) -> Self {
        self.patience = Patience::Whole(time);
        self
    }

    /// Lets the call take as long as something moves.
    pub(crate) fn streaming(mut self) -> Self {
        self.patience = Patience::Stream(self.http.stall_timeout);
        self
    }

    /// Lets the call take as long as its body moves, and then so long until the answer.
    pub(crate) fn uploading(mut self, time: Duration) -> Self {
        self.patience = Patience::Stream(time);
        self
    }

    /// Sends the request, once. Any answer is good, whatever its status.
    ///
    /// # Errors
    /// No answer came.
    pub(crate) fn send(self) -> CallResult<Answer> {
        let http = self.http;
        let secret = http.key()?;
        let acts = self.method != Method::GET;
        let mut nothing = io::empty();
        let (length, mut sending) = match self.body {
            Some(body) => (Some(body.length), Sending::new(body.length, body.reader)),
            // What acts has a length even when it has no body, for some servers wait for one.
            None => (acts.then_some(0), Sending::new(0, &mut nothing)),
        };
        let mut request = Request::builder().method(self.method).uri(&self.url);
        if let Some(headers) = request.headers_mut() {
            headers.extend(http.headers.clone());
            for (name, value) in self.headers {
                let value = value.parse().map_err(|_| bad_request("a header holds what no header may hold"))?;
                headers.insert(name, value);
            }
            if let Some(secret) = secret.as_str() {
                let (name, value) = match &http.auth {
                    Auth::Bearer => (header::AUTHORIZATION, format!("Bearer {secret}")),
                    Auth::Header(name) => (name.clone(), secret.to_owned()),
                };
                let mut value: HeaderValue = value.parse().map_err(|_| {
                    CallError::new(Fate::NotSent, CallClass::Account, "the key holds what no header may hold")
                })?;
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
            if acts {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            if let Some(length) = length {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
                if http.announce.load(Ordering::Relaxed) && length >= ANNOUNCE_FROM {
                    headers.insert(header::EXPECT, HeaderValue::from_static("100-continue"));
                }
            }
        }
        let bad_address = |_| bad_request("the address is not valid");
        let ran = if length.is_some() {
            let body = SendBody::from_reader(&mut sending);
            run(http, acts, self.patience, request.body(body).map_err(bad_address)?)
        } else {
            run(http, acts, self.patience, request.body(()).map_err(bad_address)?)
        };
        match ran {
            Ok(response) => {
                if response.status() == StatusCode::EXPECTATION_FAILED {
                    http.announce.store(false, Ordering::Relaxed);
                }
                Ok(Answer::new(response, secret))
            }
            Err(error) => Err(unanswered(&error, &sending)),
        }
    }
}

fn run(
    http: &Http,
    acts: bool,
    patience: Patience,
    request: Request<impl AsSendBody>,
) -> std::result::Result<Response<ureq::Body>, ureq::Error> {
    let agent = if acts { &http.acting } else { &http.asking };
    let config = agent.configure_request(request);
    let config = match patience {
        Patience::Whole(time) => config.timeout_per_call(Some(time)),
        Patience::Stream(answer) => config
            .timeout_send_request(Some(http.stall_timeout))
            .timeout_recv_response(Some(answer))
            .timeout_per_read(Some(answer))
            .timeout_per_write(Some(http.stall_timeout)),
    };
    agent.run(config.build())
}

/// Looks names up by the operating system, on the caller's own thread. The system's own limits hold for that: a thread
/// beside it that could be left behind would be one more that nobody joins.
#[derive(Debug)]
struct Names;

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let found = (host, port).to_socket_addrs().map_err(|_| ureq::Error::HostNotFound)?;
        let mut addresses = self.empty();
        for address in found.take(MAX_ADDRESSES) {
            addresses.push(address);
        }
        if addresses.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(addresses) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::ops::ControlFlow;

    use crossbeam_channel::bounded;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::builtin::callback::server::{CLOSED_PORT, Connection, Server};

    const LONG: Duration = Duration::from_secs(30);
    const KEY: &str = "sk-test-0123456789";

    fn settings(url: String) -> Settings {
        let mut settings = Settings::new(url, Key::fixed(KEY), Auth::Header(HeaderName::from_static("x-api-key")));
        (settings.call_timeout, settings.stall_timeout) = (LONG, LONG);
        settings
    }

    fn http(server: &Server) -> Http {
        Http::new(settings(server.url("/base"))).expect("good settings")
    }

    fn refused(answer: CallResult<Answer>) -> CallError {
        match answer.and_then(|answer| answer.success(|_, _| Explained::default())) {
            Ok(_) => panic!("an answer of success"),
            Err(error) => error,
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(bytes).expect("memory");
        packer.finish().expect("memory")
    }

    /// Answers with these bytes, under this header.
    fn serving(header: &'static str, body: Vec<u8>) -> Server {
        Server::start(move |_, connection| {
            connection.request();
            connection.send(format!("HTTP/1.1 200 OK\r\n{header}\r\n\r\n").as_bytes());
            connection.send(&body);
        })
    }

    #[test]
    fn a_request_has_the_key_the_headers_and_an_exact_length() {
        let server = Server::start(|_, connection| connection.reply(200, &[], "{}"));
        let mut settings = settings(server.url("/base/?v=1"));
        settings.headers.push(("X-Team".to_owned(), "blue".to_owned()));
        let http = Http::new(settings.clone()).expect("good settings");
        let mut bytes: &[u8] = b"hello";
        let told =
            http.post("/x?a=b").body("text/plain", 5, &mut bytes).send().and_then(Answer::whole).expect("an answer");
        assert_eq!(told.text, "{}");
        let came = server.next();
        assert_eq!((&*came.line, &*came.body), ("POST /base/x?a=b&v=1 HTTP/1.1", &b"hello"[..]));
        let headers = [
            ("x-api-key", KEY),
            ("x-team", "blue"),
            ("content-length", "5"),
            ("content-type", "text/plain"),
            ("connection", "close"),
            ("accept-encoding", "gzip"),
        ];
        for (name, value) in headers {
            assert_eq!(came.header(name), Some(value), "{name}");
        }
        assert_eq!((came.header("transfer-encoding"), came.header("authorization")), (None, None));

        settings.auth = Auth::Bearer;
        Http::new(settings).expect("good settings").delete("/y").send().expect("an answer");
        let came = server.next();
        assert_eq!(came.header("authorization"), Some(&*format!("Bearer {KEY}")));
        assert_eq!((came.header("content-length"), came.header("x-api-key")), (Some("0"), None));
    }

    #[test]
    fn bad_settings_are_refused() {
        let check = |change: fn(&mut Settings)| {
            let mut settings = settings("https://api.example".to_owned());
            change(&mut settings);
            Http::new(settings).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(check(|_| ()), Ok(()));
        let bad: [fn(&mut Settings); 9] = [
            |settings| settings.base_url = "api.example".to_owned(),
            |settings| settings.headers.push(("a b".to_owned(), String::new())),
            |settings| settings.headers.push(("a".to_owned(), "b\r\nc: d".to_owned())),
            |settings| settings.headers.push(("X-Api-Key".to_owned(), "k".to_owned())),
            |settings| settings.headers.push(("Content-Length".to_owned(), "1".to_owned())),
            |settings| settings.headers.push(("transfer-encoding".to_owned(), "chunked".to_owned())),
            |settings| settings.connect_timeout = Duration::ZERO,
            |settings| settings.call_timeout = Duration::MAX,
            |settings| settings.stall_timeout = Duration::ZERO,
        ];
        for (number, change) in bad.into_iter().enumerate() {
            assert!(check(change).is_err(), "setting {number}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut settings = settings("https://api.example".to_owned());
        settings.headers.push(("x-team-secret".to_owned(), "hunter2".to_owned()));
        let text = format!("{:?}", Http::new(settings).expect("good settings"));
        assert!(text.contains("x-team-secret") && !text.contains("hunter2") && !text.contains(KEY), "{text}");
    }

    #[test]
    fn a_redirect_is_an_answer_and_takes_the_key_nowhere() {
        let trap = Server::answering(200);
        let to = trap.url("/trap");
        let server = Server::start(move |number, connection| {
            let status = [301, 302, 303, 307, 308][number % 5];
            connection.reply(status, &[("Location", &to)], "");
        });
        let http = http(&server);
        for number in 0..15 {
            let ask = match number / 5 {
                0 => http.post("/x"),
                1 => http.get("/x").streaming(),
                _ => http.delete("/x"),
            };
            let error = refused(ask.header(header::CONNECTION, "close").send());
            assert_eq!(error.class, CallClass::Server);
            assert_eq!(error.message, "the provider redirects, and redirects are not followed");
        }
        trap.is_untouched();
    }

    #[test]
    fn what_cannot_have_arrived_is_told_from_what_may_have() {
        use Fate::{Ambiguous, NotSent};
        let send_within = |time: Duration, url: String, length: u64| {
            let mut settings = settings(url);
            settings.call_timeout = time;
            settings.announce = false;
            let http = Http::new(settings).expect("good settings");
            let mut bytes = io::repeat(b'x').take(length);
            refused(http.post("/").body("text/plain", length, &mut bytes).send())
        };
        let send = |url: String, length: u64| send_within(LONG, url, length);
        let nobody = send(format!("http://{CLOSED_PORT}"), 10);
        assert_eq!((nobody.fate, &*nobody.message), (NotSent, "the connection was refused"));
        assert_eq!(send("http://no-such-host.invalid".to_owned(), 10).fate, NotSent);

        let closing = Server::start(|_, connection| drop(connection.request()));
        let closed = send(closing.url("/"), 10);
        assert_eq!((closed.fate, closed.class), (Ambiguous, CallClass::Transport));
        assert_eq!(closed.message, "the connection was closed before the answer's end");

        let silent = Server::start(|_, connection| {
            connection.request();
            connection.hang();
        });
        // Its time may be up before anything has gone out, if nobody lets us run. More time is enough some day.
        let times = [300, 3000, 30_000].map(Duration::from_millis);
        assert!(times.into_iter().any(|time| send_within(time, silent.url("/"), 10).fate == Ambiguous));
        // No handshake, so nothing of the request.
        let secure = send_within(times[0], silent.url("/").replace("http:", "https:"), 10);
        assert_eq!(secure.fate, NotSent, "{secure}");

        let halfway = Server::start(|_, connection| {
            let _ = connection.stream.read_exact(&mut [0; 500]);
        });
        assert_eq!(send(halfway.url("/"), 8 << 20).fate, Ambiguous);
        let garbage = Server::start(|_, connection| {
            connection.request();
            connection.send(b"SSH-2.0-hunter2\r\n\r\n");
        });
        let error = send(garbage.url("/"), 10);
        assert_eq!((error.fate, &*error.message), (Ambiguous, "the answer is not valid HTTP"));
    }

    #[test]
    fn no_key_sends_nothing() {
        let server = Server::answering(200);
        for key in [Key::env("NO_SUCH_VARIABLE"), Key::fixed("two\nlines")] {
            let mut settings = settings(server.url("/"));
            settings.key = key;
            let error = refused(Http::new(settings).expect("good settings").post("/").send());
            assert_eq!((error.fate, error.class), (Fate::NotSent, CallClass::Account));
        }
        server.is_untouched();
    }

    #[test]
    fn a_body_of_another_length_never_arrives_whole() {
        let server = Server::start(|_, connection| drop(connection.request()));
        let http = http(&server);
        let send = |length, mut bytes: &[u8]| refused(http.post("/").body("text/plain", length, &mut bytes).send());
        let short = send(6, b"hello");
        assert_eq!((&*short.message, short.fate), ("the body is shorter than was said", Fate::Ambiguous));
        let long = send(4, b"hello");
        assert_eq!((&*long.message, long.fate), ("the body is longer than was said", Fate::NotSent));
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("hunter2"))
            }
        }
        let broken = refused(http.post("/").body("text/plain", 5, &mut Broken).send());
        assert_eq!((&*broken.message, broken.fate), ("the body could not be read", Fate::NotSent));
    }

    /// Reads the head of a request, and nothing of its body.
    fn head(connection: &mut Connection) -> String {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && connection.stream.read(&mut byte).is_ok_and(|count| count > 0) {
            head.push(byte[0]);
        }
        String::from_utf8_lossy(&head).to_ascii_lowercase()
    }

    #[test]
    fn a_long_body_is_refused_before_it_is_sent() {
        let server = Server::start(|_, connection| {
            assert!(head(connection).contains("expect: 100-continue"));
            connection.answer(413, &[("Connection", "close")], "");
        });
        let mut bytes = io::repeat(b'x').take(100 << 20);
        let error = refused(http(&server).post("/").body("text/plain", 100 << 20, &mut bytes).send());
        assert_eq!((error.fate, error.class), (Fate::Rejected, CallClass::TooLarge));
        assert_eq!(bytes.limit(), 100 << 20);
    }

    #[test]
    fn who_wants_no_announcement_gets_no_second_one() {
        let server = Server::start(|number, connection| {
            if number == 0 {
                assert!(head(connection).contains("expect: 100-continue"));
                connection.answer(417, &[("Connection", "close")], "");
            } else {
                connection.reply(200, &[], "{}");
            }
        });
        let http = http(&server);
        let send = || {
            let mut bytes = io::repeat(b'x').take(2 << 20);
            http.post("/").body("text/plain", 2 << 20, &mut bytes).send()
        };
        // It was refused, and may be sent again.
        let error = refused(send());
        assert_eq!((error.fate, error.class), (Fate::Rejected, CallClass::Server));
        assert!(send().and_then(Answer::whole).is_ok());
        assert_eq!(server.next().header("expect"), None);
    }

    #[test]
    fn an_answer_that_breaks_off_is_no_answer() {
        let cut: [(&str, &[u8]); 4] = [
            ("content-length: 10", b"[1]"),
            ("transfer-encoding: chunked", b"3\r\n[1]\r\n"),
            ("transfer-encoding: chunked\r\ncontent-encoding: gzip", b"3\r\n\x1f\x8b\x08\r\n0\r\n\r\n"),
            ("content-length: 3\r\ncontent-encoding: gzip", b"[1]"),
        ];
        for (header, bytes) in cut {
            let server = serving(header, bytes.to_vec());
            let error = http(&server).get("/").send().and_then(Answer::whole).expect_err(header);
            assert_eq!((error.fate, error.class), (Fate::Ambiguous, CallClass::Transport), "{header}");
        }
    }

    #[test]
    fn what_is_packed_is_counted_when_it_is_unpacked() {
        let server = serving("content-encoding: gzip", gzip(br#"{"a":1}"#));
        assert_eq!(http(&server).get("/").send().and_then(Answer::whole).expect("an answer").text, r#"{"a":1}"#);
        let bomb = gzip(&vec![b' '; 17 << 20]);
        assert!(bomb.len() < 200_000);
        let server = serving("content-encoding: GZIP", bomb);
        let error = http(&server).get("/").send().and_then(Answer::whole).expect_err("too large");
        assert_eq!(error.message, "the answer is larger than an answer may be");
    }

    /// Reads lines that are sent with a pause after each, and then nothing more.
    fn stream(lines: usize, call_timeout: Duration, stall_timeout: Duration) -> CallResult<(usize, CallError)> {
        let server = Server::start(move |_, connection| {
            connection.request();
            connection.send(b"HTTP/1.1 200 OK\r\n\r\n");
            for _ in 0..lines {
                connection.send(b"[1]\n");
                connection.pause(Duration::from_millis(20));
            }
            if stall_timeout == LONG {
                connection.send(b"[1");
            } else {
                connection.hang();
            }
        });
        let mut settings = settings(server.url("/"));
        (settings.call_timeout, settings.stall_timeout) = (call_timeout, stall_timeout);
        let http = Http::new(settings).expect("good settings");
        let lines = http.get("/").streaming().send()?.lines();
        let mut count = 0;
        let mut sink = |_: crate::provider::ResultLine<'_>| {
            count += 1;
            ControlFlow::Continue(())
        };
        let error = give(lines, None, &mut sink, |_| Err("not read".to_owned())).expect_err("no end");
        Ok((count, error))
    }

    #[test]
    fn a_connection_that_was_closed_meanwhile_is_not_used_again() {
        let (closed, closes) = bounded(1);
        let server = Server::start(move |_, connection| {
            connection.reply(200, &[], "{}");
            let _ = connection.stream.shutdown(std::net::Shutdown::Both);
            let _ = closed.send(());
        });
        let http = http(&server);
        for _ in 0..3 {
            assert!(http.get("/").send().and_then(Answer::whole).is_ok());
            closes.recv_timeout(LONG).expect("a server that closes");
        }
        assert_eq!(server.connections(), 3);
    }

    #[test]
    fn what_is_asked_often_uses_its_connection_again_and_what_acts_does_not() {
        let server = Server::start(|_, connection| {
            while connection.request().is_some() {
                connection.answer(200, &[], "{}");
            }
        });
        let http = http(&server);
        for _ in 0..3 {
            assert!(http.get("/").send().and_then(Answer::whole).is_ok());
        }
        assert_eq!(server.connections(), 1);
        for _ in 0..3 {
            assert!(http.post("/").send().and_then(Answer::whole).is_ok());
        }
        assert_eq!(server.connections(), 4);
    }

    #[test]
    fn a_stream_may_take_longer_than_a_call() {
        let (count, error) = stream(10, Duration::from_millis(20), LONG).expect("an answer");
        assert_eq!((count, &*error.message), (10, "the results were cut off"));
    }

    #[test]
    fn a_stream_may_not_stand_still() {
        // The answer's head may come no sooner than that, if nobody lets its server run. More time is enough some day.
        let mut times = [200, 2000, 20_000].map(Duration::from_millis).into_iter();
        let (_, error) = times.find_map(|time| stream(1, LONG, time).ok()).expect("an answer");
        assert_eq!((error.class, &*error.message), (CallClass::Transport, "timed out while receiving"));
    }

    #[test]
    fn proxies_of_the_environment_are_not_used() {
        let proxy = Server::answering(200);
        let this = std::env::current_exe().expect("the program of this test");
        let test = "provider::http::tests::a_request_has_the_key_the_headers_and_an_exact_length";
        let mut child = std::process::Command::new(this);
        for variable in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            child.env(variable, proxy.url("/"));
        }
        let output = child.env_remove("no_proxy").env_remove("NO_PROXY").args([test, "--exact"]).output();
        let output = output.expect("a child");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        proxy.is_untouched();
    }
}
