//! Lists by every filter, in both orders, page by page and as one stream; and the places where Letta's fell short.

use jobmill::testing::Harness;
use jobmill::{
    Client, Durability, ErrorKind, Job, JobId, JobType, JobUpdate, NewJob, Order, Priority, Query, Status, Timestamp,
};
use serde_json::json;

use crate::support::{Echo, idle, refused, secs};

pub(crate) const ORDERS: [Order; 2] = [Order::Ascending, Order::Descending];

fn ids(jobs: &[Job]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

fn list(client: &Client, query: Query) -> jobmill::Result<Vec<JobId>> {
    client.list(query).map(|page| ids(&page.jobs))
}

fn up(query: Query) -> Query {
    query.order(Order::Ascending)
}

pub(crate) fn reversed(ids: &[JobId]) -> Vec<JobId> {
    ids.iter().rev().copied().collect()
}

/// Ten tracked jobs, a second apart.
fn ten(t: &Harness) -> jobmill::Result<Vec<JobId>> {
    (0..10)
        .map(|_| {
            t.advance(secs(1));
            t.enqueue(NewJob::tracked())
        })
        .collect()
}

/// The sequence of documentation 001, "Pagination Testing", and what Letta's own tests add to it.
#[test]
fn ten_jobs_are_paged_as_documented() -> jobmill::Result<()> {
    let t = idle()?;
    let j = ten(&t)?;
    let found = |query: Query| list(t.client(), query);
    assert_eq!(found(up(Query::new().limit(3)))?, j[..3], "the first page");
    assert_eq!(found(Query::new().limit(3))?, [j[9], j[8], j[7]], "the last page");
    assert_eq!(found(up(Query::new().before(j[7]).after(j[2])))?, j[3..7], "the middle");
    assert_eq!(found(Query::new().before(j[7]).after(j[2]))?, reversed(&j[3..7]));
    assert_eq!(found(up(Query::new().limit(5)))?, j[..5]);
    assert_eq!(found(Query::new().before(j[7]))?, reversed(&j[..7]), "before, descending, gives seven");
    for order in ORDERS {
        // Cursors are excluded, and the filter that their jobs would not pass makes no difference.
        let middle = Query::new().before(j[7]).after(j[2]).order(order);
        t.client().update_status(j[7], Status::Completed)?;
        t.client().update_status(j[2], Status::Running)?;
        assert_eq!(found(middle.clone().statuses([Status::Created]))?.len(), 4);
        assert_eq!(found(middle.statuses([Status::Completed, Status::Running]))?, []);
        assert_eq!(found(Query::new().before(j[0]).order(order))?, [], "nothing is older than the oldest");
        assert_eq!(found(Query::new().after(j[9]).order(order))?, [], "nor newer than the newest");
        assert_eq!(found(Query::new().after(j[8]).order(order))?, [j[9]]);
        assert_eq!(found(Query::new().before(j[1]).order(order))?, [j[0]]);
        assert_eq!(found(Query::new().after(j[4]).before(j[5]).order(order))?, [], "nothing lies between neighbours");
    }
    Ok(())
}

/// Documentation 001, "Status Filtering Tests".
#[test]
fn statuses_are_filtered_one_by_one_together_and_not_at_all() -> jobmill::Result<()> {
    let t = idle()?;
    let mut by_status: Vec<(Status, Vec<JobId>)> = Vec::new();
    for status in Status::ALL {
        let few = [status as usize + 1, 3].into_iter().min().expect("two numbers");
        let ids = (0..few).map(|_| t.enqueue(NewJob::tracked().status(status))).collect::<jobmill::Result<_>>()?;
        by_status.push((status, ids));
    }
    let of = |wanted: &[Status]| -> Vec<JobId> {
        let some = by_status.iter().filter(|(status, _)| wanted.contains(status));
        some.flat_map(|(_, ids)| ids.clone()).collect()
    };
    for mask in 0..1_usize << 7 {
        let wanted: Vec<Status> =
            Status::ALL.into_iter().filter(|status| mask >> (*status as usize) & 1 == 1).collect();
        let expected = if wanted.is_empty() { of(&Status::ALL) } else { of(&wanted) };
        let mut asked = wanted.clone();
        // In whatever order and how often they are named.
        asked.reverse();
        asked.extend(wanted.first().copied());
        assert_eq!(list(t.client(), up(Query::new().statuses(asked)))?, expected, "{wanted:?}");
    }
    let page = t.client().list(Query::new().statuses(Status::ALL.into_iter().filter(|status| status.is_terminal())))?;
    assert!(page.jobs.iter().all(|job| job.status.is_terminal() && job.completed_at.is_some()));
    Ok(())
}

/// Documentation 001, "Edge Case Testing".
#[test]
fn nothing_is_found_where_nothing_is() -> jobmill::Result<()> {
    let t = idle()?;
    for query in [Query::new(), Query::new().user("u"), Query::new().agents(["a"]), Query::new().tracked(true)] {
        for order in ORDERS {
            let page = t.client().list(query.clone().order(order))?;
            assert!(page.jobs.is_empty() && !page.has_more() && page.next.is_none(), "{query:?}");
            assert!(t.client().jobs(query.clone())?.next().is_none());
            assert_eq!(t.client().select(query.clone())?.cancel()?.changed, 0);
        }
    }
    let j = ten(&t)?;
    for query in [
        Query::new().statuses([Status::Expired]),
        Query::new().job_types([JobType::Batch]),
        Query::new().tracked(false),
        Query::new().background(true),
        Query::new().user("u"),
        Query::new().user("' OR 1 = 1 --"),
        Query::new().agents(["a", "%"]),
        Query::new().stop_reason("*"),
        Query::new().source_id("\0"),
        Query::new().tags(["", "_"]),
        Query::new().kinds([""; 1]).tracked(false),
        Query::new().created_from(j[9].created_at().saturating_add(secs(1))),
        Query::new().created_until(j[0].created_at()),
    ] {
        let page = t.client().list(query.clone())?;
        assert!(page.jobs.is_empty() && !page.has_more(), "{query:?}");
    }
    Ok(())
}

/// Letta ordered equal timestamps by random ids, and on SQLite cut the moment of a cursor down to its second: `after`
/// gave the whole second once more, and `before` left all of it out.
#[test]
fn jobs_of_one_moment_have_an_order_and_cursors_fall_between_them() -> jobmill::Result<()> {
    let t = idle()?;
    let mut j = Vec::new();
    for second in 0..3 {
        for n in 0..4 {
            let run = if n % 2 == 0 { JobType::Run } else { JobType::Job };
            j.push(t.enqueue(NewJob::tracked().job_type(run))?);
        }
        t.advance(if second == 0 { std::time::Duration::from_micros(1) } else { secs(1) });
    }
    assert_eq!(list(t.client(), up(Query::new()))?, j, "the order is that of their coming");
    for at in 0..j.len() {
        for order in ORDERS {
            let mut older = list(t.client(), Query::new().before(j[at]).order(order))?;
            let mut newer = list(t.client(), Query::new().after(j[at]).order(order))?;
            older.sort();
            newer.sort();
            assert_eq!((&older[..], &newer[..]), (&j[..at], &j[at + 1..]), "{at} {order:?}");
        }
    }
    // Moments are filtered to the microsecond, the first included and the last not.
    let (first, second) = (j[0].created_at(), j[4].created_at());
    assert_ne!(first, second);
    assert_eq!(list(t.client(), up(Query::new().created_from(second)))?, j[4..]);
    assert_eq!(list(t.client(), up(Query::new().created_until(second)))?, j[..4]);
    assert_eq!(list(t.client(), up(Query::new().created_from(first).created_until(second)))?, j[..4]);
    assert_eq!(list(t.client(), up(Query::new().created_from(first).created_until(second).after(j[1])))?, j[2..4]);
    assert_eq!(list(t.client(), Query::new().created_from(Timestamp::EPOCH).created_until(Timestamp::MAX))?.len(), 12);
    for (from, until) in [(first, first), (second, first)] {
        let query = Query::new().created_from(from).created_until(until);
        refused(t.client().list(query), ErrorKind::Invalid, "created_until: must be later than created_from");
    }
    Ok(())
}

/// In Letta a limit of 0 was no limit, and a negative one was none on SQLite either.
#[test]
fn no_limit_lets_everything_through() -> jobmill::Result<()> {
    let t = idle()?;
    t.client().enqueue_many((0..60).map(|_| NewJob::tracked()))?;
    for limit in [0, 1001, usize::MAX] {
        for query in [Query::new(), Query::new().agents(["a"])] {
            let says = "limit: must be from 1 to 1000";
            refused(t.client().list(query.clone().limit(limit)), ErrorKind::Invalid, says);
            refused(t.client().jobs(query.clone().limit(limit)).map(drop), ErrorKind::Invalid, says);
        }
    }
    assert_eq!(t.client().list(Query::new())?.jobs.len(), 50);
    Ok(())
}

/// Letta accepted `agent_ids` and ignored it, and dropped the agent of a job when it was created.
#[test]
fn agents_are_kept_and_filtered() -> jobmill::Result<()> {
    let t = idle()?;
    let mut j = Vec::new();
    for agent in [Some("a"), Some("b"), None, Some("a"), Some("A")] {
        let job = NewJob::tracked();
        j.push(t.enqueue(match agent {
            Some(agent) => job.agent(agent),
            None => job,
        })?);
    }
    assert_eq!(t.client().get(j[1])?.agent_id.as_deref(), Some("b"));
    let of = |agents: &[&str]| list(t.client(), up(Query::new().agents(agents.iter().copied())));
    assert_eq!(of(&["a"])?, [j[0], j[3]]);
    assert_eq!(of(&["b", "a", "b", "nobody"])?, [j[0], j[1], j[3]], "each job comes once");
    assert_eq!(of(&[])?, j, "no agent is no filter");
    t.client().update(j[0], JobUpdate::new().agent("b"))?;
    t.client().update(j[3], JobUpdate::new().agent(None))?;
    assert_eq!((of(&["a"])?, of(&["b"])?), (vec![], vec![j[0], j[1]]));
    let many: Vec<String> = (0..101).map(|n| n.to_string()).collect();
    refused(t.client().list(Query::new().agents(many)), ErrorKind::Invalid, "agents: must be no more than 100");
    Ok(())
}

/// In Letta the filter by type was always on: jobs of all types could not be listed at once, over HTTP neither runs nor
/// batches could be listed at all, and a batch that had ended was out of everybody's sight.
#[test]
fn runs_and_batches_are_listed_with_jobs_and_apart() -> jobmill::Result<()> {
    let t = idle()?;
    let mut j = Vec::new();
    for job_type in [JobType::Job, JobType::Run, JobType::Batch, JobType::Run, JobType::Batch] {
        j.push(t.enqueue(NewJob::tracked().job_type(job_type))?);
    }
    t.client().update_status(j[2], Status::Completed)?;
    let of = |types: &[JobType]| list(t.client(), up(Query::new().job_types(types.iter().copied())));
    assert_eq!(of(&[])?, j);
    assert_eq!(of(&[JobType::Job])?, [j[0]]);
    assert_eq!(of(&[JobType::Run])?, [j[1], j[3]]);
    assert_eq!(of(&[JobType::Batch])?, [j[2], j[4]], "one that has ended too");
    assert_eq!(of(&[JobType::Batch, JobType::Run])?, j[1..]);
    // A cursor of another type is as good as any.
    assert_eq!(list(t.client(), up(Query::new().job_types([JobType::Batch]).after(j[1])))?, [j[2], j[4]]);
    assert_eq!(list(t.client(), Query::new().job_types([JobType::Run]).before(j[2]))?, [j[1]]);
    // Deleting a run failed always, for its method did not exist.
    t.client().delete(j[1])?;
    assert_eq!(of(&[JobType::Run])?, [j[3]]);
    Ok(())
}

/// In Letta a deleted job that served as a cursor broke the walk with an error; in runs and groups an unknown cursor was
/// ignored in silence and gave the first page again, so that a walk never ended.
#[test]
fn a_cursor_is_a_position_whether_its_job_exists_or_not() -> jobmill::Result<()> {
    let t = idle()?;
    let j = ten(&t)?;
    for order in ORDERS {
        let mut seen = Vec::new();
        let mut next = Some(Query::new().order(order).limit(3));
        while let Some(query) = next {
            let page = t.client().list(query)?;
            seen.extend(ids(&page.jobs));
            next = page.next;
            if let (Some(_), Some(last)) = (&next, seen.last())
                && order == Order::Descending
            {
                t.client().delete(*last)?;
            }
        }
        assert_eq!(seen, if order == Order::Ascending { j.clone() } else { reversed(&j) });
    }
    let never: JobId = "job-0000000000002".parse()?;
    assert_eq!(list(t.client(), up(Query::new().after(never)))?.len(), 7);
    assert_eq!(list(t.client(), Query::new().before(never))?, []);
    Ok(())
}

/// Letta took the same id for both ends and gave nothing, and one error for another.
#[test]
fn cursors_the_wrong_way_round_are_an_error_that_says_so() -> jobmill::Result<()> {
    let t = idle()?;
    let j = ten(&t)?;
    for (before, after) in [(j[2], j[7]), (j[2], j[2])] {
        for order in ORDERS {
            let query = Query::new().before(before).after(after).order(order);
            let says = "before: must be newer than after";
            refused(t.client().list(query.clone()), ErrorKind::Invalid, says);
            refused(t.client().jobs(query.clone()).map(drop), ErrorKind::Invalid, says);
            refused(t.client().select(query).map(drop), ErrorKind::Invalid, says);
        }
    }
    Ok(())
}

/// Letta had four meanings of a cursor, by the call, its version and the order; its helper for two cursors fetched twice
/// the limit and gave the middle of that.
#[test]
fn a_cursor_means_the_same_in_every_call_and_order() -> jobmill::Result<()> {
    let t = idle()?;
    let mut j = Vec::new();
    for n in 0..12 {
        j.push(t.enqueue(NewJob::tracked().job_type(JobType::ALL[n % 3]).agent("a").tags(["x"]))?);
    }
    let filters = [
        Query::new(),
        Query::new().agents(["a"]),
        Query::new().tags(["x"]).statuses([Status::Created]),
        Query::new().job_types(JobType::ALL),
        Query::new().job_types([JobType::Job, JobType::Run, JobType::Batch]).agents(["a"]),
    ];
    for filter in filters {
        for (query, expected) in [
            (filter.clone().after(j[4]), &j[5..]),
            (filter.clone().before(j[4]), &j[..4]),
            (filter.clone().after(j[1]).before(j[10]), &j[2..10]),
        ] {
            for limit in [2, 3, 50] {
                let page: Vec<JobId> = expected.iter().take(limit).copied().collect();
                let last: Vec<JobId> = expected.iter().rev().take(limit).copied().collect();
                assert_eq!(list(t.client(), up(query.clone().limit(limit)))?, page);
                assert_eq!(list(t.client(), query.clone().limit(limit))?, last);
                let all: Vec<Job> = t.client().jobs(up(query.clone().limit(limit)))?.collect::<jobmill::Result<_>>()?;
                assert_eq!(ids(&all), expected);
            }
            let bulk = t.client().select(query.clone())?.set_priority(Priority::High)?;
            assert_eq!(bulk.changed, expected.len());
            assert_eq!(list(t.client(), up(Query::new().priorities([Priority::High])))?, expected);
            t.client().select(Query::new())?.set_priority(Priority::Default)?;
        }
    }
    Ok(())
}

/// Letta's `active` was created and running: a pending job was neither active nor ended.
#[test]
fn what_has_not_ended_includes_what_is_pending() -> jobmill::Result<()> {
    let t = idle()?;
    let mut open = Vec::new();
    for status in Status::ALL {
        let id = t.enqueue(NewJob::tracked().status(status))?;
        if !status.is_terminal() {
            open.push(id);
        }
    }
    open.push(t.enqueue(Echo::job("x").delay(secs(9)))?);
    let query = Query::new().statuses(Status::ALL.into_iter().filter(|status| !status.is_terminal()));
    assert_eq!(list(t.client(), up(query))?, open);
    let stats = t.client().stats()?;
    assert_eq!((stats.active(), stats.depth()), (1, 2), "and each is counted once");
    Ok(())
}

/// Letta's pages did not say whether another follows.
#[test]
fn a_page_says_whether_another_follows_and_how_to_ask_for_it() -> jobmill::Result<()> {
    let t = idle()?;
    ten(&t)?;
    for query in [Query::new(), Query::new().statuses([Status::Created]), Query::new().tracked(true).limit(1)] {
        for order in ORDERS {
            for limit in 1..=12 {
                let page = t.client().list(query.clone().order(order).limit(limit))?;
                assert_eq!(page.has_more(), limit < 10, "{limit}");
                assert_eq!(page.next.is_some(), page.has_more());
                assert_eq!(page.jobs.len(), limit.min(10));
            }
        }
    }
    let page = t.client().list(Query::new().limit(5))?;
    let second = t.client().list(page.next.expect("more"))?;
    assert!(second.jobs.len() == 5 && !second.has_more(), "the last page is full, and nothing follows");
    Ok(())
}

/// In Letta an empty source was no filter, and a job that was never said to be in the background was null in one place
/// and false in another.
#[test]
fn an_empty_word_is_refused_and_what_was_never_said_is_no() -> jobmill::Result<()> {
    let t = idle()?;
    let plain = t.enqueue(NewJob::tracked())?;
    let back = t.enqueue(NewJob::tracked().background(true))?;
    let empty_source = t.enqueue(NewJob::tracked().metadata(&json!({"source_id": ""})))?;
    assert_eq!(list(t.client(), up(Query::new().background(false)))?, [plain, empty_source]);
    assert_eq!(list(t.client(), Query::new().background(true))?, [back]);
    let says = "must not be empty: without a filter, leave it out";
    for (field, query) in [
        ("source_id", Query::new().source_id("")),
        ("stop_reason", Query::new().stop_reason("")),
        ("user", Query::new().user("")),
    ] {
        refused(t.client().list(query), ErrorKind::Invalid, &format!("{field}: {says}"));
    }
    Ok(())
}

#[test]
fn an_iterator_gives_its_error_and_goes_on_from_there() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.durability(Durability::Normal))?;
    ten(&t)?;
    let bob = t.client().for_user("bob")?;
    let ids: Vec<JobId> =
        (0..4).map(|_| bob.enqueue(NewJob::tracked()).map(|e| e.id())).collect::<jobmill::Result<_>>()?;
    let mut walk = bob.jobs(up(Query::new().limit(2)))?;
    assert_eq!(walk.next().expect("a job")?.id, ids[0]);
    assert_eq!(walk.next().expect("a job")?.id, ids[1]);
    // Its last job, the cursor of the next page, is made another's behind everybody's back.
    let sql =
        "UPDATE jobmill_job SET share = NULL WHERE id = (SELECT min(id) + 2 FROM jobmill_job WHERE share IS NOT NULL)";
    crate::support::tamper(t.client(), sql);
    refused(walk.next().expect("an answer"), ErrorKind::NotFound, "there is no job ");
    refused(walk.next().expect("the same answer"), ErrorKind::NotFound, "there is no job ");
    t.client().delete(ids[1])?;
    assert_eq!(walk.next().expect("a job")?.id, ids[2]);
    assert_eq!(walk.next().expect("a job")?.id, ids[3]);
    assert!(walk.next().is_none() && walk.next().is_none());
    Ok(())
}
