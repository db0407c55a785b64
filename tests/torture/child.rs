//! A process that is going to be killed: it enqueues, cancels, retries and waits from several threads while its engine
//! runs the jobs, and writes down what was acknowledged.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{after, bounded};
use jobmill::rusqlite;
use jobmill::{
    Backoff, Client, Context, Durability, Engine, Enqueued, ErrorKind, Failure, JobId, JobType, NewJob, Outcome,
    Payload, Priority, Query, Retention, Status, StatusChange, Unique, Workers,
};
use serde::{Deserialize, Serialize};

use crate::journal::Journal;
use crate::rng::Rng;

pub(crate) const WORKERS: usize = 3;
const OPERATORS: u64 = 3;
/// More than this many waiting jobs are not added to, so that the last process has an end in sight.
const BACKLOG_MAX: u64 = 150;
const QUEUES: [&str; 3] = ["red", "green", "blue"];
const USERS: [&str; 3] = ["ann", "bob", "cem"];

/// How a job's handler behaves.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    Fine,
    /// Fails this often first.
    Flaky(u32),
    /// Snoozes this often first.
    Snoozing(u32),
    /// Takes so many milliseconds, and looks whether it should stop.
    Slow(u64),
    /// Takes so many milliseconds, whatever anybody asks.
    Deaf(u64),
    /// The same, with a timeout that may pass.
    Overdue(u64),
    CancelsItself,
    Fatal,
    Panics,
    /// Completes itself together with a row of the application's, in a turn.
    Effect,
    /// The same, in a transaction of its own.
    EffectOfItsOwn,
    /// Kills its process.
    Poison,
}

/// The payload of every job here.
#[derive(Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) how: How,
    /// Which call enqueued it together with how many others.
    pub(crate) group: Option<(u64, usize)>,
}

impl Payload for Work {
    const KIND: &'static str = "work";
}

/// How a child is to behave, as its command line tells.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    pub(crate) directory: PathBuf,
    pub(crate) seed: u64,
    /// Enqueue and operate for so many milliseconds and shut down; 0 goes on until somebody kills.
    pub(crate) life_ms: u64,
    /// Nothing new: run what there is, and end when all has ended.
    pub(crate) drain: bool,
}

impl Orders {
    pub(crate) fn arguments(&self) -> [String; 4] {
        [
            self.directory.to_str().expect("a directory in UTF-8").to_owned(),
            self.seed.to_string(),
            self.life_ms.to_string(),
            self.drain.to_string(),
        ]
    }

    pub(crate) fn parse(arguments: &[String]) -> Option<Self> {
        let [directory, seed, life_ms, drain] = arguments else { return None };
        Some(Self {
            directory: PathBuf::from(directory),
            seed: seed.parse().ok()?,
            life_ms: life_ms.parse().ok()?,
            drain: drain.parse().ok()?,
        })
    }
}

pub(crate) fn database(directory: &Path) -> PathBuf {
    directory.join("jobs.db")
}

pub(crate) fn journal(directory: &Path) -> PathBuf {
    directory.join("journal")
}

/// Lets time pass, for the handlers that are slow on purpose.
fn pass(time: Duration) {
    let _ = after(time).recv();
}

fn handle(work: Work, ctx: &Context) -> Result<Outcome<String>, Failure> {
    static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
    let journal = ctx.state::<Arc<Journal>>()?;
    let (id, pid) = (ctx.id(), std::process::id());
    let token = format!("{pid}-{}", ATTEMPTS.fetch_add(1, Ordering::Relaxed));
    let word = if matches!(work.how, How::Overdue(_)) { "overdue" } else { "work" };
    journal.line(&format!("begin {id} {} {pid} {token} {word}", ctx.attempt()));
    let end = |how: &str| journal.line(&format!("end {id} {token} {how}"));
    match work.how {
        How::Fine => {}
        How::Flaky(failures) if ctx.attempt() <= failures => {
            end("error");
            return Err(Failure::retry("not yet"));
        }
        How::Flaky(_) => {}
        How::Snoozing(times) => {
            let before: u32 = ctx.saved()?.unwrap_or(0);
            if before < times {
                if let Err(failure) = ctx.save(&(before + 1)) {
                    end("error");
                    return Err(failure);
                }
                end("snooze");
                return Ok(Outcome::Snooze(Duration::from_millis(2)));
            }
        }
        How::Slow(ms) => {
            for done in 0..ms {
                pass(Duration::from_millis(1));
                ctx.progress(done, Some(ms));
                ctx.log(format!("{done} of {ms}"));
                if let Err(failure) = ctx.check() {
                    end("stopped");
                    return Err(failure);
                }
            }
        }
        How::Deaf(ms) | How::Overdue(ms) => pass(Duration::from_millis(ms)),
        How::CancelsItself => {
            end("cancel");
            return Ok(Outcome::Cancel("of no use".to_owned()));
        }
        How::Fatal => {
            end("fatal");
            return Err(Failure::fatal("never"));
        }
        How::Panics => {
            end("error");
            panic!("as it was told to");
        }
        How::Effect => {
            let (job, token) = (id.to_string(), token.clone());
            let completed = ctx.complete(move |tx| -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
                tx.execute("INSERT INTO effect VALUES (?1, ?2)", (&job, &token))?;
                Ok(token)
            });
            end(if completed.is_ok() { "done" } else { "error" });
            completed.map_err(Failure::retry)?;
            return Ok(Outcome::Done("after the end, of no account".to_owned()));
        }
        How::EffectOfItsOwn => {
            let completed = complete_in_own_transaction(ctx, &token);
            end(if completed.is_ok() { "done" } else { "error" });
            completed?;
            return Ok(Outcome::Done("after the end, of no account".to_owned()));
        }
        How::Poison => {
            journal.line(&format!("dies {pid}"));
            std::process::abort();
        }
    }
    end("done");
    Ok(Outcome::Done(token))
}

fn complete_in_own_transaction(ctx: &Context, token: &str) -> Result<(), Failure> {
    let mut conn = ctx.client().connection()?;
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    tx.execute("INSERT INTO effect VALUES (?1, ?2)", (ctx.id().to_string(), token))?;
    ctx.complete_in(&tx, &token)?;
    tx.commit()?;
    Ok(())
}

/// Lives as ordered. Whatever should not happen panics, which ends the process with a code of its own.
pub(crate) fn run(orders: &Orders) {
    let mut rng = Rng::new(orders.seed);
    let journal = Arc::new(Journal::open(&journal(&orders.directory)));
    let durability = if rng.percent(30) { Durability::Full } else { Durability::Normal };
    let engine = Engine::builder(database(&orders.directory))
        .durability(durability)
        .workers(Workers::new(WORKERS))
        .queue("blue", 1)
        .backoff(Backoff::fixed(Duration::from_millis(3)))
        .retention(Retention::FOREVER)
        .timeout_grace(Duration::from_millis(10))
        .state(journal.clone())
        .handle(handle)
        .start()
        .expect("the engine starts");
    if orders.drain {
        return drain(&engine, &journal);
    }
    let stop = AtomicBool::new(false);
    // Newest first, so that what other processes enqueued is cancelled and retried here as well. Tracked ones go their way
    // undisturbed.
    let seen = engine.client().list(Query::new().tracked(false).limit(200)).expect("a page of jobs");
    let known = Mutex::new(seen.jobs.iter().map(|job| job.id).collect::<Vec<JobId>>());
    // A panic ends the whole process, or its other threads would go on for ever. Handlers may panic as they like.
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        if !std::thread::current().name().is_some_and(|name| name.starts_with("jobmill-worker")) {
            std::process::exit(101);
        }
    }));
    std::thread::scope(|scope| {
        for number in 0..OPERATORS {
            // One of them is a client of its own, as another program would be.
            let client = if number == 0 {
                Client::open_with(database(&orders.directory), durability).expect("a client")
            } else {
                engine.client().clone()
            };
            let mut operator = Operator { client, journal: &journal, known: &known, rng: Rng::new(rng.next()) };
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) && operator.act() {
                    let pause = operator.rng.within(0..=3000);
                    pass(Duration::from_micros(pause));
                }
            });
        }
        if orders.life_ms == 0 {
            // Somebody will kill us.
            let (_keep, never) = bounded::<()>(0);
            let _ = never.recv();
        }
        pass(Duration::from_millis(orders.life_ms));
        journal.line(&format!("leaves {}", std::process::id()));
        engine.shutdown(rng.millis(0..=30)).expect("the engine shuts down");
        stop.store(true, Ordering::SeqCst);
    });
}

fn drain(engine: &Engine, journal: &Journal) {
    let client = engine.client();
    for queue in QUEUES {
        client.resume(queue).expect("the queue resumes");
    }
    let open = [Status::Created, Status::Pending, Status::Running];
    // Nobody will end the tracked ones.
    let left = || Query::new().statuses(open).tracked(false).limit(1);
    while let Some(job) = client.list(left()).expect("a page").jobs.first() {
        match client.wait(job.id, Duration::from_secs(60)) {
            Ok(_) => {}
            Err(error) => panic!("{} does not end: {error}: {}", job.id, client.explain(job.id).expect("a reason")),
        }
    }
    journal.line(&format!("leaves {}", std::process::id()));
    engine.shutdown(Duration::from_secs(10)).expect("the engine shuts down");
}

/// Does one thing after another, as a thread of an application would.
struct Operator<'s> {
    client: Client,
    journal: &'s Journal,
    known: &'s Mutex<Vec<JobId>>,
    rng: Rng,
}

impl Operator<'_> {
    /// Does one thing at random. False if the engine has shut down.
    fn act(&mut self) -> bool {
        let waiting = self.client.stats().expect("the counts").kinds.get(Work::KIND).map_or(0, |counts| counts.pending);
        let acted = match self.rng.within(0..=99) {
            0..=69 if waiting > BACKLOG_MAX => Ok(()),
            0..=34 => self.enqueue_one(),
            35..=44 => self.enqueue_many(),
            45..=54 => self.enqueue_in_own_transaction(),
            55..=62 => self.enqueue_in_a_closure(),
            63..=69 => self.enqueue_unique(),
            70..=80 => self.cancel(),
            81..=82 => self.relocate(),
            83..=86 => self.track(),
            87..=89 => self.retry(),
            90..=96 => self.wait(),
            _ => self.pause(),
        };
        match acted {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::Shutdown => false,
            Err(error) => panic!("an operation failed: {error}"),
        }
    }

    fn work(&mut self, group: Option<(u64, usize)>) -> NewJob {
        let how = match self.rng.within(0..=999) {
            0..=399 => How::Fine,
            400..=499 => How::Flaky(self.rng.within(1..=3) as u32),
            500..=599 => How::Snoozing(self.rng.within(1..=2) as u32),
            600..=679 => How::Slow(self.rng.within(1..=30)),
            680..=749 => How::Deaf(self.rng.within(1..=20)),
            750..=799 => How::Overdue(self.rng.within(1..=40)),
            800..=829 => How::CancelsItself,
            830..=859 => How::Fatal,
            860..=889 => How::Panics,
            890..=939 => How::Effect,
            940..=996 => How::EffectOfItsOwn,
            _ => How::Poison,
        };
        let mut job = NewJob::of(&Work { how, group })
            .queue(*self.rng.pick(&QUEUES).expect("a queue"))
            .priority(*self.rng.pick(&Priority::ALL).expect("a priority"))
            .max_attempts(if how == How::Poison { 2 } else { self.rng.within(1..=4) as u32 });
        if matches!(how, How::Overdue(_)) {
            job = job.timeout(Duration::from_millis(10));
        }
        if self.rng.percent(20) {
            job = job.delay(self.rng.millis(1..=80));
        }
        if self.rng.percent(5) {
            job = job.expires_in(self.rng.millis(1..=50));
        }
        if self.rng.percent(50) {
            job = job.user(*self.rng.pick(&USERS).expect("a user"));
        }
        if self.rng.percent(20) {
            job = job.job_type(JobType::Run).background(true);
        }
        if self.rng.percent(20) {
            job = job.tags(["even", "odd"].into_iter().take(self.rng.within(1..=2) as usize));
        }
        job
    }

    fn acknowledge(&mut self, enqueued: &[Enqueued]) {
        for enqueued in enqueued.iter().filter(|enqueued| enqueued.is_new()) {
            self.journal.line(&format!("enqueued {}", enqueued.id()));
        }
        let mut known = self.known.lock().expect("nobody panics with the lock");
        known.extend(enqueued.iter().map(|enqueued| enqueued.id()));
        let old = known.len().saturating_sub(300);
        known.drain(..old);
    }

    fn enqueue_one(&mut self) -> jobmill::Result<()> {
        let job = self.work(None);
        let enqueued = self.client.enqueue(job)?;
        self.acknowledge(&[enqueued]);
        Ok(())
    }

    fn enqueue_many(&mut self) -> jobmill::Result<()> {
        let size = self.rng.within(2..=12) as usize;
        let group = self.rng.next() >> 12;
        let jobs: Vec<NewJob> = (0..size).map(|_| self.work(Some((group, size)))).collect();
        let enqueued = self.client.enqueue_many(jobs)?;
        self.acknowledge(&enqueued);
        Ok(())
    }

    fn enqueue_in_own_transaction(&mut self) -> jobmill::Result<()> {
        let mut conn = self.client.connection()?;
        let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).expect("a transaction");
        let group = self.rng.next() >> 12;
        let job = self.work(Some((group, 1)));
        let enqueued = self.client.enqueue_in(&tx, job)?;
        tx.execute("INSERT INTO companion VALUES (?1)", [enqueued.id().to_string()]).expect("a row");
        if self.rng.percent(20) {
            tx.rollback().expect("a rollback");
            return Ok(());
        }
        tx.commit().expect("a commit");
        self.acknowledge(&[enqueued]);
        Ok(())
    }

    fn enqueue_in_a_closure(&mut self) -> jobmill::Result<()> {
        let group = self.rng.next() >> 12;
        let job = self.work(Some((group, 1)));
        let fails = self.rng.percent(20);
        let written = self.client.write(move |tx| -> jobmill::Result<Option<Enqueued>> {
            let enqueued = tx.enqueue(job)?;
            tx.execute("INSERT INTO companion VALUES (?1)", [enqueued.id().to_string()]).expect("a row");
            // Any error of our own undoes all of it.
            if fails { Err("job-none".parse::<JobId>().expect_err("no id")) } else { Ok(Some(enqueued)) }
        });
        match written {
            Ok(enqueued) => self.acknowledge(&Vec::from_iter(enqueued)),
            Err(error) if error.kind() == ErrorKind::Invalid => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn enqueue_unique(&mut self) -> jobmill::Result<()> {
        let key = format!("key {}", self.rng.within(0..=9));
        let job = self.work(None).unique(Unique::key(key));
        let enqueued = self.client.enqueue(job)?;
        self.acknowledge(&[enqueued]);
        Ok(())
    }

    fn known(&mut self) -> Option<JobId> {
        let known = self.known.lock().expect("nobody panics with the lock");
        // The newest ones are most likely to be running.
        let from = if self.rng.percent(60) { known.len().saturating_sub(15) } else { 0 };
        self.rng.pick(&known[from..]).copied()
    }

    fn cancel(&mut self) -> jobmill::Result<()> {
        let Some(id) = self.known() else { return Ok(()) };
        self.journal.line(&format!("cancels {id}"));
        match self.client.cancel(id) {
            Ok(cancelled) => self.journal.line(&format!("cancelled {id} {cancelled:?}")),
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn retry(&mut self) -> jobmill::Result<()> {
        let Some(id) = self.known() else { return Ok(()) };
        self.journal.line(&format!("retries {id}"));
        match self.client.retry(id) {
            Err(error) if error.kind() != ErrorKind::Conflict => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives a waiting job another place.
    fn relocate(&mut self) -> jobmill::Result<()> {
        let Some(id) = self.known() else { return Ok(()) };
        let moved = if self.rng.percent(50) {
            self.client.set_queue(id, self.rng.pick(&QUEUES).expect("a queue"))
        } else {
            self.client.set_priority(id, *self.rng.pick(&Priority::ALL).expect("a priority"))
        };
        match moved {
            Err(error) if error.kind() != ErrorKind::Conflict => Err(error),
            _ => Ok(()),
        }
    }

    /// Records a job of which the work is done elsewhere, and takes it some steps further.
    fn track(&mut self) -> jobmill::Result<()> {
        let steps = Status::ALL;
        let mut at = self.rng.within(0..=6) as usize;
        let mut job = NewJob::tracked().status(steps[at]);
        if self.rng.percent(70) {
            job = job.user(*self.rng.pick(&USERS).expect("a user"));
        }
        let id = self.client.enqueue(job)?.id();
        self.journal.line(&format!("tracked {id} {}", steps[at]));
        while at < 3 && self.rng.percent(80) {
            at = self.rng.within(at as u64 + 1..=6) as usize;
            let change = self.client.update_status(id, steps[at])?;
            assert_eq!(change, StatusChange::Applied, "{id} to {}", steps[at]);
            self.journal.line(&format!("tracked {id} {}", steps[at]));
        }
        Ok(())
    }

    fn wait(&mut self) -> jobmill::Result<()> {
        let Some(id) = self.known() else { return Ok(()) };
        match self.client.wait(id, self.rng.millis(0..=30)) {
            Ok(job) => {
                let at = job.completed_at.map_or(0, |at| at.as_micros());
                let token = job.result::<String>().unwrap_or("-".to_owned());
                self.journal.line(&format!("ended {id} {} {at} {token}", job.status));
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Timeout => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn pause(&mut self) -> jobmill::Result<()> {
        let queue = *self.rng.pick(&QUEUES).expect("a queue");
        if self.rng.percent(70) {
            return self.client.resume(queue);
        }
        self.client.pause(queue)
    }
}

/// Enqueues one job that kills its process, among many that do not, and gives its id.
pub(crate) fn plant_poison(directory: &Path, max_attempts: u32, innocent: usize) -> JobId {
    let client = Client::open(database(directory)).expect("a client");
    let fine = |_| NewJob::of(&Work { how: How::Fine, group: None });
    client.enqueue_many((0..innocent / 2).map(fine)).expect("jobs");
    let poison = NewJob::of(&Work { how: How::Poison, group: None }).max_attempts(max_attempts);
    let poison = client.enqueue(poison).expect("a job").id();
    client.enqueue_many((0..innocent / 2).map(fine)).expect("jobs");
    poison
}
