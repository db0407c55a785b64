//! The judge: reads the file by a connection of its own and by the public client, and holds it against the journal.
//! It judges only while no process is alive.

use std::collections::HashMap;
use std::path::PathBuf;

use jobmill::rusqlite::{Connection, OpenFlags};
use jobmill::{Client, Durability, Order, Query, Status};

use crate::child::{How, Work, database, journal};
use crate::journal::{Account, Cut, Story, raw};

/// A row of the table of jobs, as SQL alone tells it.
#[derive(Clone, Debug)]
struct Row {
    state: i64,
    attempt: i64,
    max_attempts: i64,
    cancel_requested: bool,
    completed_at: Option<i64>,
    unique_key: Option<String>,
    error: Option<String>,
    result: Option<String>,
    work: How,
    group: Option<(u64, usize)>,
}

impl Row {
    fn status(&self) -> Status {
        status(self.state)
    }

    fn has_ended(&self) -> bool {
        self.status().is_terminal()
    }

    /// Attempts of which the outcome is settled.
    fn settled(&self) -> i64 {
        self.attempt - i64::from(self.state == 2)
    }
}

/// What was seen at the last judgement.
pub(crate) struct Oracle {
    directory: PathBuf,
    account: Account,
    seen: HashMap<i64, (Row, u32, usize)>,
}

impl Oracle {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, account: Account::default(), seen: HashMap::new() }
    }

    /// How many times a process was killed or killed itself.
    pub(crate) fn deaths(&self) -> usize {
        self.account.gone.values().filter(|cut| **cut == Cut::Died).count()
    }

    /// How many attempts were begun.
    pub(crate) fn attempts(&self) -> usize {
        self.account.stories.values().map(|story| story.begun.len()).sum()
    }

    /// Every promise that is broken, in words. `drained` says that every job must have ended.
    pub(crate) fn judge(&mut self, drained: bool) -> Vec<String> {
        self.account.read(&journal(&self.directory));
        let mut wrong = std::mem::take(&mut self.account.wrong);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(database(&self.directory), flags).expect("the file opens");
        let rows = rows(&conn);
        let tracked = tracked(&conn);

        wrong.extend(file(&conn));
        let client = Client::open_with(database(&self.directory), Durability::Normal).expect("a client");
        wrong.extend(client.verify().expect("the file reads"));
        wrong.extend(counted(&client, &rows, &tracked));
        wrong.extend(tallied(&conn, &rows, &self.account));
        if drained {
            wrong.extend(listed(&client, &rows, &tracked));
        }
        wrong.extend(forward(&self.account.tracked, &tracked));

        for (&id, story) in &self.account.stories {
            let told = match rows.get(&id) {
                Some(row) => judge_job(story, row, drained),
                None if story.acknowledged || !story.begun.is_empty() => vec!["is lost".to_owned()],
                None => Vec::new(),
            };
            wrong.extend(told.into_iter().map(|told| format!("{id}: {told}: {:?} {story:?}", rows.get(&id))));
        }
        for (id, (before, retries, snoozes)) in &self.seen {
            let Some(row) = rows.get(id) else {
                wrong.push(format!("{id}: is gone"));
                continue;
            };
            let story = self.account.stories.get(id).cloned().unwrap_or_default();
            wrong.extend(
                judge_step(before, row, story.retries > *retries, snooze_count(&story) > *snoozes)
                    .map(|told| format!("{id}: {told}: from {before:?} to {row:?} {story:?}")),
            );
        }
        wrong.extend(companions(&conn, &rows));
        wrong.extend(effects(&conn, &rows, &self.account));
        wrong.extend(groups(&rows));
        wrong.extend(unique(&rows));

        let account = &self.account;
        self.seen = rows
            .into_iter()
            .map(|(id, row)| {
                let story = account.stories.get(&id);
                (id, (row, story.map_or(0, |story| story.retries), story.map_or(0, snooze_count)))
            })
            .collect();
        wrong
    }

    /// How many attempts were spent by a death without their handler having been heard of.
    pub(crate) fn spent_unheard(&self) -> i64 {
        let unheard = |(id, (row, _, _)): (&i64, &(Row, u32, usize))| {
            let heard = self.account.stories.get(id).map_or(0, |story| story.begun.len());
            // A job that was cancelled after its claim has spent an attempt without a handler.
            if row.cancel_requested { 0 } else { (row.settled() - heard as i64).max(0) }
        };
        self.seen.iter().map(unheard).sum()
    }

    /// Status, attempts and error of a job.
    pub(crate) fn end_of(&self, id: &str) -> (Status, i64, Option<String>) {
        let (row, _, _) = &self.seen[&raw(id).expect("an id")];
        (row.status(), row.attempt, row.error.clone())
    }

    /// How many jobs have failed.
    pub(crate) fn failed(&self) -> usize {
        self.seen.values().filter(|(row, _, _)| row.status() == Status::Failed).count()
    }
}

fn rows(conn: &Connection) -> HashMap<i64, Row> {
    let mut statement = conn
        .prepare(
            "SELECT id, state, attempt, max_attempts, cancel_requested_at IS NOT NULL, completed_at, unique_key, error,
                    CAST(result AS TEXT), CAST(payload AS TEXT)
             FROM jobmill_job WHERE lane IN (SELECT id FROM jobmill_lane WHERE kind <> '')",
        )
        .expect("the table of jobs");
    let rows = statement.query_map([], |row| {
        let work: Work = serde_json::from_str(&row.get::<_, String>(9)?).expect("a payload as it was given");
        let result = row.get::<_, Option<String>>(8)?.map(|json| serde_json::from_str(&json).expect("a result"));
        let job = Row {
            state: row.get(1)?,
            attempt: row.get(2)?,
            max_attempts: row.get(3)?,
            cancel_requested: row.get(4)?,
            completed_at: row.get(5)?,
            unique_key: row.get(6)?,
            error: row.get(7)?,
            result,
            work: work.how,
            group: work.group,
        };
        Ok((row.get(0)?, job))
    });
    rows.expect("rows").collect::<Result<_, _>>().expect("rows")
}

fn status(state: i64) -> Status {
    match state {
        0 => Status::Created,
        1 | 7 => Status::Pending,
        2 => Status::Running,
        3 => Status::Completed,
        4 => Status::Failed,
        5 => Status::Cancelled,
        6 => Status::Expired,
        other => panic!("no state has the number {other}"),
    }
}

/// The statuses of the tracked jobs, as SQL alone tells them.
fn tracked(conn: &Connection) -> HashMap<i64, i64> {
    let mut statement = conn
        .prepare("SELECT id, state FROM jobmill_job WHERE lane IN (SELECT id FROM jobmill_lane WHERE kind = '')")
        .expect("the table of jobs");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.expect("rows").collect::<Result<_, _>>().expect("rows")
}

/// A tracked job stands where it was last acknowledged to stand, or further, and what had ended stays so.
fn forward(acknowledged: &HashMap<i64, String>, rows: &HashMap<i64, i64>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (id, status) in acknowledged {
        let least = Status::ALL.iter().position(|known| known.as_str() == status).expect("a status") as i64;
        match rows.get(id) {
            None => wrong.push(format!("{id}: is tracked as {status} and is lost")),
            Some(state) if *state < least || least > 2 && *state != least => {
                wrong.push(format!("{id}: is tracked as {status} and stands at {state}"));
            }
            Some(_) => {}
        }
    }
    wrong
}

/// What is wrong with the file itself, and with the counts in it, by statements of our own.
fn file(conn: &Connection) -> Vec<String> {
    let mut wrong = Vec::new();
    let sound: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
    if sound != "ok" {
        wrong.push(format!("integrity_check: {sound}"));
    }
    let names = ["created", "pending", "running", "completed", "failed", "cancelled", "expired", "delayed"];
    for (state, name) in names.into_iter().enumerate() {
        let query = format!(
            "SELECT (SELECT coalesce(sum({name}), 0) FROM jobmill_lane),
                    (SELECT count(*) FROM jobmill_job WHERE state = {state})"
        );
        let (counted, there): (i64, i64) =
            conn.query_row(&query, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("two counts");
        if counted != there {
            wrong.push(format!("{counted} jobs are counted as {name}, and there are {there}"));
        }
        let query = format!(
            "SELECT user_id, sum({name}), (SELECT count(*) FROM jobmill_job WHERE state = {state} AND share IN
                 (SELECT id FROM jobmill_share AS own WHERE own.user_id = jobmill_share.user_id))
             FROM jobmill_share GROUP BY user_id"
        );
        let mut statement = conn.prepare(&query).expect("the shares");
        let mut users = statement.query([]).expect("the shares");
        while let Some(row) = users.next().expect("a share") {
            let (user, counted, there): (String, i64, i64) =
                (row.get(0).expect("a user"), row.get(1).expect("a count"), row.get(2).expect("a count"));
            if counted != there {
                wrong.push(format!("{counted} jobs of {user} are counted as {name}, and there are {there}"));
            }
        }
    }
    wrong
}

/// What is wrong with the counts that the client shows.
fn counted(client: &Client, rows: &HashMap<i64, Row>, tracked: &HashMap<i64, i64>) -> Option<String> {
    let mut there: HashMap<Status, u64> = HashMap::new();
    for status in rows.values().map(Row::status).chain(tracked.values().map(|state| status(*state))) {
        *there.entry(status).or_default() += 1;
    }
    let told = client.stats().expect("the counts").total;
    let same = Status::ALL.into_iter().all(|status| told.of(status) == there.get(&status).copied().unwrap_or(0));
    (!same).then(|| format!("the client counts {told:?}, and there are {there:?}"))
}

/// What is wrong with the counters of all time, but for those of tracked jobs. A killed process takes what it has counted last with it. One that ended
/// in peace has written all of it, and what a transaction of the application's completes is counted in it. Nothing is
/// counted twice.
fn tallied(conn: &Connection, rows: &HashMap<i64, Row>, account: &Account) -> Option<String> {
    let tallied: i64 = conn
        .query_row(
            "SELECT coalesce(sum(json_extract(tally, '$.completed')), 0) FROM jobmill_tally
             WHERE resolution <= 0 AND lane IN (SELECT id FROM jobmill_lane WHERE kind <> '')",
            [],
            |row| row.get(0),
        )
        .expect("the tallies");
    let is_safe = |row: &&Row| {
        let pid = row.result.as_ref().and_then(|token| token.split('-').next()?.parse().ok());
        row.work == How::EffectOfItsOwn || pid.is_some_and(|pid| account.left.contains(&pid))
    };
    let completed: Vec<&Row> = rows.values().filter(|row| row.status() == Status::Completed).collect();
    let safe = completed.iter().copied().filter(is_safe).count() as i64;
    let all = completed.len() as i64;
    let wrong = format!("{tallied} jobs are counted as completed, and that must be from {safe} to {all}");
    (!(safe..=all).contains(&tallied)).then_some(wrong)
}

/// What is wrong with the pages that the client shows.
fn listed(client: &Client, rows: &HashMap<i64, Row>, tracked: &HashMap<i64, i64>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut next = Some(Query::new().order(Order::Ascending).limit(1000));
    let mut found = 0;
    while let Some(query) = next {
        let page = client.list(query).expect("a page");
        for job in &page.jobs {
            found += 1;
            if job.is_tracked() {
                continue;
            }
            match raw(&job.id.to_string()).and_then(|id| rows.get(&id)) {
                Some(row) if row.status() == job.status && row.attempt == i64::from(job.attempt) => {}
                row => wrong.push(format!("{} is listed as {} and stands as {row:?}", job.id, job.status)),
            }
        }
        next = page.next;
    }
    if found != rows.len() + tracked.len() {
        wrong.push(format!("{found} jobs are listed, and there are {} and {} tracked", rows.len(), tracked.len()));
    }
    wrong
}

fn judge_job(story: &Story, row: &Row, drained: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    if row.attempt > row.max_attempts {
        wrong.push("has more attempts than it may have".to_owned());
    }
    if drained && !row.has_ended() {
        wrong.push("has not ended".to_owned());
    }
    if row.has_ended() != row.completed_at.is_some() {
        wrong.push("its end and the moment of its end do not agree".to_owned());
    }
    if (row.status() == Status::Completed) != row.result.is_some() {
        wrong.push("its status and its result do not agree".to_owned());
    }
    // The attempts that counted, in their order: each has a number above the one before.
    let mut least = 1;
    for begun in &story.begun {
        // An attempt may be abandoned before the first word of its handler, which its successor then overtakes.
        let is_late = i64::from(begun.attempt) < least;
        if is_late && !matches!(row.work, How::Overdue(_)) {
            wrong.push(format!("attempt {} begins after one that counted as {}", begun.attempt, least - 1));
        }
        let unspent = begun.end.as_deref() == Some("snooze") || begun.cut == Some(Cut::Left);
        least = least.max(i64::from(begun.attempt) + i64::from(!unspent));
    }
    if row.attempt < least - 1 {
        wrong.push(format!("has {} attempts, and one counted as {}", row.attempt, least - 1));
    }
    if let Some(result) = &row.result
        && !story.begun.iter().any(|begun| begun.token == *result && i64::from(begun.attempt) == row.attempt)
    {
        wrong.push("its result is not that of the attempt that counts".to_owned());
    }
    if row.status() == Status::Cancelled && story.cancels == 0 && row.work != How::CancelsItself {
        wrong.push("is cancelled, and nobody asked for it".to_owned());
    }
    if story.retries > 0 {
        return wrong;
    }
    match story.cancelled.as_deref() {
        Some("Now" | "Already") if row.status() != Status::Cancelled => {
            wrong.push("its cancellation was acknowledged and is lost".to_owned());
        }
        Some("Requested") if !row.cancel_requested => {
            wrong.push("the request for its cancellation was acknowledged and is lost".to_owned());
        }
        _ => {}
    }
    // The attempt that was claimed when the request came may begin still; no other may.
    let late = story.begun.iter().filter(|begun| begun.after_cancel).count();
    if late > usize::from(!story.cancelled_under_way) && !matches!(row.work, How::Overdue(_)) {
        wrong.push(format!("{late} attempts began after its cancellation was acknowledged"));
    }
    for (status, at, token) in &story.ends {
        let same = row.status().as_str() == status
            && row.completed_at == Some(*at)
            && (token == "-" || row.result.as_deref() == Some(token));
        if !same {
            wrong.push(format!("was shown to have ended as {status} at {at} by {token}"));
        }
    }
    wrong
}

/// What is wrong with how a row came from where it stood to where it stands.
fn judge_step(before: &Row, row: &Row, retried: bool, snoozed: bool) -> Option<String> {
    let same_end = row.state == before.state && row.completed_at == before.completed_at && row.result == before.result;
    if before.has_ended() && !same_end && !(retried && before.status() != Status::Completed) {
        return Some("its end has changed".to_owned());
    }
    if row.settled() < before.settled() && !snoozed {
        return Some("its attempts have become fewer".to_owned());
    }
    if row.max_attempts != before.max_attempts && !retried {
        return Some("it may have another number of attempts".to_owned());
    }
    None
}

fn snooze_count(story: &Story) -> usize {
    story.begun.iter().filter(|begun| begun.end.as_deref() == Some("snooze")).count()
}

fn column(conn: &Connection, query: &str) -> Vec<(String, Option<String>)> {
    let mut statement = conn.prepare(query).expect("a table of the application's");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
    rows.collect::<Result<_, _>>().expect("rows")
}

/// A job and the application's row that was written in its transaction are there together or not at all.
fn companions(conn: &Connection, rows: &HashMap<i64, Row>) -> Vec<String> {
    let companions = column(conn, "SELECT job, NULL FROM companion");
    let lost = |id: &&String| raw(id).is_none_or(|id| !rows.contains_key(&id));
    let mut wrong: Vec<String> = companions
        .iter()
        .map(|(id, _)| id)
        .filter(lost)
        .map(|id| format!("{id} has a companion and is lost"))
        .collect();
    let alone = rows.values().filter(|row| row.group.is_some_and(|(_, size)| size == 1)).count();
    if alone != companions.len() {
        wrong.push(format!("{} companions are there for {alone} jobs", companions.len()));
    }
    wrong
}

/// An effect that was written together with its job's end is there exactly once, and only then.
fn effects(conn: &Connection, rows: &HashMap<i64, Row>, account: &Account) -> Vec<String> {
    let mut wrong = Vec::new();
    let effects: HashMap<i64, String> = column(conn, "SELECT job, token FROM effect")
        .into_iter()
        .filter_map(|(id, token)| Some((raw(&id)?, token?)))
        .collect();
    for (id, row) in rows.iter().filter(|(_, row)| matches!(row.work, How::Effect | How::EffectOfItsOwn)) {
        let done = row.status() == Status::Completed;
        if done != effects.contains_key(id) || done && row.result.as_ref() != effects.get(id) {
            let (effect, story) = (effects.get(id), account.stories.get(id));
            wrong.push(format!("{id}: its end and its effect {effect:?} do not agree: {row:?} {story:?}"));
        }
    }
    wrong
}

/// Of jobs that were enqueued together, all are there or none.
fn groups(rows: &HashMap<i64, Row>) -> Vec<String> {
    let mut sizes: HashMap<(u64, usize), usize> = HashMap::new();
    for group in rows.values().filter_map(|row| row.group) {
        *sizes.entry(group).or_default() += 1;
    }
    let torn = sizes.into_iter().filter(|((_, size), there)| size != there);
    torn.map(|((_, size), there)| format!("{there} of {size} jobs that were enqueued together are there")).collect()
}

/// No two jobs hold the same key.
fn unique(rows: &HashMap<i64, Row>) -> Vec<String> {
    let mut holders: HashMap<&str, usize> = HashMap::new();
    for key in rows.values().filter(|row| !row.has_ended()).filter_map(|row| row.unique_key.as_deref()) {
        *holders.entry(key).or_default() += 1;
    }
    let shared = holders.into_iter().filter(|(_, count)| *count > 1);
    shared.map(|(key, count)| format!("{count} jobs hold {key:?}")).collect()
}
