//! LLM batches when things happen at the worst moment: between two steps, in another process, to the engine's own jobs.

use jobmill::provider::{CallClass, CallError, Fate, RemoteEnd};
use jobmill::testing::Harness;
use jobmill::{ErrorKind, ItemQuery, NewBatch, NewJob, Query, RequestStatus, Status, Step};
use serde_json::{Value, json};

use crate::batch::{BatchClock, item, items, pass, start, status, submit};
use crate::support::fake::{Creation, Fake, errored, succeeded};
use crate::support::{raw, secs, sound, tamper};

/// A result that comes late takes an item from under a planner that has read it already.
#[test]
fn a_planner_that_loses_an_item_to_another_leaves_the_counts_right() -> jobmill::Result<()> {
    let (fake, t) = start();
    let id = submit(&t, 4);
    let client = t.client().clone();
    fake.inside().on_encode = Some(Box::new(move || {
        tamper(
            &client,
            "UPDATE jobmill_batch_item SET state = 3 WHERE key = 'key-2';
             UPDATE jobmill_batch SET waiting = waiting - 1, completed = completed + 1;",
        );
    }));
    t.drain()?;
    sound(t.client());
    fake.complete_all();
    pass(&t, 600);
    assert_eq!((status(&t, id), t.client().batch(id)?.items.completed), (Status::Completed, 4));
    Ok(())
}

#[test]
fn a_cancelled_batch_that_was_never_created_comes_to_its_end() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().creations.push_back(Creation::Fails(Fate::Ambiguous, CallClass::Transport));
    let id = submit(&t, 2);
    t.drain()?;
    t.client().cancel(id)?;
    pass(&t, 1200);
    assert_eq!((status(&t, id), fake.count("create")), (Status::Cancelled, 1));
    Ok(())
}
