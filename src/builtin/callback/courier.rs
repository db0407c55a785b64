//! The courier, who delivers one message at a time: a POST, whose answer is read no further than it counts.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::tls::TlsConfig;
use ureq::unversioned::transport::{Connector, RustlsConnector, TcpConnector};

use crate::builtin::callback::Callbacks;
use crate::builtin::callback::doorman::{Doorman, Names};
use crate::builtin::callback::signature::signatures;
use crate::builtin::callback::verdict::{Delivered, Undelivered, judge, unanswered};
use crate::error::Result;
use crate::model::callback::Target;
use crate::model::contents::debug_with_sizes;
use crate::model::time::Timestamp;

/// What an answer's head may have, in bytes. The rules of common servers are 8 or 16 KiB.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// How much of an answer's body is read, and for how long, before the connection is closed. Nothing in it counts, but a
/// receiver whose connection breaks while it is answering may take that for a failure.
const MAX_BODY_BYTES: u64 = 1024;
const BODY_PATIENCE: Duration = Duration::from_millis(100);
/// How much is sent at a time. Some systems give each piece of a write the whole time again, and the client gives it to
/// each write that was done in part, so a receiver who reads slowly gains little if a write is small.
const WRITE_BYTES: usize = 4 << 10;
/// What is to be delivered. The id stays the same at each attempt, so that the receiver can drop repeats.
#[derive(Clone)]
pub(crate) struct Message {
    /// Holds no full stop, for the signature is over id, time and body with one between each.
    pub(crate) id: String,
    pub(crate) url: String,
    /// JSON.
    pub(crate) body: Vec<u8>,
}

debug_with_sizes!(Message { id, url; body });

/// Delivers messages, from any thread.
pub(crate) struct Courier {
    callbacks: Callbacks,
    agent: Agent,
}

impl Courier {
    /// A courier with these settings.
    ///
    /// # Errors
    /// `Invalid` if a setting breaks its rule.
    pub(crate) fn new(callbacks: Callbacks, names: Arc<dyn Names>) -> Result<Self> {
        Self::trusting(callbacks, names, TlsConfig::default())
    }

    fn trusting(callbacks: Callbacks, names: Arc<dyn Names>, tls: TlsConfig) -> Result<Self> {
        callbacks.check()?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .tls_config(tls)
            .user_agent(concat!("jobmill/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(MAX_HEAD_BYTES)
            // A buffer that is full before the head is too long would look like a connection that was closed.
            .input_buffer_size(2 * MAX_HEAD_BYTES)
            .output_buffer_size(WRITE_BYTES)
            // Each delivery has a connection of its own. One that was kept could have been closed by the receiver just
            // now, and a delivery would fail that no one is to blame for.
            .max_idle_connections(0)
            .max_idle_connections_per_host(0)
            .timeout_global(Some(callbacks.timeout))
            .timeout_recv_body(Some(BODY_PATIENCE))
            .build();
        let doorman = Doorman { names, private_addresses: callbacks.private_addresses };
        let sockets = ().chain(TcpConnector::default()).chain(RustlsConnector::default());
        let agent = Agent::with_parts(config, sockets, doorman);
        Ok(Self { callbacks, agent })
    }

    pub(crate) fn settings(&self) -> &Callbacks {
        &self.callbacks
    }

    /// Delivers a message, or tells why not, within the timeout.
    pub(crate) fn deliver(&self, message: &Message, now: Timestamp) -> Result<Delivered, Undelivered> {
        let target =
            Target::parse(&message.url).map_err(|error| Undelivered::without_answer(error.to_string(), false))?;
        let secrets = self
            .callbacks
            .secrets_for(&message.url)
            // Whoever gives the secrets can set that right, so it is worth another attempt.
            .map_err(|error| Undelivered::without_answer(error.to_string(), true))?;
        let at_s = now.as_micros() / 1_000_000;
        let mut request = self
            .agent
            .post(target.uri)
            .header("connection", "close")
            .header("content-type", "application/json")
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", at_s);
        if let Some(signatures) = signatures(&secrets, &message.id, at_s, &message.body) {
            request = request.header("webhook-signature", signatures);
        }
        match request.send(&message.body[..]) {
            Ok(mut response) => {
                let outcome = judge(&response, now);
                let mut body = response.body_mut().with_config().limit(MAX_BODY_BYTES).reader();
                let mut buffer = [0; 256];
                while matches!(body.read(&mut buffer), Ok(count) if count > 0) {}
                outcome
            }
            Err(error) => Err(unanswered(&error, self.callbacks.timeout)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{ErrorKind, Write};
    use std::net::IpAddr;
    use std::sync::Mutex;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use crossbeam_channel::bounded;
    use hmac::{Hmac, KeyInit, Mac};
    use sha2::Sha256;

    use super::*;
    use crate::builtin::callback::server::{CLOSED_PORT, Connection, Request, Server, answer, read_request};

    const NOW: Timestamp = Timestamp::from_micros(1_790_000_000_999_999);
    const NOW_S: &str = "1790000000";
    const KEY: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const NEW_KEY: &str = "C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    /// How long a delivery may take that is to end well.
    const LONG: Duration = Duration::from_secs(30);
    /// How long one may take that is to end by its time.
    const SHORT: Duration = Duration::from_millis(200);
    /// What lies between the steps of a slow receiver: many fit into `SHORT`.
    const STEP: Duration = Duration::from_millis(10);

    type Serve = fn(&mut Connection);

    /// A book of names, which remembers who was looked up. It turns its pages: each question has the next answer.
    #[derive(Default)]
    struct Book {
        pages: HashMap<&'static str, Vec<Vec<IpAddr>>>,
        asked: Mutex<Vec<String>>,
    }

    impl Book {
        fn with(mut self, name: &'static str, pages: &[&[&str]]) -> Self {
            let read = |page: &&[&str]| page.iter().map(|text| text.parse().expect("an address")).collect();
            self.pages.insert(name, pages.iter().map(read).collect());
            self
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().expect("a book").clone()
        }
    }

    impl Names for Book {
        fn look_up(&self, name: &str, within: Duration) -> std::io::Result<Vec<IpAddr>> {
            assert!(within <= LONG, "the time of the whole delivery bounds the look-up");
            let mut asked = self.asked.lock().expect("a book");
            let times = asked.iter().filter(|known| *known == name).count();
            asked.push(name.to_owned());
            match self.pages.get(name) {
                Some(pages) => Ok(pages.get(times).or(pages.last()).cloned().unwrap_or_default()),
                None if name == "slow.example" => Err(ErrorKind::TimedOut.into()),
                None => Err(std::io::Error::other("secret of the resolver")),
            }
        }
    }

    fn here() -> Callbacks {
        Callbacks::new().allow_private_addresses().timeout(LONG)
    }

    fn courier(callbacks: Callbacks) -> Courier {
        Courier::new(callbacks, Arc::new(Book::default())).expect("good settings")
    }

    fn message(url: impl Into<String>) -> Message {
        Message { id: "job-0123456789abc".to_owned(), url: url.into(), body: br#"{"job_id":"\u00e9"}"#.to_vec() }
    }

    /// Delivers, and expects no success and no answer.
    #[track_caller]
    fn unanswered(callbacks: Callbacks, url: impl Into<String>) -> Undelivered {
        let undelivered = courier(callbacks).deliver(&message(url), NOW).expect_err("no delivery");
        assert_eq!((undelivered.status, undelivered.retry_after), (None, None), "{undelivered:?}");
        undelivered
    }

    /// Verifies a request as its receiver does.
    fn is_signed_with(request: &Request, key: &str) -> bool {
        let mut mac = Hmac::<Sha256>::new_from_slice(&STANDARD.decode(key).expect("base64")).expect("any length");
        let part = |name| request.header(name).expect(name);
        mac.update([part("webhook-id"), ".", part("webhook-timestamp"), "."].concat().as_bytes());
        mac.update(&request.body);
        let expected = mac.finalize().into_bytes();
        part("webhook-signature").split(' ').any(|signature| {
            let signature = STANDARD.decode(signature.strip_prefix("v1,").expect("the version")).expect("base64");
            signature == expected[..]
        })
    }

    #[test]
    fn a_message_arrives_as_it_was_sent_and_signed() {
        let server = Server::answering(200);
        let courier = courier(here().secret(format!("whsec_{KEY}")));
        let sent = message(server.url("/hooks/%20?job=1&x"));
        assert_eq!(courier.deliver(&sent, NOW), Ok(Delivered { status: 200 }));

        let came = server.next();
        assert_eq!(came.line, "POST /hooks/%20?job=1&x HTTP/1.1");
        assert_eq!(came.body, sent.body);
        assert!(is_signed_with(&came, KEY) && !is_signed_with(&came, NEW_KEY));
        let mut headers = came.headers.clone();
        headers.retain(|(name, _)| name != "webhook-signature");
        headers.sort();
        let (host, length) = (server.address.to_string(), sent.body.len().to_string());
        let expected = [
            ("accept", "*/*"),
            ("connection", "close"),
            ("content-length", &length),
            ("content-type", "application/json"),
            ("host", &host),
            ("user-agent", concat!("jobmill/", env!("CARGO_PKG_VERSION"))),
            ("webhook-id", "job-0123456789abc"),
            ("webhook-timestamp", NOW_S),
        ];
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(headers, expected);
    }

    #[test]
    fn secrets_can_be_changed_without_a_gap_and_are_the_receivers_own() {
        let server = Server::answering(204);
        let deliver = |callbacks: Callbacks, path: &str| {
            let delivered = courier(callbacks).deliver(&message(server.url(path)), NOW);
            assert_eq!(delivered, Ok(Delivered { status: 204 }));
            server.next()
        };
        let unsigned = deliver(here(), "/");
        assert_eq!(unsigned.header("webhook-signature"), None);
        assert_eq!(unsigned.header("webhook-timestamp"), Some(NOW_S));

        let both = here().secret(format!("whsec_{NEW_KEY}")).secret(format!("whsec_{KEY}"));
        let came = deliver(both, "/");
        assert!(is_signed_with(&came, KEY) && is_signed_with(&came, NEW_KEY));
        assert_eq!(came.header("webhook-signature").map(|header| header.split(' ').count()), Some(2));

        let own = here()
            .secret(format!("whsec_{KEY}"))
            .secret_for(|url| if url.ends_with("/own") { vec![format!("whsec_{NEW_KEY}")] } else { Vec::new() });
        let came = deliver(own.clone(), "/own");
        assert!(is_signed_with(&came, NEW_KEY) && !is_signed_with(&came, KEY));
        let came = deliver(own, "/other");
        assert!(is_signed_with(&came, KEY) && !is_signed_with(&came, NEW_KEY));
    }

    #[test]
    fn a_bad_secret_sends_nothing_and_is_not_shown() {
        let server = Server::answering(200);
        let undelivered = unanswered(here().secret_for(|_| vec!["hunter2".to_owned()]), server.url("/"));
        assert!(undelivered.retry);
        assert_eq!(undelivered.error, "callbacks.secret_for: must be `whsec_` and then 24 to 64 bytes in base64");
        assert!(Courier::new(Callbacks::new().secret("hunter2"), Arc::new(Book::default())).is_err());
        server.is_untouched();
    }

    #[test]
    fn each_status_is_a_success_or_final_or_worth_another_attempt() {
        let server = Server::start(|_, connection| {
            let Some(request) = connection.request() else { return };
            let status = request.line.split(['/', ' ']).nth(2).and_then(|text| text.parse().ok()).expect("a status");
            connection.answer(status, &[("Retry-After", "7")], "hunter2");
        });
        let courier = courier(here());
        for status in [200, 201, 202, 204, 226, 299] {
            let delivered = courier.deliver(&message(server.url(&format!("/{status}"))), NOW);
            assert_eq!(delivered, Ok(Delivered { status }));
        }
        let last = [408, 429, 500, 501, 502, 503, 504, 507, 599].map(|status| (status, true));
        let others = [300, 304, 305, 400, 401, 403, 404, 405, 409, 410, 413, 418, 422, 425, 451, 499, 600, 999];
        for (status, retry) in others.map(|status| (status, false)).into_iter().chain(last) {
            let undelivered = courier.deliver(&message(server.url(&format!("/{status}"))), NOW).expect_err("a failure");
            assert_eq!((undelivered.status, undelivered.retry), (Some(status), retry), "{undelivered:?}");
            let wait = matches!(status, 429 | 503).then_some(Duration::from_secs(7));
            assert_eq!(undelivered.retry_after, wait, "{status}");
            assert!(undelivered.error.starts_with(&format!("the receiver answered {status}")), "{undelivered:?}");
            assert!(!undelivered.error.contains("hunter2"), "what the receiver wrote is not kept");
        }
    }

    #[test]
    fn an_attempt_after_a_failed_one_has_the_same_id_and_a_new_time() {
        let server =
            Server::start(|number, connection| connection.reply(if number == 0 { 500 } else { 200 }, &[], "text"));
        let courier = courier(here().secret(format!("whsec_{KEY}")));
        let sent = message(server.url("/"));
        assert_eq!(courier.deliver(&sent, NOW).map_err(|undelivered| undelivered.retry), Err(true));
        let later = NOW.saturating_add(Duration::from_secs(5));
        assert_eq!(courier.deliver(&sent, later), Ok(Delivered { status: 200 }));
        let (first, second) = (server.next(), server.next());
        assert_eq!(first.header("webhook-id"), second.header("webhook-id"));
        assert_eq!(second.header("webhook-timestamp"), Some("1790000005"));
        assert!(is_signed_with(&first, KEY) && is_signed_with(&second, KEY));
        assert_ne!(first.header("webhook-signature"), second.header("webhook-signature"));
    }

    #[test]
    fn redirects_are_final_and_not_followed() {
        let trap = Server::answering(200);
        let elsewhere = trap.url("/trap");
        let server = Server::start(move |number, connection| {
            let status = [301, 302, 303, 307, 308][number];
            connection.reply(status, &[("Location", &elsewhere)], "moved");
        });
        let courier = courier(here());
        for status in [301, 302, 303, 307, 308] {
            let undelivered = courier.deliver(&message(server.url("/")), NOW).expect_err("a redirect");
            assert_eq!((undelivered.status, undelivered.retry), (Some(status), false));
            let text = format!("the receiver answered {status}, and redirects are not followed");
            assert_eq!(undelivered.error, text);
        }
        assert_eq!(server.connections(), 5);
        trap.is_untouched();
    }

    #[test]
    fn a_closed_port_is_tried_again() {
        let undelivered = unanswered(here(), format!("http://{CLOSED_PORT}/"));
        assert_eq!((&*undelivered.error, undelivered.retry), ("the connection was refused", true));
    }

    #[test]
    fn a_receiver_who_says_nothing_has_its_time_and_no_more() {
        for scheme in ["http", "https"] {
            for reads in [true, false] {
                let server = Server::start(move |_, connection| {
                    if reads {
                        connection.hang();
                    } else {
                        connection.pause(LONG);
                    }
                });
                let url = format!("{scheme}://{}/", server.address);
                let undelivered = unanswered(here().timeout(SHORT), url);
                assert_eq!((&*undelivered.error, undelivered.retry), ("timed out after 200ms", true));
            }
        }
    }

    /// Each of these is slow for much longer than a delivery may take, and would be a success in the end.
    #[test]
    fn dripping_does_not_hold_a_courier() {
        let slow_head = |connection: &mut Connection| {
            connection.request();
            for byte in answer(200, &[("X-Padding", &"x".repeat(200))], "").bytes() {
                if !connection.pause(STEP) || !connection.send(&[byte]) {
                    return;
                }
            }
        };
        let slow_continues = |connection: &mut Connection| {
            connection.request();
            for _ in 0..200 {
                if !connection.pause(STEP) || !connection.send(b"HTTP/1.1 100 Continue\r\n\r\n") {
                    return;
                }
            }
            connection.answer(200, &[], "");
        };
        let slow_reader = |connection: &mut Connection| {
            for _ in 0..200 {
                if !connection.pause(STEP) || connection.stream.read(&mut [0; 4096]).is_err() {
                    return;
                }
            }
            connection.reply(200, &[], "");
        };
        let endless_head = |connection: &mut Connection| {
            connection.request();
            connection.send(b"HTTP/1.1 200 OK\r\nX-Padding: ");
            connection.drip(b"x", STEP);
        };
        let receivers: [Serve; 4] = [slow_head, slow_continues, slow_reader, endless_head];
        for (number, receiver) in receivers.into_iter().enumerate() {
            let server = Server::start(move |_, connection| receiver(connection));
            let mut sent = message(server.url("/"));
            // More than a connection holds that nobody reads from.
            sent.body = vec![b'x'; if number == 2 { 64 << 20 } else { 100 }];
            let undelivered = courier(here().timeout(SHORT)).deliver(&sent, NOW).expect_err("no delivery");
            assert_eq!((undelivered.status, &*undelivered.error), (None, "timed out after 200ms"), "receiver {number}");
            assert!(undelivered.retry);
        }
    }

    #[test]
    fn a_body_that_never_ends_does_not_undo_a_success_nor_hold_a_courier() {
        let (said, says) = bounded(2);
        let server = Server::start(move |number, connection| {
            connection.request();
            let body_was_taken = if number == 0 {
                // So slow that it would take seconds, though it is short.
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n");
                (0..300).all(|_| connection.pause(STEP) && connection.send(b"x"))
            } else {
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000000000000000\r\n\r\n");
                while connection.send(&[b'x'; 64 << 10]) {}
                false
            };
            let _ = said.send(body_was_taken);
        });
        let courier = courier(here());
        for _ in 0..2 {
            assert_eq!(courier.deliver(&message(server.url("/")), NOW), Ok(Delivered { status: 200 }));
            assert!(!says.recv_timeout(LONG).expect("a server that sees its client leave"));
        }
    }

    #[test]
    fn a_connection_that_breaks_is_tried_again() {
        let breaks: [(Serve, &str); 4] = [
            // What was sent and not read makes a reset.
            (|connection| drop(connection.stream.read(&mut [0])), "the connection broke"),
            (
                |connection| {
                    let _ = connection.stream.read(&mut [0]);
                    connection.send(b"HTTP/1.1 200 O");
                },
                "the connection broke",
            ),
            (|connection| drop(connection.request()), "the connection was closed before the answer"),
            (
                |connection| {
                    connection.request();
                    connection.send(b"HTTP/1.1 200 OK\r\nContent-Le");
                },
                "the connection was closed before the answer",
            ),
        ];
        for (number, (serve, text)) in breaks.into_iter().enumerate() {
            let server = Server::start(move |_, connection| serve(connection));
            let undelivered = unanswered(here(), server.url("/"));
            assert_eq!((&*undelivered.error, undelivered.retry), (text, true), "break {number}");
        }
    }

    #[test]
    fn what_is_not_http_is_an_error_that_repeats_nothing_of_it() {
        let long = "x".repeat(MAX_HEAD_BYTES);
        let garbage = [
            "SSH-2.0-hunter2\r\n".to_owned(),
            "220 hunter2 ESMTP\r\n".to_owned(),
            "hunter2\r\n\r\n".to_owned(),
            "\0\u{1}\u{2}\u{3}hunter2\r\n\r\n".to_owned(),
            "HTTP/9.9 200 OK\r\n\r\n".to_owned(),
            "HTTP/1.1 hunter2 OK\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nhunter2\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nhunter\u{1}2: x\r\n\r\n".to_owned(),
            format!("HTTP/1.1 200 OK\r\nX-Long: {long}\r\n\r\n"),
            format!("HTTP/1.1 200 OK\r\n{}\r\n", "hunter2: x\r\n".repeat(1000)),
        ];
        for text in garbage {
            let sent = text.clone();
            let server = Server::start(move |_, connection| {
                connection.request();
                connection.send(sent.as_bytes());
                connection.hang();
            });
            let undelivered = unanswered(here(), server.url("/"));
            let begin = &text[..text.len().min(40)];
            assert_eq!((&*undelivered.error, undelivered.retry), ("the answer is not valid HTTP", true), "{begin:?}");
        }
    }

    #[test]
    fn a_receiver_who_asks_us_to_wait_is_heard() {
        let server = Server::start(|number, connection| {
            let wait = ["30", "Mon, 21 Sep 2026 14:14:20 GMT"][number];
            connection.reply(if number == 0 { 429 } else { 503 }, &[("Retry-After", wait)], "later");
        });
        let courier = courier(here());
        let ask = || courier.deliver(&message(server.url("/")), Timestamp::from_micros(1_790_000_000_000_000));
        let expected = |status: u16, secs| Undelivered {
            status: Some(status),
            error: format!("the receiver answered {status}"),
            retry: true,
            retry_after: Some(Duration::from_secs(secs)),
        };
        assert_eq!(ask(), Err(expected(429, 30)));
        assert_eq!(ask(), Err(expected(503, 60)));
    }

    #[test]
    fn a_private_address_is_refused_in_every_form() {
        let server = Server::answering(200);
        let port = server.address.port();
        let book = Book::default()
            .with("inside.example", &[&["127.0.0.1"]])
            .with("mapped.example", &[&["::ffff:127.0.0.1"]])
            .with("mixed.example", &[&["192.0.2.0", "8.8.8.8", "127.0.0.1"]])
            .with("hidden.example", &[&["8.8.8.8", "2606:4700::1111", "127.0.0.1"]])
            .with("localhost", &[&["127.0.0.1", "::1"]])
            // It was public when somebody else looked.
            .with("changed.example", &[&["127.0.0.1"], &["8.8.8.8"]]);
        let courier = Courier::new(Callbacks::new().timeout(LONG), Arc::new(book)).expect("good settings");
        let hosts = [
            "127.0.0.1",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[::1]",
            "[64:ff9b::127.0.0.1]",
            "[2002:7f00:1::]",
            "0.0.0.0",
            "[::]",
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "169.254.169.254",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "100.64.0.1",
            "255.255.255.255",
            "localhost",
            "inside.example",
            "mapped.example",
            "mixed.example",
            "hidden.example",
            "changed.example",
        ];
        for host in hosts {
            let undelivered = courier.deliver(&message(format!("http://{host}:{port}/")), NOW).expect_err(host);
            let text = "the host has an address that is not public".to_owned();
            assert_eq!(
                undelivered,
                Undelivered { status: None, error: text, retry: false, retry_after: None },
                "{host}"
            );
        }
        for host in ["2130706433", "0x7f.1", "0x7f000001", "017700000001", "127.1", "127.0.0.1."] {
            let undelivered = courier.deliver(&message(format!("http://{host}:{port}/")), NOW).expect_err(host);
            assert!(!undelivered.retry && undelivered.error.starts_with("callback_url: must name its host"), "{host}");
        }
        server.is_untouched();
    }

    #[test]
    fn a_name_is_looked_up_once_and_its_addresses_are_tried_in_their_order() {
        let server = Server::answering(200);
        let port = server.address.port();
        let many: Vec<String> = (1..=40).map(|number| format!("127.0.0.{number}")).collect();
        let many: Vec<&str> = many.iter().map(|text| &**text).collect();
        let book = Book::default()
            .with("one.example", &[&["127.0.0.1"], &["192.0.2.1"]])
            // At the first nobody listens.
            .with("two.example", &[&["127.0.0.2", "127.0.0.1"]])
            .with("many.example.", &[&many])
            .with("none.example", &[&[]]);
        let book = Arc::new(book);
        let courier = Courier::new(here(), book.clone()).expect("good settings");
        for host in ["one.example", "two.example", "many.example."] {
            let delivered = courier.deliver(&message(format!("http://{host}:{port}/")), NOW);
            assert_eq!(delivered, Ok(Delivered { status: 200 }), "{host}");
            assert_eq!(server.next().header("host"), Some(&*format!("{host}:{port}")));
        }
        assert_eq!(book.asked(), ["one.example", "two.example", "many.example."]);
        for (host, error) in [
            ("none.example", "the host was not found"),
            ("unknown.example", "the host was not found"),
            ("slow.example", "timed out after 30s while looking up the host"),
        ] {
            let undelivered = courier.deliver(&message(format!("http://{host}/")), NOW).expect_err(host);
            assert_eq!((&*undelivered.error, undelivered.retry), (error, true));
        }
    }

    #[test]
    fn a_message_that_cannot_be_sent_is_final() {
        let undelivered = unanswered(here(), "ftp://example.com/");
        assert_eq!(undelivered.error, "callback_url: must begin with http:// or https://");
        assert!(!undelivered.retry);
        let bad = Message { id: "two\r\nlines".to_owned(), ..message(format!("http://{CLOSED_PORT}/")) };
        let undelivered = courier(here()).deliver(&bad, NOW).expect_err("no header");
        assert_eq!((&*undelivered.error, undelivered.retry), ("not a valid request", false));
    }

    #[test]
    fn proxies_of_the_environment_are_not_used() {
        let proxy = Server::answering(200);
        let this = std::env::current_exe().expect("the program of this test");
        let test = "builtin::callback::courier::tests::a_message_arrives_as_it_was_sent_and_signed";
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

    /// A server that speaks TLS, known by this name, and what its clients must trust.
    fn tls_server(name: &str) -> (Server, TlsConfig) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        let trusted = ureq::tls::Certificate::from_der(made.cert.der()).to_owned();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("a certificate with its key");
        let config = Arc::new(config);
        let server = Server::start(move |_, connection| {
            let tls = rustls::ServerConnection::new(config.clone()).expect("a server's part");
            let mut stream = rustls::StreamOwned::new(tls, connection.stream.try_clone().expect("a handle"));
            if let Some(request) = read_request(&mut stream) {
                connection.record(request);
                let _ = stream.write_all(answer(200, &[], "fine").as_bytes());
            }
        });
        let roots = ureq::tls::RootCerts::Specific(Arc::new(vec![trusted]));
        (server, TlsConfig::builder().root_certs(roots).build())
    }

    #[test]
    fn tls_knows_its_receiver_by_name() {
        let book =
            Arc::new(Book::default().with("good.example", &[&["127.0.0.1"]]).with("bad.example", &[&["127.0.0.1"]]));
        let (server, trust) = tls_server("good.example");
        let port = server.address.port();
        let callbacks = here().secret(format!("whsec_{KEY}"));
        let plain = Courier::new(callbacks.clone(), book.clone()).expect("good settings");
        let trusting = Courier::trusting(callbacks, book, trust).expect("good settings");

        let delivered = trusting.deliver(&message(format!("https://good.example:{port}/x")), NOW);
        assert_eq!(delivered, Ok(Delivered { status: 200 }));
        let came = server.next();
        assert_eq!((&*came.line, came.header("host")), ("POST /x HTTP/1.1", Some(&*format!("good.example:{port}"))));
        assert!(is_signed_with(&came, KEY));

        for (courier, host) in [(&trusting, "bad.example"), (&plain, "good.example")] {
            let undelivered = courier.deliver(&message(format!("https://{host}:{port}/")), NOW).expect_err(host);
            assert!(undelivered.retry && undelivered.status.is_none());
            assert!(undelivered.error.contains("certificate"), "{undelivered:?}");
        }
    }

    #[test]
    fn nothing_is_sent_in_the_clear_to_who_speaks_no_tls() {
        let (heard, hear) = bounded(1);
        let server = Server::start(move |_, connection| {
            let mut bytes = [0; 4096];
            let count = connection.stream.read(&mut bytes).unwrap_or(0);
            let _ = heard.send(bytes[..count].to_vec());
            connection.answer(200, &[], "");
        });
        let undelivered = unanswered(here().secret(format!("whsec_{KEY}")), format!("https://{}/", server.address));
        assert!(undelivered.retry, "{undelivered:?}");
        let heard = hear.recv_timeout(LONG).expect("a greeting");
        assert_eq!(heard.first(), Some(&0x16), "a handshake of TLS");
        assert!(!heard.windows(4).any(|window| window == b"POST" || window == b"job-"));
    }

    #[test]
    fn one_courier_serves_many_threads() {
        let server = Server::answering(200);
        let courier = courier(here());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let delivered = courier.deliver(&message(server.url("/")), NOW);
                        assert_eq!(delivered, Ok(Delivered { status: 200 }));
                    }
                });
            }
        });
        assert_eq!(server.connections(), 80);
    }
}
