//! The scene of LLM batches: an engine without threads, and the provider in the test to which its batches go.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use jobmill::testing::Harness;
use jobmill::{
    Batch, BatchItem, BatchItemRecord, BatchReply, BatchRequest, Batches, Context, EngineBuilder, Failure, JobId,
    NewBatch, RequestStatus, Status, Step,
};
use serde_json::json;

use crate::support::fake::{Creation, Fake};
use crate::support::{now, secs, sound};

/// A harness that knows its provider.
pub(crate) struct Scene {
    pub(crate) fake: Fake,
    harness: Harness,
}

impl Deref for Scene {
    type Target = Harness;

    fn deref(&self) -> &Harness {
        &self.harness
    }
}

impl DerefMut for Scene {
    fn deref_mut(&mut self) -> &mut Harness {
        &mut self.harness
    }
}

/// A batch that goes to the provider of the scene.
pub(crate) fn batch() -> NewBatch {
    NewBatch::new("fake")
}

pub(crate) fn item(n: usize) -> BatchItem {
    BatchItem::new(&json!({ "model": "m", "max_tokens": 5, "n": n })).key(format!("key-{n}"))
}

/// Items with the keys `key-0`, `key-1` and so on.
pub(crate) fn items(count: usize) -> impl Iterator<Item = BatchItem> {
    (0..count).map(item)
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::of(|builder| builder)
    }

    pub(crate) fn with(settings: Batches) -> Self {
        Self::of(move |builder| builder.batches(settings.clone()))
    }

    /// A scene whose replies go to this, if their batch has the step `step`.
    pub(crate) fn with_step(
        step: impl Fn(BatchReply, &Context) -> Result<Step, Failure> + Send + Sync + 'static,
    ) -> Self {
        let step = Arc::new(step);
        Self::of(move |builder| {
            let step = step.clone();
            builder.batch_step("step", move |reply, ctx| step(reply, ctx))
        })
    }

    /// A scene whose engine has more than its provider.
    pub(crate) fn of(describe: impl Fn(EngineBuilder) -> EngineBuilder + Send + 'static) -> Self {
        let fake = Fake::new("fake");
        let provider = fake.clone();
        let harness = Harness::new(move |builder| describe(builder.provider(provider.clone()))).expect("an engine");
        fake.inside().now = now(&harness);
        Self { fake, harness }
    }

    /// A scene with a second provider.
    pub(crate) fn beside(other: &Fake, describe: impl Fn(EngineBuilder) -> EngineBuilder + Send + 'static) -> Self {
        let provider = other.clone();
        let scene = Self::of(move |builder| describe(builder.provider(provider.clone())));
        other.inside().now = now(&scene);
        scene
    }

    #[track_caller]
    pub(crate) fn submit(&self, count: usize) -> JobId {
        self.submit_as(batch(), count)
    }

    #[track_caller]
    pub(crate) fn submit_as(&self, batch: NewBatch, count: usize) -> JobId {
        self.client().submit(batch, items(count)).expect("a batch").id()
    }

    /// A batch that is submitted and has gone as far as it goes without waiting.
    #[track_caller]
    pub(crate) fn send(&self, count: usize) -> JobId {
        self.send_as(batch(), count)
    }

    #[track_caller]
    pub(crate) fn send_as(&self, batch: NewBatch, count: usize) -> JobId {
        let id = self.submit_as(batch, count);
        self.drain().expect("a drain");
        id
    }

    /// A batch that its provider has made twice and that is known to be: the list lagged for longer than anybody waits.
    #[track_caller]
    pub(crate) fn send_twice(&self, count: usize) -> JobId {
        self.fake.inside().lags = true;
        self.fake.inside().creations.extend([Creation::AnswerLost, Creation::AnswerLost]);
        let id = self.submit(count);
        self.pass(420);
        assert_eq!(self.fake.count("create"), 2);
        self.fake.inside().lags = false;
        self.pass(120);
        id
    }

    /// Lets time pass, polling on the way.
    #[track_caller]
    pub(crate) fn pass(&self, seconds: u64) {
        self.pass_in_steps(seconds, 30);
        sound(self.client());
    }

    /// Lets hours pass, with a look every quarter of one.
    #[track_caller]
    pub(crate) fn pass_hours(&self, hours: u64) {
        self.pass_in_steps(hours * 3600, 900);
    }

    #[track_caller]
    fn pass_in_steps(&self, seconds: u64, step: u64) {
        let mut left = seconds;
        while left > 0 {
            let step = left.min(step);
            self.advance(secs(step));
            left -= step;
            self.drain().expect("a drain");
            self.engine().poll().expect("a poll");
            self.drain().expect("a drain");
        }
    }

    /// Polls at once, and does what follows from it.
    #[track_caller]
    pub(crate) fn poll_now(&self) {
        self.client().poll_now().expect("a wish to poll");
        self.engine().poll().expect("a poll");
        self.drain().expect("a drain");
    }

    /// The provider completes all that it has, and so much time passes.
    #[track_caller]
    pub(crate) fn complete(&self, seconds: u64) {
        self.fake.complete_all();
        self.pass(seconds);
    }

    #[track_caller]
    pub(crate) fn batch(&self, id: JobId) -> Batch {
        self.client().batch(id).expect("the batch")
    }

    #[track_caller]
    pub(crate) fn item(&self, id: JobId, key: &str) -> BatchItemRecord {
        self.client().batch_item(id, key).expect("the item")
    }

    #[track_caller]
    pub(crate) fn status(&self, id: JobId) -> Status {
        self.client().get(id).expect("the job").status
    }

    #[track_caller]
    pub(crate) fn requests(&self, id: JobId) -> Vec<BatchRequest> {
        self.client().batch_requests(id, &[], None, 100).expect("requests")
    }

    #[track_caller]
    pub(crate) fn request_statuses(&self, id: JobId) -> Vec<RequestStatus> {
        self.requests(id).iter().map(|request| request.status).collect()
    }

    /// How many items each batch at the provider holds, in the order of their creation.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        self.fake.inside().batches.iter().map(|held| held.requests.len()).collect()
    }
}
