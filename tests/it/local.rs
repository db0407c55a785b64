//! The provider that runs requests in this process: how many at a time, each once, what becomes of errors, panics and of
//! those who listen no more.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crossbeam_channel::{Receiver, bounded, unbounded};
use jobmill::provider::{
    Create, Finish, ItemError, ItemOutcome, Local, LocalError, LocalReply, Outgoing, OwnedOutgoing, Provider,
    RemoteBatch, RemoteEnd, RemoteState, ResultLine, Sought, Todo,
};
use jobmill::testing::Conformance;
use jobmill::{Timestamp, Usage};
use serde_json::value::RawValue;

use crate::support::PATIENCE;

/// Requests whose bodies are the numbers from 0, made as they are taken.
struct Numbers {
    count: usize,
    taken: Arc<AtomicUsize>,
    is_over: bool,
}

impl Numbers {
    fn new(count: usize) -> Self {
        Self { count, taken: Arc::default(), is_over: false }
    }
}

impl Todo for Numbers {
    fn next(&mut self) -> Option<OwnedOutgoing> {
        assert!(!self.is_over, "who was told that there are no more does not ask again");
        let number = self.taken.load(Ordering::SeqCst);
        self.is_over = number == self.count;
        (!self.is_over).then(|| {
            self.taken.fetch_add(1, Ordering::SeqCst);
            request(&number.to_string(), &number.to_string())
        })
    }
}

/// Requests with these bodies, named by their place.
struct Bodies(Vec<&'static str>, usize);

impl Todo for Bodies {
    fn next(&mut self) -> Option<OwnedOutgoing> {
        let body = self.0.get(self.1)?;
        self.1 += 1;
        Some(request(&(self.1 - 1).to_string(), body))
    }
}

fn request(custom_id: &str, body: &str) -> OwnedOutgoing {
    OwnedOutgoing {
        custom_id: custom_id.to_owned(),
        endpoint: String::new(),
        model: "m".to_owned(),
        body: RawValue::from_string(body.to_owned()).expect("JSON"),
    }
}

fn batch() -> RemoteBatch {
    RemoteBatch::new("b", RemoteState::Ended(RemoteEnd::Completed), "{}")
}

/// A result, for a test to look at.
#[derive(Clone, Debug, PartialEq)]
enum Came {
    Reply(String, Finish, Usage),
    Error(ItemError, String, String, Usage),
    Cancelled,
}

/// All results of these requests, by their name. Each comes once.
fn results(provider: &Local, mut todo: impl Todo) -> BTreeMap<usize, Came> {
    let mut came = BTreeMap::new();
    let mut sink = |line: ResultLine<'_>| {
        if matches!(line, ResultLine::Lull) {
            return ControlFlow::Continue(());
        }
        let ResultLine::Result { custom_id, outcome, raw } = line else { panic!("{line:?}") };
        let one = match outcome {
            ItemOutcome::Succeeded { reply, finish, usage } => {
                assert_eq!(raw, reply.get());
                Came::Reply(reply.get().to_owned(), finish, usage)
            }
            ItemOutcome::Errored { class, code, message, usage } => {
                assert!(raw.contains(&code), "{raw}");
                Came::Error(class, code, message, usage)
            }
            ItemOutcome::Cancelled => Came::Cancelled,
            other => panic!("{other:?}"),
        };
        assert_eq!(came.insert(custom_id.parse().expect("a number"), one), None, "{custom_id} came twice");
        ControlFlow::Continue(())
    };
    provider.results(&batch(), &mut todo, &mut sink).expect("results");
    came
}

fn number(request: &Outgoing<'_>) -> usize {
    request.parse().expect("a number")
}

fn reply(value: &str) -> Came {
    Came::Reply(value.to_owned(), Finish::Stop, Usage::default())
}

fn error(class: ItemError, code: &str, message: &str) -> Came {
    Came::Error(class, code.to_owned(), message.to_owned(), Usage::default())
}

/// A gate that holds who comes until it is opened.
struct Gate {
    came: crossbeam_channel::Sender<()>,
    arrivals: Receiver<()>,
    open: Mutex<Option<crossbeam_channel::Sender<()>>>,
    opened: Receiver<()>,
}

impl Gate {
    fn new() -> Arc<Self> {
        let (came, arrivals) = unbounded();
        let (open, opened) = bounded(0);
        Arc::new(Self { came, arrivals, open: Mutex::new(Some(open)), opened })
    }

    fn pass(&self) {
        self.came.send(()).expect("a receiver");
        assert!(self.opened.recv_timeout(PATIENCE).is_err_and(|error| error.is_disconnected()), "the gate is opened");
    }

    #[track_caller]
    fn await_arrivals(&self, count: usize) {
        for _ in 0..count {
            self.arrivals.recv_timeout(PATIENCE).expect("somebody who comes");
        }
    }

    fn open(&self) {
        self.open.lock().expect("no panic").take();
    }
}

#[test]
fn each_request_is_run_once_and_its_result_bears_its_name() {
    let runs: Arc<Vec<AtomicUsize>> = Arc::new((0..2000).map(|_| AtomicUsize::new(0)).collect());
    let counted = runs.clone();
    let provider = Local::function("local", move |request| {
        let number = number(request);
        assert_eq!((request.custom_id, request.model), (number.to_string().as_str(), "m"));
        counted[number].fetch_add(1, Ordering::SeqCst);
        Ok(number * 2)
    })
    .concurrency(7);
    let came = results(&provider, Numbers::new(2000));
    assert_eq!(came, (0..2000).map(|number| (number, reply(&(number * 2).to_string()))).collect());
    assert!(runs.iter().all(|runs| runs.load(Ordering::SeqCst) == 1));
}

#[test]
fn as_many_run_at_a_time_as_are_allowed_and_no_more_are_taken() {
    let gate = Gate::new();
    let passing = gate.clone();
    let provider = Local::function("local", move |request| {
        passing.pass();
        Ok(number(request))
    })
    .concurrency(5);
    let todo = Numbers::new(23);
    let taken = todo.taken.clone();
    thread::scope(|scope| {
        let came = scope.spawn(|| results(&provider, todo));
        gate.await_arrivals(5);
        assert_eq!(taken.load(Ordering::SeqCst), 5);
        gate.open();
        assert_eq!(came.join().expect("no panic").len(), 23);
    });
}

#[test]
fn never_more_run_at_a_time_than_are_allowed_over_all_batches() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, top) = (running.clone(), most.clone());
    let provider = Local::function("local", move |request| {
        top.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::yield_now();
        now.fetch_sub(1, Ordering::SeqCst);
        Ok(number(request))
    })
    .concurrency(3);
    thread::scope(|scope| {
        let batches: Vec<_> = (0..3).map(|_| scope.spawn(|| results(&provider, Numbers::new(500)))).collect();
        for batch in batches {
            assert_eq!(batch.join().expect("no panic").len(), 500);
        }
    });
    assert!((1..=3).contains(&most.load(Ordering::SeqCst)), "{most:?}");
}

#[test]
fn a_batch_without_end_leaves_slots_to_another() {
    struct Endless(Arc<AtomicBool>, usize);
    impl Todo for Endless {
        fn next(&mut self) -> Option<OwnedOutgoing> {
            self.1 += 1;
            assert!(self.1 < 5_000_000, "the other has had its turn long since");
            (!self.0.load(Ordering::SeqCst)).then(|| request("0", "0"))
        }
    }
    let provider = Local::function("local", |request| Ok(number(request))).concurrency(1);
    let enough = Arc::new(AtomicBool::new(false));
    let (tell, begun) = bounded(1);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut sink = |_: ResultLine<'_>| {
                let _ = tell.try_send(());
                ControlFlow::Continue(())
            };
            provider.results(&batch(), &mut Endless(enough.clone(), 0), &mut sink).expect("results");
        });
        begun.recv_timeout(PATIENCE).expect("a result");
        assert_eq!(results(&provider, Numbers::new(50)).len(), 50);
        enough.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_slow_request_holds_up_no_other() {
    let gate = Gate::new();
    let passing = gate.clone();
    let provider = Local::function("local", move |request| {
        let number = number(request);
        if number == 0 {
            passing.pass();
        }
        Ok(number)
    })
    .concurrency(2);
    let mut order = Vec::new();
    let mut sink = |line: ResultLine<'_>| {
        if matches!(line, ResultLine::Lull) {
            return ControlFlow::Continue(());
        }
        let ResultLine::Result { custom_id, .. } = line else { panic!("{line:?}") };
        order.push(custom_id.to_owned());
        if order.len() == 99 {
            gate.open();
        }
        ControlFlow::Continue(())
    };
    provider.results(&batch(), &mut Numbers::new(100), &mut sink).expect("results");
    assert_eq!(order.len(), 100);
    assert_eq!(order.last().map(String::as_str), Some("0"));
}

#[test]
fn nothing_is_begun_when_no_more_results_are_wanted() {
    let provider = Local::function("local", |request| Ok(number(request))).concurrency(3);
    let mut todo = Numbers::new(10_000);
    let mut handed = 0;
    let mut sink = |line: ResultLine<'_>| {
        handed += usize::from(!matches!(line, ResultLine::Lull));
        if handed < 10 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    provider.results(&batch(), &mut todo, &mut sink).expect("no error");
    assert_eq!(handed, 10, "a sink that broke is not called again");
    // Those that were being run, and those that waited to be handed in.
    let taken = todo.taken.load(Ordering::SeqCst);
    assert!((10..=10 + 2 * 3 + 3).contains(&taken), "{taken}");
}

#[test]
fn requests_that_run_when_no_more_are_wanted_come_to_their_end() {
    let gate = Gate::new();
    let ended = Arc::new(AtomicUsize::new(0));
    let (passing, counted) = (gate.clone(), ended.clone());
    let provider = Local::function("local", move |request| {
        let number = number(request);
        if number > 0 {
            passing.pass();
        }
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(number)
    })
    .concurrency(4);
    let mut todo = Numbers::new(100);
    let mut sink = |_: ResultLine<'_>| {
        gate.await_arrivals(4);
        gate.open();
        ControlFlow::Break(())
    };
    provider.results(&batch(), &mut todo, &mut sink).expect("no error");
    assert_eq!(ended.load(Ordering::SeqCst), todo.taken.load(Ordering::SeqCst));
}

#[test]
fn a_sink_that_panics_ends_the_call_and_leaves_the_provider_usable() {
    let provider = Local::function("local", |request| Ok(number(request))).concurrency(2);
    let mut todo = Numbers::new(10_000);
    let call = AssertUnwindSafe(|| provider.results(&batch(), &mut todo, &mut |_| panic!("the sink")));
    let panic = catch_unwind(call).expect_err("a panic");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the sink"));
    assert!(todo.taken.load(Ordering::SeqCst) < 100);
    assert_eq!(results(&provider, Numbers::new(10)).len(), 10);
}

#[test]
fn requests_that_cannot_be_had_end_the_call_by_their_panic() {
    struct Broken;
    impl Todo for Broken {
        fn next(&mut self) -> Option<OwnedOutgoing> {
            panic!("no request can be read")
        }
    }
    let provider = Local::function("local", |request| Ok(number(request))).concurrency(4);
    let call = AssertUnwindSafe(|| provider.results(&batch(), &mut Broken, &mut |_| ControlFlow::Continue(())));
    assert!(catch_unwind(call).is_err());
    assert_eq!(results(&provider, Numbers::new(10)).len(), 10, "the slot came back");
}

#[test]
fn a_panic_is_the_result_of_its_request_alone() {
    let provider = Local::function("local", |request| {
        match number(request) {
            1 => panic!("one is {}", "odd"),
            2 => panic!("plain"),
            3 => std::panic::panic_any(3),
            _ => {}
        }
        Ok("fine")
    })
    .concurrency(2);
    let came = results(&provider, Numbers::new(6));
    assert_eq!(came[&0], reply("\"fine\""));
    for (number, says) in [(1, ": one is odd"), (2, ": plain"), (3, ": without a message")] {
        let Came::Error(ItemError::Unknown, code, message, _) = &came[&number] else { panic!("{:?}", came[&number]) };
        assert_eq!(code, "panic");
        assert!(message.starts_with("panicked at tests/it/local.rs:") && message.ends_with(says), "{message}");
    }
    assert_eq!((came[&4].clone(), came[&5].clone()), (reply("\"fine\""), reply("\"fine\"")));
}

#[test]
fn an_error_is_what_the_function_says_it_is() {
    let provider = Local::function("local", |request| -> Result<u16, LocalError> {
        match request.parse::<&str>()? {
            "port" => Ok("70000".parse::<u16>()?),
            "busy" => Err(LocalError::new(ItemError::RateLimited, "later").usage(Usage::of(3, 0))),
            "mine" => Err(LocalError::invalid("never").code("mine")),
            _ => Ok(80),
        }
    });
    let came = results(&provider, Bodies(vec!["\"\"", "\"port\"", "\"busy\"", "\"mine\"", "{\"a\": 1}"], 0));
    assert_eq!(came[&0], reply("80"));
    let message = "number too large to fit in target type";
    assert_eq!(came[&1], error(ItemError::Unknown, "unknown", message));
    let busy = Came::Error(ItemError::RateLimited, "rate_limited".to_owned(), "later".to_owned(), Usage::of(3, 0));
    assert_eq!(came[&2], busy);
    assert_eq!(came[&3], error(ItemError::Invalid, "mine", "never"));
    let Came::Error(ItemError::Invalid, code, message, _) = &came[&4] else { panic!("{:?}", came[&4]) };
    assert_eq!(code, "invalid");
    assert!(message.starts_with("the body: invalid type: map"), "{message}");
}

#[test]
fn a_reply_may_say_why_it_ends_and_what_it_used_up() {
    let usage = Usage::of(5, 7).cached(Some(2), None);
    let provider = Local::function("local", move |_| Ok(LocalReply::of([1, 2]).finish(Finish::Length).usage(usage)));
    assert_eq!(results(&provider, Numbers::new(1))[&0], Came::Reply("[1,2]".to_owned(), Finish::Length, usage));
}

#[test]
fn a_reply_that_is_no_json_is_an_error_of_its_request() {
    let provider = Local::function("local", |_| Ok(BTreeMap::from([((1, 2), 3)])));
    let came = results(&provider, Numbers::new(1));
    assert_eq!(came[&0], error(ItemError::Invalid, "unserializable", "the reply is no JSON: key must be a string"));
}

#[test]
fn threads_bear_names_and_are_no_more_than_requests() {
    let names = Arc::new(Mutex::new(BTreeSet::new()));
    let noted = names.clone();
    let gate = Gate::new();
    let passing = gate.clone();
    let provider = Local::function("local", move |request| {
        noted.lock().expect("no panic").insert(thread::current().name().unwrap_or_default().to_owned());
        passing.pass();
        Ok(number(request))
    })
    .concurrency(64);
    thread::scope(|scope| {
        let came = scope.spawn(|| {
            let here = thread::current().id();
            let mut sink = |_: ResultLine<'_>| {
                assert_eq!(thread::current().id(), here, "results come on the calling thread");
                ControlFlow::Continue(())
            };
            provider.results(&batch(), &mut Numbers::new(3), &mut sink).expect("results");
        });
        gate.await_arrivals(3);
        gate.open();
        came.join().expect("no panic");
    });
    let expected = ["jobmill-local-1", "jobmill-local-2", "jobmill-local-3"].map(str::to_owned);
    assert_eq!(*names.lock().expect("no panic"), BTreeSet::from(expected));
}

#[test]
fn a_concurrency_out_of_bounds_is_the_nearest_within() {
    for (asked, bound) in [(0, 1), (1, 1), (usize::MAX, 1024)] {
        let provider = Local::function("local", |request| Ok(number(request))).concurrency(asked);
        assert!(format!("{provider:?}").contains(&format!("concurrency: {bound},")), "{provider:?}");
        assert_eq!(results(&provider, Numbers::new(5)).len(), 5);
    }
}

#[test]
fn of_a_hundred_thousand_requests_only_those_that_run_or_wait_for_the_sink_are_held() {
    const CONCURRENCY: usize = 4;
    let provider = Local::function("local", |request| Ok(number(request))).concurrency(CONCURRENCY);
    let mut todo = Numbers::new(100_000);
    let taken = todo.taken.clone();
    let (mut handed, mut most) = (0, 0);
    let mut sink = |line: ResultLine<'_>| {
        handed += usize::from(!matches!(line, ResultLine::Lull));
        most = most.max(taken.load(Ordering::SeqCst) - handed);
        ControlFlow::Continue(())
    };
    provider.results(&batch(), &mut todo, &mut sink).expect("results");
    assert_eq!(handed, 100_000);
    // As many wait in the channel, and each thread has one in hand.
    assert!(most <= 2 * CONCURRENCY, "{most}");
}

#[test]
fn nothing_to_do_is_done_at_once() {
    let provider = Local::function("local", |request| Ok(number(request)));
    assert_eq!(results(&provider, Numbers::new(0)), BTreeMap::new());
}

#[test]
fn a_batch_has_ended_as_soon_as_it_is_there_and_is_always_found() {
    let provider: Box<dyn Provider> = Box::new(Local::function("mine", |request| Ok(number(request))));
    assert_eq!(provider.account().provider, "mine");
    let limits = provider.limits();
    assert!(limits.local && limits.idempotent && !limits.uploads);
    struct Unread;
    impl std::io::Read for Unread {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            panic!("the body is not needed")
        }
    }
    let body = jobmill::provider::Body { length: 10, reader: &mut Unread };
    let created = provider.create(Create::with_body("key-1", "", 3, body)).expect("a batch");
    assert_eq!((created.id.as_str(), &created.state), ("key-1", &RemoteState::Ended(RemoteEnd::Completed)));
    assert_eq!(created.counts.total, Some(3));
    let sought = Sought::new("key-1", None, 3, Timestamp::EPOCH, Timestamp::EPOCH);
    let found = provider.find(&sought).expect("an answer");
    assert!(found.len() == 1 && found[0].certain);
    assert_eq!(found[0].batch, created);
    assert_eq!(provider.poll("key-1").expect("an answer").state, RemoteState::Ended(RemoteEnd::Completed));
    assert_eq!(provider.list(Timestamp::EPOCH).expect("an answer"), None);
}

#[test]
fn of_a_cancelled_batch_nothing_is_run() {
    let provider = Local::function("local", |_| -> Result<(), LocalError> { panic!("it was cancelled") });
    let cancelled = provider.cancel("b").expect("an answer");
    let mut came = Vec::new();
    let mut sink = |line: ResultLine<'_>| {
        let ResultLine::Result { custom_id, outcome: ItemOutcome::Cancelled, .. } = line else { panic!("{line:?}") };
        came.push(custom_id.to_owned());
        if came.len() < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    provider.results(&cancelled, &mut Numbers::new(5), &mut sink).expect("results");
    assert_eq!(came, ["0", "1", "2"]);
}

#[test]
fn an_item_of_the_body_is_one_line_and_the_same_each_time() {
    let provider = Local::function("local", |request| Ok(number(request)));
    let item = request("a", "{\r\n  \"text\": \"two\\nlines\"\n}");
    let encoded = || {
        let mut body = b"before\n".to_vec();
        provider.encode(&item.as_outgoing(), &mut body).expect("a line");
        String::from_utf8(body).expect("UTF-8")
    };
    assert_eq!(encoded(), "before\n{\"custom_id\":\"a\",\"body\":{    \"text\": \"two\\nlines\" }}");
    assert_eq!(encoded(), encoded());
}

#[test]
fn the_suite_for_providers_finds_nothing_wrong() {
    let provider = Local::function("local", |request| Ok(request.body.get().len()));
    assert_eq!(Conformance::new(&provider).broken(), Vec::<String>::new());
}
