//! Weights: what heavy jobs take of an engine, and whom they keep waiting.

use std::time::Duration;

use jobmill::{Priority, Status};

use crate::limits::engine;
use crate::support::{Block, sound};

#[test]
fn heavy_jobs_share_the_capacity_and_are_not_overtaken_for_ever() -> jobmill::Result<()> {
    let (engine, keeper, _directory) = engine(|builder| builder.capacity(10));
    let client = engine.client();
    client.enqueue_many([Block::job("a6").weight(6), Block::job("b3").weight(3)])?;
    assert_eq!(keeper.next_of(2), ["a6", "b3"]);
    client.enqueue_many([Block::job("c8").weight(8), Block::job("d1")])?;
    // One would fit the light job, and still it waits for the heavy one before it.
    keeper.release();
    keeper.release();
    assert_eq!(keeper.next_of(2), ["c8", "d1"]);
    // One that is heavier than all runs alone.
    client.enqueue_many([Block::job("e99").weight(99), Block::job("f1")])?;
    keeper.release();
    keeper.release();
    assert_eq!(keeper.next(), "e99");
    assert!(keeper.begun.is_empty());
    keeper.release();
    assert_eq!(keeper.next(), "f1");
    engine.shutdown(Duration::ZERO)?;
    sound(engine.client());
    Ok(())
}

/// A heavy job of low priority kept light ones waiting that went before it, though there was room for them.
#[test]
fn a_heavy_job_keeps_nothing_waiting_that_goes_before_it() -> jobmill::Result<()> {
    let (engine, keeper, _directory) = engine(|builder| builder.capacity(10));
    let client = engine.client();
    client.enqueue(Block::job("a6").weight(6))?;
    keeper.next();
    let heavy = client.enqueue(Block::job("heavy").weight(8).priority(Priority::Low))?.id();
    let behind = client.enqueue(Block::job("behind").priority(Priority::Low))?.id();
    client.enqueue(Block::job("urgent").priority(Priority::Critical))?;
    assert_eq!(keeper.next(), "urgent");
    for id in [heavy, behind] {
        assert_eq!(client.get(id)?.status, Status::Pending);
    }
    keeper.release();
    keeper.release();
    assert_eq!(keeper.next_of(2), ["behind", "heavy"]);
    engine.shutdown(Duration::ZERO)?;
    sound(engine.client());
    Ok(())
}
