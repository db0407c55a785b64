//! Jobs that bear names, keep a record of who ran, and fail if they are told to.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use jobmill::testing::Harness;
use jobmill::{Context, Durability, EngineBuilder, Failure, NewJob, Payload, WorkflowId};
use serde::{Deserialize, Serialize};

/// A job that gives its name in capitals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Do(pub(crate) String);

impl Payload for Do {
    const KIND: &'static str = "do";

    fn defaults(job: NewJob) -> NewJob {
        job.max_attempts(20)
    }
}

impl Do {
    pub(crate) fn job(name: impl Into<String>) -> NewJob {
        NewJob::of(&Self(name.into()))
    }
}

/// Who ran, in order, and who is to fail.
#[derive(Clone, Default)]
pub(crate) struct Record {
    ran: Arc<Mutex<Vec<String>>>,
    failing: Arc<Mutex<BTreeSet<String>>>,
}

impl Record {
    pub(crate) fn note(&self, name: impl Into<String>) {
        self.ran.lock().unwrap_or_else(PoisonError::into_inner).push(name.into());
    }

    /// Who ran since this was last asked.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.ran.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_failing<const N: usize>(&self, names: [&str; N]) {
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = names.map(str::to_owned).into();
    }

    fn fails(&self, name: &str) -> bool {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }
}

pub(crate) fn run(job: Do, ctx: &Context) -> Result<String, Failure> {
    let record = ctx.state::<Record>()?;
    record.note(&job.0);
    if record.fails(&job.0) { Err(Failure::fatal("no")) } else { Ok(job.0.to_uppercase()) }
}

/// A harness that runs them, with further handlers as the closure says.
pub(crate) fn harness_with(
    describe: impl Fn(EngineBuilder) -> EngineBuilder + Send + 'static,
) -> jobmill::Result<(Harness, Record)> {
    let record = Record::default();
    let state = record.clone();
    let t =
        Harness::new(move |builder| describe(builder.durability(Durability::Normal).handle(run).state(state.clone())))?;
    Ok((t, record))
}

pub(crate) fn harness() -> jobmill::Result<(Harness, Record)> {
    harness_with(|builder| builder)
}

/// Where the names of a workflow stand, in their order.
#[track_caller]
pub(crate) fn standing(t: &Harness, id: WorkflowId) -> String {
    let workflow = t.client().workflow(id).expect("a workflow");
    let nodes = workflow.nodes.iter().map(|node| {
        let status = node.status.map_or("gone".to_owned(), |status| status.to_string());
        format!("{} {status}", node.name)
    });
    format!("{}: {}", workflow.status, nodes.collect::<Vec<_>>().join(", "))
}
