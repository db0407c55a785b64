//! Callbacks to a local server: whether all arrive, how many at once, and what they cost the other jobs.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use jobmill::{Callbacks, Client, Durability, NewJob, Query, Status};

use crate::floor;
use crate::ours;
use crate::report::{DURABILITIES, Report, Target, median, now, rest, rounds};

const CALLBACKS: usize = 10_000;
/// How long the receiver takes to answer.
const LATENCY: Duration = Duration::from_millis(20);
/// How many are in flight: as many as an engine has by default, which take about a minute for all, and so many that it
/// takes ten seconds, which on a machine of few processors the other jobs feel.
const IN_FLIGHT: [(usize, Target); 2] = [(4, Target::AtLeast(0.9)), (20, Target::None)];
/// The queue of the deliveries.
const SYSTEM: &str = "system";
/// Twice as many as ought to come, so that more than those would be seen.
const THREADS: usize = 40;

/// What a receiver has seen.
#[derive(Default)]
struct Seen {
    ids: Mutex<HashSet<String>>,
    requests: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

/// A server that takes its time and answers everybody well.
struct Receiver {
    address: SocketAddr,
    seen: Arc<Seen>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (listener, seen, stopping) =
            (Arc::new(listener), Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let serve = |_| {
            let (listener, seen, stopping) = (listener.clone(), seen.clone(), stopping.clone());
            let body = move || {
                while let Ok((stream, _)) = listener.accept() {
                    if stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    seen.serve(stream);
                }
            };
            std::thread::Builder::new().name("receiver".to_owned()).spawn(body).expect("a thread")
        };
        let threads = (0..THREADS).map(serve).collect();
        Self { address, seen, stopping, threads }
    }
}

impl Seen {
    fn serve(&self, mut stream: TcpStream) {
        let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        let id = message_id(&mut stream);
        rest(LATENCY);
        // Who has the answer may send the next one at once.
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("a client who waits");
        self.requests.fetch_add(1, Ordering::SeqCst);
        self.ids.lock().expect("no panic").insert(id);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        for _ in &self.threads {
            drop(TcpStream::connect(self.address));
        }
        for thread in self.threads.drain(..) {
            thread.join().expect("a server that ends");
        }
    }
}

/// Reads a request and gives its id.
fn message_id(stream: &mut TcpStream) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer).expect("a request");
        assert!(count > 0, "a request that ends too early");
        text.push_str(std::str::from_utf8(&buffer[..count]).expect("ASCII"));
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name)).expect(name);
            line.split_once(": ").expect("a header").1
        };
        if body.len() == header("content-length").parse::<usize>().expect("a length") {
            return header("webhook-id").to_owned();
        }
    }
}

/// Threads that send the same requests by nothing but sockets, while they are let.
struct Bare {
    running: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Bare {
    fn start(address: SocketAddr, senders: usize) -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let send = |_| {
            let running = running.clone();
            let body = move || {
                while running.load(Ordering::SeqCst) {
                    let mut stream = TcpStream::connect(address).expect("a server");
                    let request = "POST / HTTP/1.1\r\nwebhook-id: none\r\ncontent-length: 2\r\n\r\n{}";
                    stream.write_all(request.as_bytes()).expect("a server");
                    stream.read_to_end(&mut Vec::new()).expect("an answer");
                }
            };
            std::thread::Builder::new().name("bare".to_owned()).spawn(body).expect("a thread")
        };
        let threads = (0..senders).map(send).collect();
        Self { running, threads }
    }

    fn stop(self) {
        self.running.store(false, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a sender that ends");
        }
    }
}

/// How long so many whole lives of other jobs take, in seconds.
fn life(client: &Client, count: usize) -> f64 {
    let began = now();
    ours::enqueue(client, count, 16);
    ours::wait_until_done_with(client, &Query::new().kinds(["nothing"]));
    began.elapsed().as_secs_f64()
}

/// What a round came to, in seconds: so many lives of other jobs alone, beside deliveries and beside bare requests, and
/// all deliveries.
#[derive(Default)]
struct Times {
    lives: usize,
    alone: f64,
    beside: f64,
    bare: f64,
    deliveries: f64,
}

/// Lets deliveries go for as long as some lives take on the same engine, and stops them for as many on another, in turn,
/// until all are delivered.
fn round(
    engine: &Client,
    alone: &Client,
    (receiver, other): (&Receiver, &Receiver),
    in_flight: usize,
    count: usize,
) -> Times {
    let mut times = Times::default();
    let told = NewJob::tracked().status(Status::Completed).callback_url(format!("http://{}/", receiver.address));
    engine.pause(SYSTEM).expect("a pause");
    for _ in 0..CALLBACKS / 1000 {
        engine.enqueue_many((0..1000).map(|_| told.clone())).expect("an enqueueing");
    }
    loop {
        let began = now();
        engine.resume(SYSTEM).expect("an end of the pause");
        let beside = life(engine, count);
        if engine.stats().expect("counts").queues[SYSTEM].pending == 0 {
            // Some of these had nothing beside them.
            ours::wait_until_done_with(engine, &Query::new());
            times.deliveries += began.elapsed().as_secs_f64();
            return times;
        }
        engine.pause(SYSTEM).expect("a pause");
        while engine.stats().expect("counts").queues[SYSTEM].running > 0 {
            rest(Duration::from_millis(1));
        }
        times.deliveries += began.elapsed().as_secs_f64();
        times.lives += count;
        times.beside += beside;
        times.alone += life(alone, count);
        let bare = Bare::start(other.address, in_flight);
        times.bare += life(alone, count);
        bare.stop();
    }
}

pub fn callbacks(report: &mut Report) {
    for (in_flight, target) in IN_FLIGHT {
        for (name, durability) in DURABILITIES {
            measure(report, in_flight, target, name, durability);
        }
    }
}

fn measure(report: &mut Report, in_flight: usize, target: Target, name: &str, durability: Durability) {
    let directory = floor::directory();
    let count = if name == "FULL" { 16_000 } else { 32_000 };
    let (mut alone, mut bare, mut seconds, mut most, mut repeats) = (Vec::new(), Vec::new(), Vec::new(), 0, 0);
    for _ in 0..rounds() {
        let (receiver, other) = (Receiver::start(), Receiver::start());
        let callbacks = Callbacks::new().allow_private_addresses().in_flight(in_flight);
        let (builder, _) = ours::builder(&floor::fresh(&directory, "callbacks"), durability, 4);
        let engine = builder.callbacks(callbacks).start().expect("an engine");
        let (builder, _) = ours::builder(&floor::fresh(&directory, "alone"), durability, 4);
        let baseline = builder.start().expect("an engine");
        let client = engine.client();
        let times = round(client, baseline.client(), (&receiver, &other), in_flight, count);
        let per_second = |seconds: f64| times.lives as f64 / seconds;
        alone.push((per_second(times.beside), per_second(times.alone)));
        bare.push((per_second(times.beside), per_second(times.bare)));
        seconds.push(times.deliveries);

        let delivered = client.stats().expect("counts").queues[SYSTEM].completed;
        let accepted = client.jobs(Query::new().tracked(true)).expect("jobs");
        let accepted = accepted.filter(|job| job.as_ref().expect("a job").callback_status_code == Some(200)).count();
        let distinct = receiver.seen.ids.lock().expect("no panic").len();
        assert_eq!((delivered, accepted, distinct), (CALLBACKS as u64, CALLBACKS, CALLBACKS));
        repeats += receiver.seen.requests.load(Ordering::SeqCst) - distinct;
        most = most.max(receiver.seen.most_at_once.load(Ordering::SeqCst));
    }
    let title = format!("{CALLBACKS} callbacks of {LATENCY:?}, {in_flight} in flight, {name}");
    report.value(&title, median(seconds.into_iter()), "s", Target::None);
    report.value("of these, repeats at the receiver", repeats as f64, "", Target::AtMost(0.0));
    report.value("of these, the most at once at the receiver", most as f64, "", Target::AtMost(in_flight as f64));
    report.ratio(&format!("whole life, 16 callers, beside them, {name}"), &alone, target);
    report.ratio("the same against lives beside bare requests", &bare, Target::None);
}
