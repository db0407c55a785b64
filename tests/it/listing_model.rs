//! Random queries over a varied file, held against a look at each job; and walks beside others who write.

use std::collections::{BTreeSet, HashSet};

use jobmill::testing::Harness;
use jobmill::{
    Client, Context, Durability, ErrorKind, Failure, Job, JobId, JobType, JobUpdate, NewJob, Order, Outcome, Priority,
    Query, Status, StopReason, Timestamp,
};
use serde_json::json;

use crate::listing::{ORDERS, reversed};
use crate::support::{Dice, Echo, Other, idle, refused, secs, sound};

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
