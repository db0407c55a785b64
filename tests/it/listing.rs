//! Lists by every filter, in both orders, page by page and as one stream; and the places where Letta's fell short.

use std::collections::{BTreeSet, HashSet};

use jobmill::testing::Harness;
use jobmill::{
    Client, Context, Durability, ErrorKind, Failure, Job, JobId, JobType, JobUpdate, NewJob, Order, Outcome, Priority,
    Query, Status, StopReason, Timestamp,
};
use serde_json::json;

use crate::support::{Dice, Echo, Other, idle, refused, secs, sound};

const ORDERS: [Order; 2] = [Order::Ascending, Order::Descending];

fn ids(jobs: &[Job]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

fn list(client: &Client, query: Query) -> jobmill::Result<Vec<JobId>> {
    client.list(query).map(|page| ids(&page.jobs))
}

fn up(query: Query) -> Query {
    query.order(Order::Ascending)
}

fn reversed(ids: &[JobId]) -> Vec<JobId> {
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

const USERS: [Option<&str>; 5] = [Some("common"), Some("common"), None, None, Some("other")];
const AGENTS: [Option<&str>; 4] = [Some("common"), Some("common"), Some("other"), None];
const QUEUES: [&str; 3] = ["default", "mail", "ü"];
const KINDS: [&str; 4] = ["echo", "other", "unknown", ""];
const REASONS: [&str; 3] = ["end_turn", "error", "own"];
const SOURCES: [&str; 3] = ["s", "7", "rare"];
const TAGS: [&str; 4] = ["a", "b", "c", "rare"];

/// A file with a few hundred jobs of every sort in every status, with values that are common and values that are rare,
/// and ids of some that are gone.
fn varied(dice: &mut Dice, count: usize) -> jobmill::Result<(Harness, Vec<Job>, Vec<JobId>)> {
    let t = Harness::new(|builder| {
        builder
            .durability(Durability::Normal)
            .handle(|job: Echo, ctx: &Context| -> Result<(), Failure> {
                if job.0 == "1" {
                    ctx.stop_reason(StopReason::ERROR)?;
                    return Err(Failure::fatal("no"));
                }
                Ok(())
            })
            .handle(|job: Other, _: &Context| -> Result<Outcome<()>, Failure> {
                if job.0 % 2 == 1 { Ok(Outcome::Snooze(secs(9_999_999))) } else { Ok(Outcome::Done(())) }
            })
    })?;
    let mut known = Vec::new();
    let mut gone = Vec::new();
    for n in 0..count {
        let number = dice.below(4);
        let mut job = match dice.below(10) {
            0..=4 => Echo::job(number.to_string()),
            5 => NewJob::of(&Other(number as u64)),
            6 => NewJob::json("unknown", &number),
            _ => NewJob::tracked().status(dice.pick(&Status::ALL)),
        };
        job = job
            .queue(dice.pick(&QUEUES))
            .priority(dice.pick(&[Priority::Default, Priority::Default, Priority::Low, Priority::High]))
            .job_type(dice.pick(&[JobType::Job, JobType::Job, JobType::Run]))
            .background(dice.percent(20));
        if dice.percent(2) {
            job = job.priority(Priority::Critical).job_type(JobType::Batch);
        }
        if let Some(user) = dice.pick(&USERS) {
            job = job.user(if dice.percent(3) { "rare" } else { user });
        }
        if let Some(agent) = dice.pick(&AGENTS) {
            job = job.agent(if dice.percent(3) { "rare" } else { agent });
        }
        if dice.percent(30) {
            job = job.stop_reason(dice.pick(&REASONS));
        }
        job = match dice.below(12) {
            0..=5 => job.metadata(&json!({"source_id": "s", "n": n})),
            6 | 7 => job.metadata(&json!({"source_id": 7})),
            8 if dice.percent(20) => job.metadata(&json!({"source_id": "rare"})),
            9 => job.metadata(&json!({"source_id": ["s"]})),
            _ => job,
        };
        job = job.tags(if dice.percent(3) { vec!["rare"] } else { dice.some(&TAGS[..3]) });
        if dice.percent(15) {
            job = job.delay(secs(9_999_999));
        }
        if dice.percent(10) {
            job = job.expires_in(secs(5));
        }
        known.push(t.enqueue(job)?);
        if dice.percent(30) {
            t.advance(std::time::Duration::from_micros(dice.below(3) as u64));
        }
        let any = dice.pick(&known);
        // What its status forbids is not done.
        let client = t.client();
        match dice.below(14) {
            0 => drop(client.cancel(any)),
            1 => drop(client.set_queue(any, dice.pick(&QUEUES))),
            2 => drop(client.set_priority(any, dice.pick(&Priority::ALL))),
            3 => drop(client.update(any, JobUpdate::new().background(dice.percent(50)))),
            4 => drop(client.update(any, JobUpdate::new().agent(dice.pick(&AGENTS)))),
            5 => drop(client.update(any, JobUpdate::new().stop_reason(StopReason::from(dice.pick(&REASONS))))),
            6 => drop(client.update(any, JobUpdate::new().stop_reason(None).clear_metadata())),
            7 => drop(client.update(any, JobUpdate::new().merge_metadata(&json!({"source_id": dice.pick(&SOURCES)})))),
            8 => drop(client.update_status(any, dice.pick(&Status::ALL))),
            9 if dice.percent(50) && client.delete(any).is_ok() => {
                known.retain(|id| *id != any);
                gone.push(any);
            }
            10 if dice.percent(30) => drop(t.drain()?),
            _ => {}
        }
        if known.is_empty() {
            known.push(t.enqueue(NewJob::tracked())?);
        }
    }
    t.advance(secs(6));
    t.drain()?;
    let jobs = known.into_iter().map(|id| t.client().get(id)).collect::<jobmill::Result<Vec<_>>>()?;
    Ok((t, jobs, gone))
}

/// A query, and by itself what it means.
#[derive(Clone, Debug, Default)]
struct Asked {
    user: Option<&'static str>,
    statuses: Vec<Status>,
    types: Vec<JobType>,
    kinds: Vec<&'static str>,
    tracked: Option<bool>,
    queues: Vec<&'static str>,
    priorities: Vec<Priority>,
    background: Option<bool>,
    agents: Vec<&'static str>,
    reason: Option<&'static str>,
    source: Option<&'static str>,
    tags: Vec<&'static str>,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
    after: Option<JobId>,
    before: Option<JobId>,
}

fn within<T: PartialEq>(wanted: &[T], value: &T) -> bool {
    wanted.is_empty() || wanted.contains(value)
}

impl Asked {
    /// Each filter with this chance.
    fn roll(dice: &mut Dice, chance: usize, positions: &[JobId]) -> Self {
        fn one<T: Clone>(dice: &mut Dice, chance: usize, of: &[T]) -> Option<T> {
            if dice.percent(chance) { Some(dice.pick(of)) } else { None }
        }
        fn few<T: Clone>(dice: &mut Dice, chance: usize, of: &[T]) -> Vec<T> {
            match dice.percent(chance) {
                true if dice.percent(50) => vec![dice.pick(of)],
                true => dice.some(of),
                false => Vec::new(),
            }
        }
        let mut asked = Self {
            user: one(dice, chance, &["common", "other", "rare", "nobody"]),
            statuses: few(dice, chance, &Status::ALL),
            types: few(dice, chance, &JobType::ALL),
            kinds: few(dice, chance, &KINDS[..3]),
            tracked: one(dice, chance, &[true, false]),
            queues: few(dice, chance, &QUEUES),
            priorities: few(dice, chance, &Priority::ALL),
            background: one(dice, chance, &[true, false]),
            agents: few(dice, chance, &["common", "other", "rare", "nobody"]),
            reason: one(dice, chance, &REASONS),
            source: one(dice, chance, &SOURCES),
            tags: few(dice, chance, &TAGS),
            ..Self::default()
        };
        let mut ends = [dice.pick(positions), dice.pick(positions)];
        ends.sort();
        asked.after = one(dice, chance / 2, &ends[..1]);
        asked.before = if ends[0] < ends[1] { one(dice, chance / 2, &ends[1..]) } else { None };
        let mut moments = [dice.pick(positions).created_at(), dice.pick(positions).created_at()];
        moments.sort();
        asked.from = one(dice, chance / 2, &moments[..1]);
        asked.until = if moments[0] < moments[1] { one(dice, chance / 2, &moments[1..]) } else { None };
        asked
    }

    fn query(&self) -> Query {
        let mut query = Query::new()
            .statuses(self.statuses.clone())
            .job_types(self.types.clone())
            .kinds(self.kinds.clone())
            .queues(self.queues.clone())
            .priorities(self.priorities.clone())
            .agents(self.agents.clone())
            .tags(self.tags.clone());
        if let Some(user) = self.user {
            query = query.user(user);
        }
        if let Some(tracked) = self.tracked {
            query = query.tracked(tracked);
        }
        if let Some(background) = self.background {
            query = query.background(background);
        }
        if let Some(reason) = self.reason {
            query = query.stop_reason(reason);
        }
        if let Some(source) = self.source {
            query = query.source_id(source);
        }
        if let Some(from) = self.from {
            query = query.created_from(from);
        }
        if let Some(until) = self.until {
            query = query.created_until(until);
        }
        if let Some(after) = self.after {
            query = query.after(after);
        }
        if let Some(before) = self.before {
            query = query.before(before);
        }
        query
    }

    /// What counters tell: whose and of which sort.
    fn passes_by_place(&self, job: &Job) -> bool {
        self.user.is_none_or(|user| job.user_id.as_deref() == Some(user))
            && within(&self.statuses, &job.status)
            && within(&self.types, &job.job_type)
            && (self.kinds.is_empty() || job.kind.as_deref().is_some_and(|kind| self.kinds.contains(&kind)))
            && self.tracked.is_none_or(|tracked| tracked == job.kind.is_none())
            && within(&self.queues, &job.queue.as_str())
            && within(&self.priorities, &job.priority)
            && self.background.is_none_or(|background| background == job.background)
    }

    fn has_others(&self) -> bool {
        !(self.agents.is_empty() && self.tags.is_empty() && self.reason.is_none() && self.source.is_none())
    }

    fn passes(&self, job: &Job) -> bool {
        let source = job.metadata.as_ref().and_then(|metadata| metadata.get("source_id")).and_then(|source| {
            source.as_str().map(str::to_owned).or_else(|| source.as_u64().map(|number| number.to_string()))
        });
        self.passes_by_place(job)
            && (self.agents.is_empty() || job.agent_id.as_deref().is_some_and(|agent| self.agents.contains(&agent)))
            && self.reason.is_none_or(|reason| job.stop_reason == Some(StopReason::from(reason)))
            && self.source.is_none_or(|wanted| source.as_deref() == Some(wanted))
            && self.tags.iter().all(|tag| job.tags.iter().any(|own| own == tag))
            && self.from.is_none_or(|from| job.created_at() >= from)
            && self.until.is_none_or(|until| job.created_at() < until)
            && self.after.is_none_or(|after| job.id > after)
            && self.before.is_none_or(|before| job.id < before)
    }
}

/// Walks all pages of a query.
fn walk(client: &Client, mut query: Query, limit: usize) -> jobmill::Result<Vec<Job>> {
    let mut found = Vec::new();
    query = query.limit(limit);
    loop {
        let page = client.list(query)?;
        assert!(page.jobs.len() <= limit);
        assert!(!page.has_more() || page.jobs.len() == limit, "a page that is followed by another is full");
        found.extend(page.jobs);
        match page.next {
            Some(next) => query = next,
            None => return Ok(found),
        }
    }
}

#[test]
fn every_query_gives_what_a_look_at_each_job_gives() -> jobmill::Result<()> {
    let mut dice = Dice(11);
    let (t, jobs, gone) = varied(&mut dice, 600)?;
    sound(t.client());
    assert!(jobs.len() > 450 && gone.len() > 5, "{} and {}", jobs.len(), gone.len());
    for status in Status::ALL {
        assert!(jobs.iter().filter(|job| job.status == status).count() > 10, "{status}");
    }
    let positions: Vec<JobId> = jobs.iter().map(|job| job.id).chain(gone).collect();
    // How often the sort of a job was read off ranges of their own, and how often off the rows of what the others found.
    let (mut by_ranges, mut by_rows, mut all_found) = (0, 0, 0);
    for round in 0..360 {
        let chance = [8, 15, 25, 45][round % 4];
        let asked = Asked::roll(&mut dice, chance, &positions);
        let mut expected: Vec<&Job> = jobs.iter().filter(|job| asked.passes(job)).collect();
        all_found += expected.len();
        let by_place = jobs.iter().filter(|job| asked.passes_by_place(job)).count();
        if asked.has_others() && by_place > 0 && by_place < jobs.len() && !expected.is_empty() {
            if by_place * 16 < jobs.len() {
                by_ranges += 1
            } else {
                by_rows += 1
            };
        }
        let order = dice.pick(&ORDERS);
        if order == Order::Descending {
            expected.reverse();
        }
        // Short pages are for short results, for the sake of time.
        let limit = if expected.len() < 12 { dice.pick(&[1, 2, 3, 7]) } else { dice.pick(&[9, 19, 50, 1000]) };
        let query = asked.query().order(order);
        let client = match asked.user {
            Some(user) if dice.percent(50) => t.client().for_user(user)?,
            _ => t.client().clone(),
        };
        // A bound client knows no cursor of another's.
        let foreign = |id: Option<JobId>| {
            id.is_some_and(|id| jobs.iter().any(|job| job.id == id && job.user_id.as_deref() != client.user()))
        };
        if client.user().is_some() && (foreign(asked.after) || foreign(asked.before)) {
            refused(client.list(query), ErrorKind::NotFound, "there is no job ");
            continue;
        }
        let found = match round % 3 {
            0 => client.jobs(query.limit(limit))?.collect::<jobmill::Result<Vec<Job>>>()?,
            _ => walk(&client, query, limit)?,
        };
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{asked:?} {order:?} by {limit}");
    }
    assert!(by_ranges > 15 && by_rows > 40 && all_found > 5000, "{by_ranges} {by_rows} {all_found}");
    Ok(())
}

/// A few hundred jobs that stay, and others between them that come and go.
#[test]
fn a_walk_meets_each_job_that_stays_once_while_others_come_go_and_move() -> jobmill::Result<()> {
    let t = idle()?;
    let mut dice = Dice(3);
    let job = |dice: &mut Dice| {
        NewJob::json("nobody's", &1).queue(dice.pick(&QUEUES)).priority(dice.pick(&Priority::ALL)).agent("a").user("u")
    };
    for query in [Query::new(), Query::new().agents(["a"]), Query::new().statuses([Status::Pending]).user("u")] {
        for order in ORDERS {
            let (mut staying, mut fleeting) = (BTreeSet::new(), Vec::new());
            for _ in 0..150 {
                staying.insert(t.enqueue(job(&mut dice))?);
                fleeting.push(t.enqueue(job(&mut dice))?);
            }
            let mut met = Vec::new();
            let limit = dice.pick(&[1, 7, 20]);
            for found in t.client().jobs(query.clone().order(order).limit(limit))? {
                met.push(found?.id);
                match dice.below(4) {
                    0 => fleeting.push(t.enqueue(job(&mut dice))?),
                    1 if !fleeting.is_empty() => {
                        let gone = fleeting.swap_remove(dice.below(fleeting.len()));
                        t.client().delete(gone)?;
                    }
                    2 => {
                        let moved = *staying.iter().nth(dice.below(staying.len())).expect("some stay");
                        t.client().set_queue(moved, dice.pick(&QUEUES))?;
                        t.client().set_priority(moved, dice.pick(&Priority::ALL))?;
                    }
                    _ => {}
                }
                // It comes to an end although jobs come in front of it.
                assert!(met.len() < 3000);
            }
            let once: HashSet<JobId> = met.iter().copied().collect();
            assert_eq!(once.len(), met.len(), "none twice");
            assert!(staying.iter().all(|id| once.contains(id)), "none missed");
            let mut sorted = met.clone();
            sorted.sort();
            assert_eq!(met, if order == Order::Ascending { sorted } else { reversed(&sorted) });
            t.client().select(Query::new())?.delete()?;
        }
    }
    sound(t.client());
    Ok(())
}

/// The same with another program at work at the same time.
#[test]
fn a_walk_goes_on_beside_another_program_that_writes() -> jobmill::Result<()> {
    let t = idle()?;
    let staying: Vec<JobId> = t
        .client()
        .enqueue_many((0..300).map(|n| NewJob::tracked().agent("a").queue(QUEUES[n % 3])))?
        .iter()
        .map(|enqueued| enqueued.id())
        .collect();
    let stranger = Client::open_with(t.path(), Durability::Normal)?;
    std::thread::scope(|scope| {
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let staying = &staying;
        scope.spawn(move || {
            let mut dice = Dice(5);
            let mut own = Vec::new();
            while stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Empty) {
                own.push(stranger.enqueue(NewJob::tracked().agent("a")).expect("a job").id());
                if own.len() > 20 {
                    stranger.delete(own.swap_remove(dice.below(own.len()))).expect("a deletion");
                }
                stranger.set_queue(dice.pick(staying), dice.pick(&QUEUES)).expect("a move");
            }
        });
        for round in 0..24 {
            let order = ORDERS[round % 2];
            let query = if round % 4 < 2 { Query::new() } else { Query::new().agents(["a"]).queues(QUEUES) };
            // What is newer than the newest that stays is not waited for, or an ascending walk would go on for long.
            let until = staying.last().copied().expect("some stay");
            let met: Vec<JobId> = t
                .client()
                .jobs(query.order(order).limit(13).before(until))
                .expect("a walk")
                .map(|job| job.expect("a page").id)
                .collect();
            let once: HashSet<JobId> = met.iter().copied().collect();
            assert_eq!(once.len(), met.len(), "none twice");
            assert!(staying[..299].iter().all(|id| once.contains(id)), "none missed");
        }
        drop(stop);
    });
    sound(t.client());
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
