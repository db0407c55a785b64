//! Pages and counts of a ledger of many users, by every filter.

use std::collections::BTreeMap;
use std::path::Path;

use jobmill::rusqlite::{Connection, params};
use jobmill::{Client, Job, Query};

use crate::asking::Depths;
use crate::floor;
use crate::report::{Report, Target, now, percentile, rounds, rows};

const USERS: i64 = 1000;
/// The jobs of one round for each filter.
const PAGES: usize = 300;

/// Writes jobs of every sort by SQL, a microsecond apart and a year ago, and counts them.
///
/// What each job is follows from its number by a hash, each trait by bits of its own: one of 1000 users, of 10 kinds (the
/// kind gives queue and type), of 4 priorities, in the background or not; two runs of three are of one of 5000 agents
/// and stopped for one of 8 reasons; every other job has one of 10,000 sources and one of 100 tags; 97 % are completed,
/// 1 % failed, and the rest is in one of the other states.
fn fill(path: &Path, count: usize) {
    let conn = Connection::open(path).expect("the file");
    for (pragma, value) in [("synchronous", 0), ("cache_size", -2 * 1024 * 1024), ("temp_store", 2)] {
        conn.pragma_update(None, pragma, value).expect("a pragma");
    }
    // Indexes are made when the rows are there: one by one they would take hours.
    let indexes: Vec<(String, String)> = conn
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'jobmill_job' AND sql <> ''")
        .and_then(|mut statement| statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .expect("the indexes");
    for (name, _) in &indexes {
        conn.execute_batch(&format!("DROP INDEX {name}")).expect("an index");
    }
    let mut lane = conn
        .prepare(
            "INSERT INTO jobmill_lane (id, queue, kind, priority, job_type, background, owned)
             VALUES (1 + ?1 * 8 + ?2 * 2 + ?3, 'queue-' || (?1 % 4), 'kind-' || ?1, ?2, max(0, ?1 - 7), ?3, 1)",
        )
        .expect("a statement");
    for kind in 0..10 {
        for priority in 0..4 {
            for background in 0..2 {
                lane.execute([kind, priority, background]).expect("a lane");
            }
        }
    }
    drop(lane);
    conn.execute(
        "INSERT INTO jobmill_share (id, lane, user_id)
         SELECT 1 + lane.id * ?1 + user.i, lane.id, 'user-' || user.i FROM jobmill_lane AS lane,
             (WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1) SELECT i FROM n) AS user",
        [USERS],
    )
    .expect("shares");
    let first = 1_760_000_000_000_000_i64;
    let mut done = 0;
    while done < count {
        let step = (count - done).min(500_000);
        conn.execute(
            "WITH RECURSIVE n (i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1 + ?2),
             -- Twice a multiplication by a large odd number, with the high bits folded down between.
             mixed (i, h) AS (SELECT i, ((i * 2654435761) & 0x7fffffffffff) FROM n),
             hash (i, h) AS (SELECT i, (((h >> 19) | (h << 13)) * 40503 + i * 7919) & 0x7fffffffffff FROM mixed),
             job (i, lane, user, state, h, kind) AS (
                 SELECT i, 1 + (h % 10) * 8 + ((h >> 5) & 3) * 2 + ((h >> 9) & 1), (h >> 7) % ?3,
                     CASE (h >> 17) % 100 WHEN 0 THEN 4 WHEN 1 THEN CASE (h >> 24) % 5
                         WHEN 0 THEN 0 WHEN 1 THEN 1 WHEN 2 THEN 5 WHEN 3 THEN 6 ELSE 4 END ELSE 3 END,
                     h, h % 10 FROM hash)
             INSERT INTO jobmill_job (id, lane, share, state, attempt, claim, max_attempts, owner, worker, started_at,
                 completed_at, agent_id, stop_reason, source_id, tags, metadata, payload, result)
             SELECT ((?4 + i) << 10) | (kind = 8), lane, 1 + lane * ?3 + user, state, 1, 1, 10, 1, 1, ?4 + i, ?4 + i,
                 CASE WHEN kind >= 4 AND i % 3 > 0 THEN 'agent-' || ((h >> 11) % 5000) END,
                 CASE WHEN kind >= 4 AND i % 3 > 0 THEN 'reason-' || ((h >> 13) % 8) END,
                 CASE WHEN i % 2 = 0 THEN 'source-' || ((h >> 3) % 10000) END,
                 CASE WHEN i % 2 = 0 THEN '[\"tag-' || ((h >> 15) % 100) || '\"]' END,
                 CASE WHEN i % 2 = 0 THEN '{\"source_id\":\"source-' || ((h >> 3) % 10000) || '\"}' END,
                 ?5, x'6e756c6c' FROM job",
            params![done as i64, step as i64, USERS, first, serde_json::to_vec(&floor::payload()).expect("a payload"),],
        )
        .expect("rows");
        done += step;
    }
    for (_, sql) in &indexes {
        conn.execute_batch(sql).expect("an index");
    }
    conn.execute_batch(
        "INSERT INTO jobmill_tag (tag, job)
             SELECT json_extract(tags, '$[0]') AS tag, id FROM jobmill_job WHERE tags IS NOT NULL ORDER BY tag, id;",
    )
    .expect("tags");
    count_all(&conn, "lane");
    count_all(&conn, "share");
    conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("a checkpoint");
}

/// Counts lanes or shares by their rows.
fn count_all(conn: &Connection, of: &str) {
    let states = ["created", "pending", "running", "completed", "failed", "cancelled", "expired", "delayed"];
    let sums: Vec<String> = (0..states.len()).map(|state| format!("sum(state = {state})")).collect();
    let sets: Vec<String> = states.iter().enumerate().map(|(at, state)| format!("{state} = counted.c{at}")).collect();
    let named: Vec<String> = sums.iter().enumerate().map(|(at, sum)| format!("{sum} AS c{at}")).collect();
    conn.execute_batch(&format!(
        "UPDATE jobmill_{of} SET {} FROM (SELECT {of} AS place, {} FROM jobmill_job GROUP BY {of}) AS counted
         WHERE counted.place = jobmill_{of}.id",
        sets.join(", "),
        named.join(", ")
    ))
    .expect("counts");
}

/// A filter that a job passes.
type Filter = fn(Query, &Job) -> Query;

const FILTERS: [(&str, Filter); 12] = [
    ("user", |query, job| query.user(job.user_id.clone().unwrap_or_default())),
    ("status", |query, job| query.statuses([job.status])),
    ("type", |query, job| query.job_types([job.job_type])),
    ("kind", |query, job| query.kinds(job.kind.clone())),
    ("queue", |query, job| query.queues([job.queue.clone()])),
    ("priority", |query, job| query.priorities([job.priority])),
    ("background", |query, job| query.background(job.background)),
    ("agent", |query, job| query.agents(job.agent_id.clone())),
    ("stop reason", |query, job| query.stop_reason(job.stop_reason.clone().expect("a reason"))),
    ("source", |query, job| {
        let source = job.metadata.as_ref().and_then(|metadata| metadata["source_id"].as_str());
        query.source_id(source.expect("a source"))
    }),
    ("tag", |query, job| query.tags(job.tags.clone())),
    ("time", |query, job| query.created_from(job.created_at())),
];

/// Jobs at many depths that have all traits.
fn samples(client: &Client) -> Vec<Job> {
    let mut depths = Depths::new(client);
    let mut jobs = Vec::new();
    while jobs.len() < PAGES {
        let page = client.list(Query::new().before(depths.next()).limit(40)).expect("a page");
        jobs.extend(page.jobs.into_iter().find(|job| job.agent_id.is_some() && !job.tags.is_empty()));
    }
    jobs
}

/// The 99th percentile in milliseconds of pages that filters give, after as many that are not counted.
fn p99(client: &Client, samples: &[Job], filter: impl Fn(Query, &Job) -> Query, found: &mut usize) -> f64 {
    let mut depths = Depths::new(client);
    let mut times = Vec::new();
    for job in samples.iter().chain(samples) {
        let query = filter(Query::new(), job);
        let query = if times.len() % 2 == 0 { query } else { query.before(depths.next()) };
        let began = now();
        let page = client.list(query).expect("a page");
        times.push(began.elapsed().as_secs_f64() * 1e3);
        *found += page.jobs.len();
    }
    percentile(&mut times[samples.len()..], 0.99)
}

pub fn ledger(report: &mut Report) {
    let directory = floor::directory();
    let (large, small) = (floor::fresh(&directory, "large"), floor::fresh(&directory, "small"));
    fill(&large, rows());
    fill(&small, 100_000);
    let (large, small) = (Client::open(&large).expect("a client"), Client::open(&small).expect("a client"));
    let (many, few) = (samples(&large), samples(&small));
    let all: Filter = |query, job| FILTERS.iter().fold(query, |query, (_, filter)| filter(query, job));
    let users: Filter = |query, job| FILTERS[1..8].iter().fold(FILTERS[0].1(query, job), |query, (_, f)| f(query, job));
    for (name, filter) in FILTERS.into_iter().chain([("user to agent together", users), ("all together", all)]) {
        let mut series = Vec::new();
        let mut found = 0;
        for _ in 0..rounds() {
            series.push((p99(&large, &many, filter, &mut found) * 1e3, p99(&small, &few, filter, &mut 0) * 1e3));
        }
        assert!(found > 0, "{name} finds nothing");
        let worst = series.iter().map(|round| round.0).fold(0.0, f64::max) / 1e3;
        let (count, name) = (rows(), format!("by {name}"));
        report.value(&format!("page of 50 of {count} {name}, worst p99"), worst, "ms", Target::AtMost(10.0));
        report.ratio(&format!("the same in us against 100,000 rows, {name}"), &series, Target::None);
    }

    let mut times = BTreeMap::from([("of all", Vec::new()), ("of one user", Vec::new())]);
    for job in &many {
        let user = large.for_user(job.user_id.clone().expect("a user")).expect("a client");
        for (name, client) in [("of all", &large), ("of one user", &user)] {
            let began = now();
            std::hint::black_box(client.stats().expect("counts"));
            times.get_mut(name).expect("a name").push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    for (name, mut times) in times {
        let name = format!("counts {name}, {} rows, p99", rows());
        report.value(&name, percentile(&mut times, 0.99), "ms", Target::AtMost(1.0));
    }
    let wrong: Vec<String> = small.verify().expect("a check");
    assert!(wrong.iter().all(|line| line.starts_with("integrity") || line.contains("running jobs")), "{wrong:?}");
}
