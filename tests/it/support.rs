//! Payloads, handlers and helpers that several features share.

pub(crate) mod another;
pub(crate) mod fake;
pub(crate) mod http;
pub(crate) mod provider;
pub(crate) mod provider_server;
pub(crate) mod receiver;
pub(crate) mod said;
pub(crate) mod scene;
pub(crate) mod work;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use jobmill::testing::{Harness, ManualClock};
use jobmill::{Client, Clock, Context, Durability, EngineBuilder, ErrorKind, Failure, JobId, NewJob, Payload};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// How long a test waits for what must come. Nothing is measured by it: it turns a test that would hang into a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A job that gives back what it is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Echo(pub(crate) String);

impl Payload for Echo {
    const KIND: &'static str = "echo";
}

impl Echo {
    pub(crate) fn job(text: impl Into<String>) -> NewJob {
        NewJob::of(&Self(text.into()))
    }
}

pub(crate) fn echo(job: Echo, _: &Context) -> Result<String, Failure> {
    Ok(job.0)
}

/// A job of a second kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Other(pub(crate) u64);

impl Payload for Other {
    const KIND: &'static str = "other";
}

pub(crate) fn other(job: Other, _: &Context) -> Result<u64, Failure> {
    Ok(job.0)
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A small generator of numbers, the same for each run of the same seed (Knuth's MMIX).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// Each with the same chance, in their order.
    pub(crate) fn some<T: Clone>(&mut self, of: &[T]) -> Vec<T> {
        of.iter().filter(|_| self.below(2) == 0).cloned().collect()
    }
}

/// A harness that has no handlers.
pub(crate) fn idle() -> jobmill::Result<Harness> {
    Harness::new(|builder| builder.durability(Durability::Normal))
}

/// A file name in a directory that goes with the test.
pub(crate) fn file() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("jobs.db");
    (directory, path)
}

/// The clock of a harness, as its handlers have it by `ctx.state()`.
#[derive(Clone, Default)]
pub(crate) struct Hands(Arc<OnceLock<ManualClock>>);

impl Hands {
    /// Lets time pass while a handler runs.
    pub(crate) fn pass(&self, time: Duration) {
        self.clock().advance(time);
    }

    pub(crate) fn clock(&self) -> &ManualClock {
        self.0.get().expect("a harness with hands")
    }
}

/// A harness whose handlers can let time pass.
pub(crate) fn with_hands(
    describe: impl Fn(EngineBuilder) -> EngineBuilder + Send + 'static,
) -> jobmill::Result<Harness> {
    let hands = Hands::default();
    let state = hands.clone();
    let t = Harness::new(move |builder| describe(builder.state(state.clone())))?;
    hands.0.set(t.clock().clone()).expect("a new harness");
    Ok(t)
}

/// A job that says that it has begun and then waits until it is let go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Block(pub(crate) String);

impl Payload for Block {
    const KIND: &'static str = "block";
}

impl Block {
    pub(crate) fn job(name: impl Into<String>) -> NewJob {
        NewJob::of(&Self(name.into()))
    }
}

/// What handlers of `Block` pass through.
#[derive(Clone)]
pub(crate) struct Gate {
    begun: Sender<String>,
    go: Receiver<()>,
}

/// Who opens the gate.
pub(crate) struct Keeper {
    pub(crate) begun: Receiver<String>,
    go: Sender<()>,
}

pub(crate) fn gate() -> (Gate, Keeper) {
    let (begun_sender, begun) = unbounded();
    let (go_sender, go) = unbounded();
    (Gate { begun: begun_sender, go }, Keeper { begun, go: go_sender })
}

/// Says that it has begun, waits, and gives its name.
pub(crate) fn block(job: Block, ctx: &Context) -> Result<String, Failure> {
    let gate = ctx.state::<Gate>()?;
    // A keeper who has gone has left the gate open.
    let _ = gate.begun.send(job.0.clone());
    let _ = gate.go.recv();
    Ok(job.0)
}

impl Keeper {
    /// Waits until the next handler has begun.
    #[track_caller]
    pub(crate) fn next(&self) -> String {
        self.begun.recv_timeout(PATIENCE).expect("a handler that begins")
    }

    /// Waits until so many handlers have begun, and gives their names in alphabetical order.
    #[track_caller]
    pub(crate) fn next_of(&self, count: usize) -> Vec<String> {
        let mut names: Vec<String> = (0..count).map(|_| self.next()).collect();
        names.sort();
        names
    }

    /// Lets one handler go on.
    pub(crate) fn release(&self) {
        self.go.send(()).expect("a gate");
    }
}

/// Waits until something holds that nobody tells of, looking again and again.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let (ticks, patience) = (crossbeam_channel::tick(Duration::from_millis(2)), crossbeam_channel::after(PATIENCE));
    while !holds() {
        crossbeam_channel::select! {
            recv(ticks) -> _ => {}
            recv(patience) -> _ => panic!("it never came: {what}"),
        }
    }
}

/// Asserts that an error is of a kind and begins with these words.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: jobmill::Result<T>, kind: ErrorKind, begins: &str) {
    match result {
        Ok(value) => panic!("{value:?} came where {begins:?} was expected"),
        Err(error) => {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().starts_with(begins), "{error:?} does not begin with {begins:?}");
        }
    }
}

/// Asserts that the books of the file are right.
#[track_caller]
pub(crate) fn sound(client: &Client) {
    assert_eq!(client.verify().expect("a readable file"), Vec::<String>::new());
}

/// What one query of one value gives.
pub(crate) fn query<T: jobmill::rusqlite::types::FromSql>(client: &Client, sql: &str) -> T {
    let conn = client.connection().expect("a connection");
    conn.query_row(sql, [], |row| row.get(0)).expect(sql)
}

/// Writes to the file past the engine.
pub(crate) fn tamper(client: &Client, sql: &str) {
    client.connection().expect("a connection").execute_batch(sql).expect(sql);
}

/// The number of a job's row.
pub(crate) fn raw(id: JobId) -> i64 {
    let digits = id.to_string();
    let digits = digits.strip_prefix("job-").or(digits.strip_prefix("run-")).expect("the prefix of jobs or runs");
    digits.chars().fold(0, |value, digit| {
        value << 5 | "0123456789abcdefghjkmnpqrstvwxyz".find(digit).expect("a digit of base32") as i64
    })
}

/// Makes a pending job one that is recorded and not admitted, as a later release will do by its API.
pub(crate) fn unadmit(client: &Client, id: JobId) {
    let job = raw(id);
    tamper(
        client,
        &format!(
            "UPDATE jobmill_job SET state = 0 WHERE id = {job};
             UPDATE jobmill_lane SET created = created + 1, pending = pending - 1
             WHERE id = (SELECT lane FROM jobmill_job WHERE id = {job});"
        ),
    );
}

/// Takes a running job from its attempt, as the rescue of an engine that was thought dead would.
pub(crate) fn fence_off(client: &Client, id: JobId) {
    tamper(client, &format!("UPDATE jobmill_job SET claim = claim + 1 WHERE id = {}", raw(id)));
}

/// The time of a clock that a test may set, to compare with what is stored.
pub(crate) fn now(t: &Harness) -> jobmill::Timestamp {
    t.clock().now()
}
