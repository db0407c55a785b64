//! An HTTP server that behaves as badly as a test asks it to, and remembers what it was sent.
#![allow(dead_code, reason = "the tests in the library and those from outside each use a part")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

/// How long a test waits for what must come. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    /// Method, path and version.
    pub(crate) line: String,
    /// Names in lower case, in their order.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The value of a header that stands there once.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "{name} stands there twice");
        value
    }
}

/// One connection, in the hands of the function that serves it. It is closed when that returns.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    requests: Sender<Request>,
    stopped: Receiver<()>,
}

impl Connection {
    /// Reads a request and remembers it. None if the client leaves first.
    pub(crate) fn request(&mut self) -> Option<Request> {
        let request = read_request(&mut self.stream)?;
        self.record(request.clone());
        Some(request)
    }

    /// Remembers a request that was read by other means.
    pub(crate) fn record(&self, request: Request) {
        let _ = self.requests.send(request);
    }

    /// Reads a request and answers it.
    pub(crate) fn reply(&mut self, status: u16, headers: &[(&str, &str)], body: &str) {
        if self.request().is_some() {
            self.answer(status, headers, body);
        }
    }

    pub(crate) fn answer(&mut self, status: u16, headers: &[(&str, &str)], body: &str) {
        self.send(answer(status, headers, body).as_bytes());
    }

    /// Sends bytes, whatever they are. False if the client has left.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Lets time pass. False if the test is over.
    pub(crate) fn pause(&self, time: Duration) -> bool {
        self.stopped.recv_timeout(time).is_err_and(|error| error.is_timeout())
    }

    /// Sends nothing, until the client or the test ends.
    pub(crate) fn hang(&mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new());
    }

    /// Sends these bytes one by one with a pause before each, over and over, until the client or the test ends.
    pub(crate) fn drip(&mut self, bytes: &[u8], pause: Duration) {
        for byte in bytes.iter().cycle() {
            if !self.pause(pause) || !self.send(&[*byte]) {
                return;
            }
        }
    }
}

/// The text of an answer.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("HTTP/1.1 {status} Something\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text + "\r\n" + body
}

pub(crate) fn read_request(stream: &mut impl Read) -> Option<Request> {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        read.push(byte[0]);
    }
    let head = String::from_utf8(read).ok()?;
    let mut lines = head.trim_end().lines();
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some(Request { line, headers, body })
}

/// A server on a port of its own on the loopback interface, until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    requests: Receiver<Request>,
    connections: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
    /// A second handle of each connection that is served, to end it by.
    open: Arc<Mutex<HashMap<usize, TcpStream>>>,
    stopping: Arc<AtomicBool>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves each connection by this function, on a thread of its own. The number counts connections from 0.
    pub(crate) fn start(serve: impl Fn(usize, &mut Connection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (sender, requests) = unbounded();
        let (stop, stopped) = bounded(0);
        let connections = Arc::new(AtomicUsize::new(0));
        let most_at_once = Arc::new(AtomicUsize::new(0));
        let open = Arc::new(Mutex::new(HashMap::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let shared = (connections.clone(), most_at_once.clone(), open.clone(), stopping.clone());
        let accept = move || {
            let (connections, most_at_once, open, stopping) = shared;
            let serve = Arc::new(serve);
            let at_once = Arc::new(AtomicUsize::new(0));
            let mut threads = Vec::new();
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let number = connections.fetch_add(1, Ordering::SeqCst);
                let handle = stream.try_clone().expect("a second handle");
                open.lock().expect("connections").insert(number, handle);
                if stopping.load(Ordering::SeqCst) {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                most_at_once.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let mut connection = Connection { stream, requests: sender.clone(), stopped: stopped.clone() };
                let (serve, at_once, open) = (serve.clone(), at_once.clone(), open.clone());
                let body = move || {
                    serve(number, &mut connection);
                    at_once.fetch_sub(1, Ordering::SeqCst);
                    // Its last handle goes with the connection. What the client sent and nobody read makes that a reset.
                    open.lock().expect("connections").remove(&number);
                };
                threads.push(std::thread::Builder::new().spawn(body).expect("a thread"));
                threads.retain(|thread| !thread.is_finished());
            }
            drop(listener);
            for thread in threads {
                let _ = thread.join();
            }
        };
        let thread = std::thread::Builder::new().name("http-server".to_owned()).spawn(accept).expect("a thread");
        let (stop, thread) = (Some(stop), Some(thread));
        Self { address, requests, connections, most_at_once, open, stopping, stop, thread }
    }

    /// Answers each request with this status and an empty body.
    pub(crate) fn answering(status: u16) -> Self {
        Self::start(move |_, connection| connection.reply(status, &[], ""))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The next request that came, in the order of their ends.
    #[track_caller]
    pub(crate) fn next(&self) -> Request {
        self.requests.recv_timeout(PATIENCE).expect("a request that comes")
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Asserts that nobody has come so far. Who comes now is served after all who did.
    #[track_caller]
    pub(crate) fn is_untouched(&self) {
        let mut stream = TcpStream::connect(self.address).expect("a server");
        stream.write_all(b"MARK / HTTP/1.1\r\n\r\n").expect("a server");
        assert_eq!(self.next().line, "MARK / HTTP/1.1");
        assert_eq!(self.connections(), 1);
    }

    /// How many connections were served at once, at most.
    pub(crate) fn most_at_once(&self) -> usize {
        self.most_at_once.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.stop.take();
        for stream in self.open.lock().expect("connections").values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // It sees that it is to stop when somebody comes.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A port of the loopback interface at which nobody listens: that of a service which no system has any more.
pub(crate) const CLOSED_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
