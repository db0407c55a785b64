//! What is told after a commit: to the counters, and to those who have subscribed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use crate::error::Result;
use crate::events::Hub;
use crate::metrics::Recorder;
use crate::model::alert::Alert;
use crate::model::event::{Change, Event, Transition, WorkflowChange, WorkflowTransition};
use crate::model::tally::Tally;
use crate::store::{Outbox, Store};

/// The counters are written no more often than this, so that a kill loses no more of them.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// Tells what was committed.
#[derive(Default)]
pub(crate) struct Press {
    recorder: Recorder,
    hub: Hub,
    alerts: Mutex<Vec<Alert>>,
    /// Whether nothing is counted.
    silent: AtomicBool,
    /// Somebody wants them written at once.
    wanted: AtomicBool,
    /// When the counters were last written, on the monotonic clock in nanoseconds.
    written_at_ns: AtomicU64,
}

impl Press {
    /// Stops counting.
    pub(crate) fn count_nothing(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    /// Whether what is done is counted.
    pub(crate) fn counts(&self) -> bool {
        !self.silent.load(Ordering::Relaxed)
    }

    /// Tells what a turn has changed.
    pub(crate) fn tell(&self, out: &Outbox, store: &Store) {
        if self.counts() {
            self.recorder.observe(&out.transitions);
            self.recorder.observe_ticks(&out.ticks);
        }
        if out.transitions.is_empty() && out.workflows.is_empty() || !self.hub.has_listeners() {
            return;
        }
        let mut users = HashMap::new();
        let mut events = Vec::with_capacity(out.transitions.len() + out.workflows.len());
        let mut workflows = out.workflows.iter().peekable();
        for (at, transition) in out.transitions.iter().enumerate() {
            while let Some((_, workflow)) = workflows.next_if(|(place, _)| *place <= at) {
                events.extend(of_workflow(workflow, store));
            }
            events.extend(of_job(transition, store, &mut users));
        }
        events.extend(workflows.filter_map(|(_, workflow)| of_workflow(workflow, store)));
        self.hub.publish(&events);
    }

    /// Tells something else.
    pub(crate) fn publish(&self, events: &[Event]) {
        self.hub.publish(events);
    }

    /// Keeps which alerts are raised.
    pub(crate) fn set_alerts(&self, alerts: Vec<Alert>) {
        *self.alerts.lock() = alerts;
    }

    /// The alerts that are raised.
    pub(crate) fn alerts(&self) -> Vec<Alert> {
        self.alerts.lock().clone()
    }

    pub(crate) fn subscribe(&self, capacity: usize, user: Option<String>) -> Result<Receiver<Event>> {
        self.hub.subscribe(capacity, user)
    }

    /// Ends every subscription.
    pub(crate) fn close(&self) {
        self.hub.close();
    }

    /// The counters, if they are to be written by the turn that begins now.
    pub(crate) fn take_due(&self, now: Duration) -> Option<HashMap<i64, Tally>> {
        let written_at = Duration::from_nanos(self.written_at_ns.load(Ordering::Relaxed));
        let wanted = self.wanted.swap(false, Ordering::Relaxed);
        if !wanted && (now.saturating_sub(written_at) < WRITE_EVERY || self.recorder.is_empty()) {
            return None;
        }
        self.written_at_ns.store(super::nanos(now), Ordering::Relaxed);
        Some(self.recorder.take())
    }

    /// Whether anything has been counted and not been written.
    pub(crate) fn has_counted(&self) -> bool {
        !self.recorder.is_empty()
    }

    /// Whether anything has been counted and not been written for so long that a turn should be made for it.
    pub(crate) fn is_overdue(&self, now: Duration) -> bool {
        let written_at = Duration::from_nanos(self.written_at_ns.load(Ordering::Relaxed));
        now.saturating_sub(written_at) >= WRITE_EVERY && !self.recorder.is_empty()
    }

    /// Lets the counters be written by the next turn, however short ago they were.
    pub(crate) fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Takes back counters that could not be written.
    pub(crate) fn give_back(&self, tallies: HashMap<i64, Tally>) {
        self.recorder.give_back(tallies);
    }
}

/// A change of a job with the names of its lane and user, of which those that are known need not be read.
fn of_job(transition: &Transition, store: &Store, users: &mut HashMap<i64, Option<Arc<str>>>) -> Option<Event> {
    let lane = store.lane(transition.lane)?;
    let user = transition.share.and_then(|share| {
        let user = users.entry(share).or_insert_with(|| store.user_of(share));
        user.clone()
    });
    Some(Event::Changed(Change::new(transition, lane.queue.clone(), lane.kind.clone(), lane.priority, user)))
}

/// A change of a workflow with its name and user.
fn of_workflow(transition: &WorkflowTransition, store: &Store) -> Option<Event> {
    let WorkflowTransition { id, from, to, at } = *transition;
    let (name, user) = store.workflow(id)?;
    Some(Event::Workflow(WorkflowChange { id, name, user, from, to, at }))
}
