//! Tests of the plans that SQLite makes for our statements: each hot one goes by its index, sorts nothing, and is never
//! prepared again.

use std::collections::HashSet;
use std::time::Duration;

use rusqlite::{Connection, StatementStatus, params_from_iter};

use crate::error::Result;
use crate::model::cursor::Order;
use crate::model::job::{Priority, Progress, Status};
use crate::model::new_job::NewJob;
use crate::model::page::Query;
use crate::model::preference::Preference;
use crate::model::retry::Backoff;
use crate::model::time::Timestamp;
use crate::store::claim;
use crate::store::connect::{Durability, storage_error};
use crate::store::finish::{self, Retry, Verdict};
use crate::store::lane::{Demand, Lane};
use crate::store::schedule::{self, tick};
use crate::store::{
    Store, Turn, batch, delays, enqueue, fair, flow, gate, housekeeping, limits, line, list, read, release, rescue,
    source, workflow,
};

/// Wants everything, the users in turn or not.
pub(crate) struct Greedy {
    pub(crate) fair: bool,
    pub(crate) by_deadline: bool,
}

impl Demand for Greedy {
    fn room(&self, _: &Lane) -> usize {
        10
    }

    fn bars(&self, _: &Lane) -> bool {
        false
    }

    fn is_apart(&self, _: &Lane) -> bool {
        false
    }

    fn took(&mut self, _: &Lane, _: u32) {}

    fn bears(&mut self, _: &Lane, _: usize, _: u32) -> bool {
        true
    }

    fn ageing(&self) -> Option<Duration> {
        None
    }

    fn preference(&self) -> Preference {
        if self.by_deadline { Preference::EarliestDeadline { patience: Duration::ZERO } } else { Preference::Arrival }
    }

    fn takes(&self, _: &Lane) -> Duration {
        Duration::ZERO
    }

    fn is_fair_by_user(&self) -> bool {
        self.fair
    }
}

pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) now: Timestamp,
    _directory: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut store = Store::open(
            &directory.path().join("jobs.db"),
            Durability::Normal,
            Duration::from_secs(1),
            std::sync::Arc::new(crate::clock::SystemClock),
        )?;
        store.serve(HashSet::from(["one".to_owned(), "two".to_owned()]), 1);
        Ok(Self { store, now: Timestamp::from_micros(1_790_000_000_000_000), _directory: directory })
    }

    fn turn<R>(&mut self, work: impl FnOnce(&mut Turn<'_>) -> rusqlite::Result<R>) -> Result<R> {
        self.now = self.now.saturating_add(Duration::from_millis(1));
        let done = self.store.turn(self.now, None, |turn| work(turn).map_err(|error| storage_error("test", error)))?;
        Ok(done.0)
    }

    /// Jobs of two kinds and every priority: some now, some later, some that expire, ended in every way.
    fn lives(&mut self, count: usize) -> Result<()> {
        for number in 0..count {
            let kind = ["one", "two", "strange"][number % 3];
            let mut job = NewJob::json(kind, &number)
                .priority(Priority::ALL[number % 4])
                .tags(["all"])
                .agent("agent")
                .stop_reason("end_turn")
                .metadata(&serde_json::json!({"source_id": "source"}));
            if number % 5 == 0 {
                job = job.user("ada");
            }
            if number % 2 == 0 {
                job = job.delay(Duration::from_secs(number as u64 % 9));
            }
            if number % 7 == 0 {
                job = job.expires_in(Duration::from_secs(number as u64 % 20 + 1));
            }
            self.turn(|turn| turn.enqueue(&job).map(drop))?;
            self.now = self.now.saturating_add(Duration::from_millis(300));
            let now = self.now;
            let mut demand = Greedy { fair: number % 2 == 0, by_deadline: number % 4 < 2 };
            let (_, out) = self.store.turn(now, Some(&mut demand), |turn| {
                let storage = |error| storage_error("test", error);
                turn.expire(10).map_err(storage)?;
                turn.claim().map_err(storage)
            })?;
            for (at, claim) in out.claims.into_iter().enumerate() {
                let error = || "no".to_owned();
                let verdict = match at % 4 {
                    0 => Verdict::Completed { result: Some(b"1".to_vec()) },
                    1 => Verdict::Failed {
                        error: error(),
                        outcome: crate::model::attempt::AttemptOutcome::Failed,
                        retry: Retry::Backoff,
                    },
                    2 => Verdict::Returned,
                    _ => Verdict::Snoozed { wait: Duration::from_secs(1) },
                };
                self.turn(|turn| {
                    turn.progress(claim.job.id, &Progress { done: 1, total: None, note: None })?;
                    turn.finish(&claim, &verdict, Some(1), &Backoff::default()).map(drop)
                })?;
            }
        }
        Ok(())
    }
}

fn plan(conn: &Connection, sql: &str) -> Vec<String> {
    let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("a plan");
    let parameters = vec![1_i64; statement.parameter_count()];
    let rows = statement.query_map(params_from_iter(parameters), |row| row.get(3)).expect("a plan");
    rows.collect::<rusqlite::Result<_>>().expect("a plan")
}

fn assert_cheap(name: &str, plan: &[String]) {
    for step in plan {
        // A list that is given to a statement is read as a whole.
        let scans = step.starts_with("SCAN") && !step.starts_with("SCAN json_each");
        assert!(!scans && !step.contains("TEMP B-TREE"), "{name}: {plan:?}");
    }
}

#[test]
fn each_hot_statement_goes_by_its_index_and_sorts_nothing() -> Result<()> {
    let mut fixture = Fixture::new()?;
    fixture.lives(50)?;
    // The plans must hold whatever SQLite knows of the tables: with and without statistics.
    for analyzed in [false, true] {
        let conn = fixture.store.connection();
        if analyzed {
            conn.execute_batch("ANALYZE").expect("statistics");
        }
        let place = "jobmill_job_place (lane=? AND state=? AND rowid>?";
        let rowid = "jobmill_job USING INTEGER PRIMARY KEY (rowid=?)";
        for (name, sql, index) in [
            ("claim, pending", source::PLAN_PENDING, place),
            ("claim, delayed", source::PLAN_DELAYED, "jobmill_job_delayed (lane=? AND"),
            ("claim, delayed with deadlines", source::PLAN_DELAYED_DUE, "jobmill_job_delayed (lane=? AND"),
            ("claim, next delayed", claim::PLAN_NEXT_DELAYED, "jobmill_job_delayed (lane=?)"),
            ("delays", delays::PLAN_DELAYS, "jobmill_job_delayed (lane=? AND run_at>?)"),
            ("claim, deadline", source::PLAN_DEADLINE, "jobmill_job_deadline (lane=? AND"),
            ("claim, read", claim::PLAN_READ, rowid),
            ("claim, mark", claim::PLAN_CLAIM, rowid),
            ("users' turns, shares", fair::PLAN_SHARES, "jobmill_share_waiting (lane=? AND id>?)"),
            ("users' turns, pending", fair::PLAN_SHARE_PENDING, "jobmill_job_share (share=? AND state=?)"),
            ("users' turns, delayed", fair::PLAN_SHARE_DELAYED, "jobmill_job_share_delayed (share=? AND run_at<?)"),
            ("expiry", claim::PLAN_EXPIRED, "jobmill_job_expiry (expires_at"),
            ("end", finish::PLAN_END, rowid),
            ("wait", finish::PLAN_WAIT, rowid),
            ("return", finish::PLAN_RETURN, rowid),
            ("rescue", rescue::PLAN_RUNNING, "jobmill_job_place (lane=? AND state=?)"),
            ("prune", housekeeping::PLAN_PRUNE, place),
            ("get", read::PLAN_JOB, "job USING INTEGER PRIMARY KEY (rowid=?)"),
            ("held", release::PLAN_HELD, "jobmill_job_held (line=? AND lane=?)"),
            ("keys of a limit", limits::PLAN_USAGES[0], "sqlite_autoindex_jobmill_gate_1 (limit_id=? AND key>"),
            (
                "keys of a limit, behind one",
                limits::PLAN_USAGES[1],
                "sqlite_autoindex_jobmill_gate_1 (limit_id=? AND key>",
            ),
            ("dearest ahead", limits::PLAN_AHEAD, "jobmill_job_place (lane=? AND state=?"),
            ("lines", line::PLAN_FIRST, "jobmill_line_gate (gate=? AND lane=?)"),
            ("gates, due", gate::PLAN_WAKE, "jobmill_gate_wake (wake_at<?)"),
            ("gates, next", gate::PLAN_NEXT_WAKE, "jobmill_gate_wake (wake_at>?)"),
            ("schedules, due", tick::PLAN_DUE, "jobmill_schedule_due (next_at<?)"),
            ("schedules, next", tick::PLAN_NEXT, "jobmill_schedule_due"),
            ("schedules, waiting", tick::PLAN_WAITING, "jobmill_schedule_waiting (last_job=?)"),
            ("schedules, ticked", tick::PLAN_TICKED, "jobmill_schedule USING INTEGER PRIMARY KEY (rowid=?)"),
            (
                "workflow, followers",
                workflow::PLAN_FOLLOWERS,
                "jobmill_edge USING PRIMARY KEY (needs=? AND follower>?)",
            ),
            ("workflow, duties", workflow::PLAN_DUTY, "jobmill_flow_work_whole (whole>? AND whole<?)"),
            ("workflow, cancelling", flow::PLAN_CANCELLING, "jobmill_flow_work_cancel (work=?)"),
            ("workflow, running", workflow::operate::PLAN_RUNNING, "jobmill_job_place (lane=? AND state=?)"),
            ("workflow, members", workflow::PLAN_MEMBERS, "jobmill_job_flow (flow=? AND rowid>?)"),
            ("workflow, admit", workflow::PLAN_ADMIT, rowid),
            ("workflow, inputs", workflow::read::PLAN_OUTCOMES, "jobmill_job_flow (flow=? AND rowid>?)"),
            ("batch, requests", batch::read::PLAN_REQUESTS, "jobmill_batch_request_batch (batch=? AND id>?)"),
            ("batch, results", batch::read::PLAN_RESULTS, "jobmill_batch_item_batch (batch=? AND rowid>?)"),
            ("batch, plan", batch::plan::PLAN_WAITING, "jobmill_batch_item_state (batch=? AND state=? AND rowid>?)"),
            ("batch, retry", batch::retry::PLAN_ENDED, "jobmill_batch_item_state (batch=? AND state=? AND rowid>?)"),
            ("batch, send", batch::plan::PLAN_BOUND, "jobmill_batch_item_request (request=? AND rowid>?)"),
            ("batch, result", batch::results::PLAN_ITEM, "item USING INTEGER PRIMARY KEY (rowid=?)"),
            ("batch, apply", batch::results::PLAN_APPLY, "jobmill_batch_item USING INTEGER PRIMARY KEY (rowid=?)"),
        ] {
            let plan = plan(conn, sql);
            assert!(plan.iter().any(|step| step.contains(index)), "{name} does not use {index}: {plan:?}");
            assert_cheap(name, &plan);
        }
        for (at, sql) in schedule::read::PLAN_PAGES.into_iter().enumerate() {
            let plan = plan(conn, sql);
            let index =
                ["schedule USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)", "schedule_kind (kind=? AND rowid>"];
            assert!(plan.iter().any(|step| step.contains(index[at / 2])), "page {at} of schedules: {plan:?}");
            assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "page {at} of schedules: {plan:?}");
        }
        for order in [Order::Ascending, Order::Descending] {
            for (of_state, index) in [
                (false, "jobmill_batch_item_batch (batch=? AND rowid>? AND rowid<?)"),
                (true, "jobmill_batch_item_state (batch=? AND state=? AND rowid>? AND rowid<?)"),
            ] {
                let plan = plan(conn, &batch::read::plan_items(of_state, order));
                assert!(plan.iter().any(|step| step.contains(index)), "pages of items do not use {index}: {plan:?}");
                assert_cheap("pages of items", &plan);
            }
        }
        for (plans, index) in workflow::read::PLAN_WORKFLOWS.into_iter().zip([
            "jobmill_flow_state (state=? AND rowid>? AND rowid<?)",
            "jobmill_flow_user (user_id=? AND state=? AND rowid>? AND rowid<?)",
        ]) {
            for sql in plans {
                let plan = plan(conn, sql);
                assert!(plan.iter().any(|step| step.contains(index)), "workflows do not use {index}: {plan:?}");
                assert_cheap("pages of workflows", &plan);
            }
        }
        // The last entry of the index is read, for all that the plan calls a search of it.
        let plan_last = plan(conn, workflow::PLAN_LAST);
        assert_eq!(plan_last, ["SEARCH jobmill_flow_work USING COVERING INDEX jobmill_flow_work_whole"]);
        // Of all jobs, none is read that is no batch.
        let plan_batches = plan(conn, batch::poll::PLAN_BATCHES);
        assert!(plan_batches.iter().any(|step| step.contains("job USING INTEGER PRIMARY KEY")), "{plan_batches:?}");
        let plan_overdue = plan(conn, batch::poll::PLAN_OVERDUE);
        assert!(plan_overdue[0].contains("jobmill_batch_request_due (next_poll_at>?)"), "{plan_overdue:?}");
        // The accounts, which are few, are read from the list that is given.
        let plan_due = plan(conn, batch::poll::PLAN_DUE);
        let due = "jobmill_batch_request_due (next_poll_at<?)";
        assert!(plan_due.iter().any(|step| step.contains(due)), "polls do not use {due}: {plan_due:?}");
        assert!(!plan_due.iter().any(|step| step.contains("SCAN jobmill") || step.contains("TEMP B-TREE")));
        for (name, plans, index) in [
            ("all", list::PLAN_ALL, "jobmill_job USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
            ("lane", list::PLAN_LANE, "jobmill_job_place (lane=? AND state=? AND rowid>? AND rowid<?)"),
            ("share", list::PLAN_SHARE, "jobmill_job_share (share=? AND state=? AND rowid>? AND rowid<?)"),
            ("agent", list::PLAN_AGENT, "jobmill_job_agent (agent_id=? AND rowid>? AND rowid<?)"),
            ("source", list::PLAN_SOURCE, "jobmill_job_source (source_id=? AND rowid>? AND rowid<?)"),
            ("stop reason", list::PLAN_STOP_REASON, "jobmill_job_stop_reason (stop_reason=? AND rowid>? AND rowid<?)"),
            ("workflow", list::PLAN_FLOW, "jobmill_job_flow (flow=? AND rowid>? AND rowid<?)"),
            ("schedule", list::PLAN_SCHEDULE, "jobmill_job_schedule (schedule=? AND rowid>? AND rowid<?)"),
            ("failure", list::PLAN_FAILURE, "jobmill_job_end_reason (end_reason=? AND rowid>? AND rowid<?)"),
            ("tag", list::PLAN_TAG, "jobmill_tag USING PRIMARY KEY (tag=? AND job>? AND job<?)"),
        ] {
            for sql in plans {
                let plan = plan(conn, sql);
                assert!(plan.iter().any(|step| step.contains(index)), "{name} does not use {index}: {plan:?}");
                let covering = name == "all" || name == "tag" || plan.iter().any(|step| step.contains("COVERING"));
                assert!(covering, "{name} reads rows: {plan:?}");
                assert_cheap(name, &plan);
            }
        }
    }
    Ok(())
}

#[test]
fn no_statement_is_prepared_again() -> Result<()> {
    let mut fixture = Fixture::new()?;
    fixture.lives(100)?;
    let conn = fixture.store.connection();
    for limit in 1..40 {
        for order in [Order::Ascending, Order::Descending] {
            let query = Query::new().order(order).limit(limit);
            for query in [
                query.clone(),
                query.clone().statuses([Status::Completed]),
                query.clone().user("ada"),
                query.clone().agents(["agent"]),
                query.clone().source_id("source"),
                query.clone().stop_reason("end_turn"),
                query.tags(["all"]),
            ] {
                list::list(conn, &query).expect("a page");
            }
        }
    }
    for sql in [
        enqueue::PLAN_INSERT,
        source::PLAN_PENDING,
        source::PLAN_DELAYED,
        source::PLAN_DELAYED_DUE,
        source::PLAN_DEADLINE,
        claim::PLAN_NEXT_DELAYED,
        claim::PLAN_READ,
        claim::PLAN_CLAIM,
        claim::PLAN_EXPIRED,
        fair::PLAN_SHARES,
        fair::PLAN_SHARE_PENDING,
        finish::PLAN_END,
        finish::PLAN_WAIT,
        finish::PLAN_RETURN,
        read::PLAN_JOB,
    ]
    .into_iter()
    .chain(
        [
            list::PLAN_ALL,
            list::PLAN_LANE,
            list::PLAN_SHARE,
            list::PLAN_AGENT,
            list::PLAN_SOURCE,
            list::PLAN_STOP_REASON,
            list::PLAN_TAG,
        ]
        .into_iter()
        .flatten(),
    ) {
        let statement = conn.prepare_cached(sql).expect("a statement");
        assert!(statement.get_status(StatementStatus::Run) > 1, "the test must run: {sql}");
        assert_eq!(statement.get_status(StatementStatus::RePrepare), 0, "{sql}");
    }
    Ok(())
}
