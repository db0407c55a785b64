//! A durable job engine that a program links in: one SQLite file, a few threads, no server, no async runtime.
//!
//! An [`Engine`] runs typed jobs; a [`Client`] enqueues them, asks about them and operates on them. Start with the
//! example at [`Engine`]. From there:
//!
//! | what | where |
//! | --- | --- |
//! | a kind of jobs, and the options of one | [`Payload`], [`NewJob`], [`Unique`] |
//! | what a handler has, and how it ends | [`Context`], [`Outcome`], [`Failure`] |
//! | steps that are done once, whatever cuts a handler off | [`Context::step`] |
//! | schedules | [`Schedule`], [`EngineBuilder::schedule`], [`Client::schedule`] |
//! | jobs that wait for others | [`NewWorkflow`], [`Client::start_workflow`], [`NewJob::after`] |
//! | limits by key and by queue | [`Limit`], [`LimitUse`], [`Context::spent`], [`Context::throttled`] |
//! | lists, and what is done to all of a list | [`Query`], [`Client::list`], [`Client::select`] |
//! | dead letters | [`FailureReason`], [`Query::failed_by`] |
//! | why a job does not run | [`Client::explain`], [`Reason`] |
//! | how the engine does | [`Engine::health`], [`Monitor`], [`Client::metrics`], [`Client::subscribe`] |
//! | settings, from the environment too | [`EngineBuilder`], [`Setting`] |
//! | LLM batches | [`NewBatch`], [`Client::submit`], [`provider`] |
//! | moments | [`Timestamp`], [`SystemClock`] |
//!
//! What somebody should know of is told through the crate [`log`](https://docs.rs/log), whose logger the program chooses:
//! an error where somebody must act, a warning where the engine coped, its start and its stop as information.
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

mod builtin;
mod client;
mod clock;
mod desk;
mod engine;
mod error;
mod events;
mod handler;
mod liveness;
mod metrics;
mod model;
mod panics;
pub mod provider;
mod ring;
mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use builtin::batch::{Batches, WhenUnknown};
pub use builtin::callback::Callbacks;
pub use client::batch::{BatchResults, ItemPage, ItemQuery};
pub use client::jobs::Jobs;
pub use client::selection::{Bulk, Selection};
pub use client::{Client, Transaction};
pub use clock::{Clock, SystemClock};
/// The release of `crossbeam-channel` whose receivers this crate gives.
pub use crossbeam_channel;
pub use engine::builder::EngineBuilder;
pub use engine::monitor::Monitor;
pub use engine::settings::Setting;
pub use engine::{Engine, Shutdown};
pub use error::{Error, ErrorKind, Result};
pub use handler::context::Context;
pub use handler::flow::{Input, Inputs};
pub use handler::{Failure, Handler, IntoOutcome, Outcome};
pub use model::alert::{Alert, AlertState};
pub use model::attempt::{Attempt, AttemptOutcome, LogLine};
pub use model::batch::{
    Batch, BatchItemRecord, BatchReply, BatchRequest, ItemCounts, ItemResult, PollCycle, RequestStatus, Spent, Step,
    StepStatus,
};
pub use model::cursor::Order;
pub use model::delivery::CallbackDelivery;
pub use model::event::{Cause, Change, Event, WorkflowChange};
pub use model::explain::{Explanation, Reason};
pub use model::failure_reason::FailureReason;
pub use model::health::{
    DatabaseHealth, DispatcherHealth, EngineState, Health, PollerHealth, Problem, QueueHealth, SchedulesHealth,
    ThreadState, WorkersHealth,
};
pub use model::histogram::Histogram;
pub use model::history::{Action, HistoryEntry};
pub use model::id::{BatchItemId, BatchRequestId, JobId, ScheduleId, WorkflowId};
pub use model::job::{Job, Priority, Progress, Status};
pub use model::job_type::JobType;
pub use model::limit::{Limit, LimitUsage, LimitUse};
pub use model::metrics::{Metrics, Rates, Window};
pub use model::need::OnFailure;
pub use model::new_batch::{BatchItem, Estimate, NewBatch};
pub use model::new_job::{NewJob, Payload};
pub use model::new_workflow::NewWorkflow;
pub use model::page::{Page, Query};
pub use model::preference::Preference;
pub use model::retention::Retention;
pub use model::retry::Backoff;
pub use model::schedule::policy::{Missed, Overlap};
pub use model::schedule::record::{
    Backfilled, MissedBy, SchedulePage, ScheduleQuery, ScheduleRecord, Scheduled, Tick, TickOutcome,
};
pub use model::schedule::{Schedule, Trigger};
pub use model::stats::{Stats, StatusCounts};
pub use model::stop_reason::StopReason;
pub use model::threshold::{Measure, Scope, Threshold};
pub use model::time::Timestamp;
pub use model::unique::{Unique, UniqueScope};
pub use model::update::{JobUpdate, Refusal, StatusChange};
pub use model::usage::{Price, PriceTable, Usage};
pub use model::workers::Workers;
pub use model::workflow::{Workflow, WorkflowFailure, WorkflowNode, WorkflowPage, WorkflowQuery, WorkflowSummary};
/// The release of `rusqlite` whose transactions this crate takes.
pub use rusqlite;
/// The release of `serde_json` whose values this crate gives and takes.
pub use serde_json;
pub use store::connect::Durability;
pub use store::enqueue::Enqueued;
pub use store::operate::{Cancelled, Deleted};

/// The programs of the README, for the test that runs them.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
