//! Batches that run in this process: what was begun counts, whatever stops the rest.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use jobmill::provider::{Local, LocalError, Outgoing};
use jobmill::testing::{Harness, ManualClock};
use jobmill::{Batch, BatchItem, Client, Engine, EngineState, JobId, NewBatch, Status};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::scene::items;
use crate::support::{PATIENCE, secs, sound, tamper, until};

/// How many requests run at a time.
const AT_ONCE: usize = 4;

/// An engine whose requests each wait to be let go.
struct Mill {
    engine: Engine,
    begun: Receiver<()>,
    let_go: Sender<()>,
    runs: Arc<AtomicUsize>,
    directory: TempDir,
}

impl Mill {
    fn start(directory: TempDir) -> jobmill::Result<Self> {
        let (begin, begun) = unbounded();
        let (let_go, may_go) = bounded(0);
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let run = move |request: &Outgoing<'_>| -> Result<Value, LocalError> {
            counted.fetch_add(1, Ordering::SeqCst);
            begin.send(()).ok();
            may_go.recv().ok();
            request.parse()
        };
        let engine = Engine::builder(directory.path().join("jobs.db"))
            .provider(Local::function("local", run).concurrency(AT_ONCE))
            .start()?;
        Ok(Self { engine, begun, let_go, runs, directory })
    }

    /// A batch of which as much runs as can.
    fn submit(&self, count: usize) -> jobmill::Result<JobId> {
        let id = self.engine.client().submit(NewBatch::new("local"), items(count))?.id();
        self.has_begun(AT_ONCE);
        Ok(id)
    }

    fn has_begun(&self, count: usize) {
        (0..count).for_each(|_| self.begun.recv_timeout(PATIENCE).expect("it runs"));
    }

    fn let_go(&self) {
        self.let_go.send_timeout((), PATIENCE).expect("it waits");
    }

    /// Lets so many go one after the other, each when the result of the one before it is in the file.
    fn let_go_and_see(&self, id: JobId, count: u64) {
        for ended in 1..=count {
            self.let_go();
            until("its result is written", || self.batch(id).items.completed == ended);
        }
    }

    fn batch(&self, id: JobId) -> Batch {
        self.engine.client().batch(id).expect("a batch")
    }
}

/// The results of all but the first that was written after the shutdown had begun were dropped, though they were paid.
#[test]
fn what_runs_when_the_engine_shuts_down_is_kept_and_runs_no_second_time() -> jobmill::Result<()> {
    let mill = Mill::start(tempfile::tempdir().expect("a directory"))?;
    let id = mill.submit(10)?;
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| mill.engine.shutdown(PATIENCE));
        assert!(mill.engine.monitor().wait_for(EngineState::ShuttingDown, PATIENCE));
        mill.let_go_and_see(id, 1);
        (1..AT_ONCE).for_each(|_| mill.let_go());
        ended.join().expect("no panic")
    })?;
    assert_eq!(mill.runs.load(Ordering::SeqCst), AT_ONCE, "nothing was begun");
    assert_eq!((mill.batch(id).items.completed, mill.batch(id).job.status), (4, Status::Running));
    sound(mill.engine.client());

    let Mill { directory, engine, .. } = mill;
    drop(engine);
    let mill = Mill::start(directory)?;
    drop(mill.let_go);
    assert_eq!(mill.engine.client().wait(id, PATIENCE)?.status, Status::Completed);
    assert_eq!(mill.runs.load(Ordering::SeqCst), 6);
    assert!(mill.engine.client().batch_results(id)?.all(|result| result.is_ok_and(|result| result.attempts == 1)));
    Ok(())
}

#[test]
fn what_runs_when_its_batch_is_cancelled_is_kept_and_little_more_is_begun() -> jobmill::Result<()> {
    let mill = Mill::start(tempfile::tempdir().expect("a directory"))?;
    let id = mill.submit(20)?;
    mill.engine.client().cancel(id)?;
    // The second is written when it is known that the batch is cancelled.
    mill.let_go_and_see(id, 2);
    let Mill { engine, let_go, runs, directory: _directory, .. } = mill;
    drop(let_go);
    assert_eq!(engine.client().wait(id, PATIENCE)?.status, Status::Cancelled);
    let (items, runs) = (engine.client().batch(id)?.items, runs.load(Ordering::SeqCst));
    assert_eq!((items.completed as usize, items.total()), (runs, 20), "{items:?}");
    // Others may have taken the places of these two before it was.
    assert!(runs <= AT_ONCE + 2, "{runs}");
    sound(engine.client());
    Ok(())
}

/// A cancellation was seen when a result was written, and others were begun until then, however long they took.
#[test]
fn nothing_is_begun_of_a_batch_a_moment_after_its_cancellation() -> jobmill::Result<()> {
    let place = Arc::new(OnceLock::<(Client, JobId, ManualClock)>::new());
    let runs = Arc::new(AtomicUsize::new(0));
    let (of_run, counted) = (place.clone(), runs.clone());
    let t = Harness::new(move |builder| {
        let (place, runs) = (of_run.clone(), counted.clone());
        let run = move |_: &Outgoing<'_>| {
            if runs.fetch_add(1, Ordering::SeqCst) == 50 {
                let (client, id, clock) = place.get().expect("it is submitted");
                client.cancel(*id).map_err(LocalError::invalid)?;
                clock.advance(Duration::from_millis(20));
            }
            Ok("done")
        };
        builder.provider(Local::function("local", run).concurrency(1))
    })?;
    let id = t.client().submit(NewBatch::new("local"), items(250))?.id();
    place.set((t.client().clone(), id, t.clock().clone())).ok();
    t.drain()?;
    let items = t.client().batch(id)?.items;
    assert_eq!((runs.load(Ordering::SeqCst), items.completed, items.cancelled), (51, 51, 199));
    sound(t.client());
    Ok(())
}

/// Submits a batch of 250, and does this with it when its requests are planned and none of them runs, for another batch has
/// the line of workers to itself. Tells how many of its requests ran by then.
fn before_it_runs(
    act: impl Fn(&Client, JobId) + Send + Sync + 'static,
) -> jobmill::Result<(Harness, JobId, Arc<AtomicUsize>)> {
    let (act, place) = (Arc::new(act), Arc::new(OnceLock::<(Client, JobId)>::new()));
    let runs = Arc::new(AtomicUsize::new(0));
    let (of_run, counted) = (place.clone(), runs.clone());
    let t = Harness::new(move |builder| {
        let (act, place, runs) = (act.clone(), of_run.clone(), counted.clone());
        let run = move |request: &Outgoing<'_>| {
            let body: Value = request.parse()?;
            if body["n"] == "first" {
                let (client, id) = place.get().expect("both are submitted");
                assert_eq!(client.batch(*id).map_err(LocalError::invalid)?.items.sent, 250);
                act(client, *id);
            } else {
                runs.fetch_add(1, Ordering::SeqCst);
            }
            Ok(body)
        };
        builder.provider(Local::function("local", run).concurrency(1))
    })?;
    let first = t.client().submit(NewBatch::new("local"), [BatchItem::new(&json!({ "n": "first" }))])?.id();
    let id = t.client().submit(NewBatch::new("local").max_attempts(1), items(250))?.id();
    place.set((t.client().clone(), id)).ok();
    t.drain()?;
    assert_eq!(t.client().batch(first)?.items.completed, 1);
    sound(t.client());
    Ok((t, id, runs))
}

#[test]
fn nothing_is_begun_of_a_batch_that_was_cancelled_before_it_ran() -> jobmill::Result<()> {
    let (t, id, runs) = before_it_runs(|client, id| assert!(client.cancel(id).is_ok()))?;
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.cancelled), (Status::Cancelled, 250));
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    Ok(())
}

/// What could not be read of a request counted as what its provider had given no result for, and failed.
#[test]
fn items_that_cannot_be_read_wait_until_they_can() -> jobmill::Result<()> {
    // The last items of the second chunk, of which the first 100 are read by then.
    let spoil = |client: &Client, _| {
        tamper(
            client,
            "UPDATE jobmill_batch_body SET body = CAST(x'ff' AS TEXT) WHERE item IN (SELECT item FROM jobmill_batch_body ORDER BY item DESC LIMIT 100)",
        )
    };
    let (t, id, runs) = before_it_runs(spoil)?;
    let items = t.client().batch(id)?.items;
    assert_eq!((items.completed, items.sent, runs.load(Ordering::SeqCst)), (100, 150, 100));

    tamper(
        t.client(),
        "UPDATE jobmill_batch_body SET body = '{}' WHERE item IN (SELECT item FROM jobmill_batch_body ORDER BY item DESC LIMIT 100)",
    );
    t.advance(secs(600));
    t.drain()?;
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed), (Status::Completed, 250));
    assert_eq!(runs.load(Ordering::SeqCst), 250, "each once");
    Ok(())
}
