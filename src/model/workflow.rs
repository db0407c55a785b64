//! A workflow as it stands in the ledger.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::cursor::{self, Cursor, Order, cursor_setters};
use crate::model::draw::{Graph, Line, Spot};
use crate::model::id::{JobId, WorkflowId};
use crate::model::job::{Progress, Status};
use crate::model::need::OnFailure;
use crate::model::stats::StatusCounts;
use crate::model::time::Timestamp;

/// A workflow as it stands in the ledger.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Workflow {
    /// Its id.
    pub id: WorkflowId,
    /// Its name, which others may bear too.
    pub name: String,
    /// The user whose it is.
    pub user_id: Option<String>,
    /// Where it stands: created while it is written, running until none of its jobs is open, then completed, failed or
    /// cancelled. A failure counts unless all that follow it go on whatever its end.
    pub status: Status,
    /// When it was created.
    pub created_at: Timestamp,
    /// When the last of its jobs ended.
    pub ended_at: Option<Timestamp>,
    /// When somebody asked for its cancellation.
    pub cancel_requested_at: Option<Timestamp>,
    /// Its jobs by status, without callbacks.
    pub jobs: StatusCounts,
    /// What bears a name in it, in the order in which that was given.
    pub nodes: Vec<WorkflowNode>,
    /// The first of its jobs that failed, at most ten.
    pub failures: Vec<WorkflowFailure>,
}

/// A job, a stage or a callback of a workflow.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WorkflowNode {
    /// Its name.
    pub name: String,
    /// The job. None if it is a stage.
    pub job: Option<JobId>,
    /// Whether it follows the end of the whole.
    pub is_callback: bool,
    /// Where it stands. A stage is created while it waits, and running until none of its jobs is open. None if the job was
    /// deleted.
    pub status: Option<Status>,
    /// Its jobs by status: of a stage all of them, otherwise the one.
    pub jobs: StatusCounts,
    /// What it waits for or has waited for, and what becomes of it if that does not end well.
    pub needs: Vec<(String, OnFailure)>,
}

/// A job of a workflow that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkflowFailure {
    /// The job.
    pub job: JobId,
    /// Its name, or that of its stage. None if it has been added while the workflow ran.
    pub name: Option<String>,
    /// Its error.
    pub error: Option<String>,
}

impl Workflow {
    /// How many of its jobs have ended, and how many there are.
    pub fn progress(&self) -> Progress {
        let ended =
            Status::ALL.into_iter().filter(|status| status.is_terminal()).map(|status| self.jobs.of(status)).sum();
        Progress { done: ended, total: Some(self.jobs.total()), note: None }
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&WorkflowNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The stage of this name.
    pub fn stage(&self, name: &str) -> Option<&WorkflowNode> {
        self.node(name).filter(|node| node.job.is_none())
    }

    /// The job of this name.
    pub fn job(&self, name: &str) -> Option<JobId> {
        self.node(name)?.job
    }

    /// A drawing of where it stands in Mermaid's language. The class of each node is its status.
    pub fn to_mermaid(&self) -> String {
        self.graph().to_mermaid()
    }

    /// A drawing of where it stands in the language of Graphviz.
    pub fn to_dot(&self) -> String {
        self.graph().to_dot()
    }

    fn graph(&self) -> Graph {
        let places: std::collections::HashMap<&str, usize> =
            self.nodes.iter().enumerate().map(|(place, node)| (&*node.name, place)).collect();
        let mut graph = Graph { name: self.name.clone(), ..Graph::default() };
        for (place, node) in self.nodes.iter().enumerate() {
            let is_stage = node.job.is_none() && !node.is_callback;
            let ended: u64 =
                Status::ALL.into_iter().filter(|status| status.is_terminal()).map(|status| node.jobs.of(status)).sum();
            let label =
                if is_stage { format!("{} {ended}/{}", node.name, node.jobs.total()) } else { node.name.clone() };
            graph.spots.push(Spot { label, status: node.status, is_stage, is_callback: node.is_callback });
            for (name, on_failure) in &node.needs {
                if let Some(from) = places.get(&**name) {
                    graph.lines.push(Line { from: *from, to: place, on_failure: *on_failure });
                }
            }
        }
        graph
    }
}

/// Which workflows to list. Cursors are ids, absolute in time, as those of [`Query`](crate::Query) are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a query does nothing until it is asked"]
pub struct WorkflowQuery {
    pub(crate) user: Option<String>,
    pub(crate) statuses: Vec<Status>,
    pub(crate) cursor: Cursor<WorkflowId>,
}

impl WorkflowQuery {
    /// How many workflows a page holds unless the query says otherwise.
    pub const DEFAULT_LIMIT: usize = cursor::DEFAULT_LIMIT;
    /// How many workflows a page may hold.
    pub const MAX_LIMIT: usize = cursor::MAX_LIMIT;

    /// Every workflow, the newest first, 50 a page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps workflows of this user.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Keeps workflows in one of these statuses. None: in any.
    pub fn statuses(mut self, statuses: impl IntoIterator<Item = Status>) -> Self {
        self.statuses = statuses.into_iter().collect();
        self
    }

    cursor_setters! {
        /// Keeps workflows older than this one.
        before(id: WorkflowId),
        /// Keeps workflows newer than this one.
        after(id: WorkflowId),
        /// Sets the order. Defaults to [`Order::Descending`].
        order(order: Order),
        /// Sets how many workflows a page holds, from 1 to 1000. Defaults to 50.
        limit(limit: usize),
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.user.as_deref() == Some("") {
            return Err(Error::invalid("user", "must not be empty: without a filter, leave it out"));
        }
        self.cursor.check()
    }
}

/// One workflow of a page: without its nodes, which [`Client::workflow`](crate::Client::workflow) reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkflowSummary {
    /// Its id.
    pub id: WorkflowId,
    /// Its name, which others may bear too.
    pub name: String,
    /// The user whose it is.
    pub user_id: Option<String>,
    /// Where it stands.
    pub status: Status,
    /// When it was created.
    pub created_at: Timestamp,
    /// When the last of its jobs ended.
    pub ended_at: Option<Timestamp>,
    /// When somebody asked for its cancellation.
    pub cancel_requested_at: Option<Timestamp>,
    /// Its jobs by status, without callbacks.
    pub jobs: StatusCounts,
}

/// A page of workflows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkflowPage {
    /// The workflows, in the order that the query asked for.
    pub workflows: Vec<WorkflowSummary>,
    /// The query for the next page, if more workflows follow.
    pub next: Option<WorkflowQuery>,
}

impl WorkflowPage {
    /// Whether more workflows follow.
    pub fn has_more(&self) -> bool {
        self.next.is_some()
    }
}
