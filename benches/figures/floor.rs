//! The floor: the same rows, indexes, payload and durability, written by the bare statements.
//!
//! The rows are those of the jobs and, once in each transaction, that of the lane which counts them. A floor without
//! counters is printed beside it where that row weighs most.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use jobmill::rusqlite::config::DbConfig;
use jobmill::rusqlite::{Connection, params};
use jobmill::{Client, Durability};
use tempfile::TempDir;

/// A payload of 200 bytes of JSON.
pub fn payload() -> String {
    let mut text = String::from("user 123456, note: ");
    while text.len() < 198 {
        text.push(char::from(b'a' + (text.len() % 26) as u8));
    }
    text
}

pub fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A file with our tables and nothing in it.
pub fn fresh(directory: &TempDir, name: &str) -> PathBuf {
    let path = directory.path().join(format!("{name}.db"));
    remove(&path);
    drop(Client::open(&path).expect("the tables"));
    path
}

pub fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
}

/// The bare statements on a file with our tables.
pub struct Floor {
    pub conn: Connection,
    last_id: i64,
    payload: Vec<u8>,
    counted: bool,
}

impl Floor {
    pub fn open(path: &Path, durability: Durability) -> Self {
        let conn = Connection::open(path).expect("the file");
        let synchronous = if durability == Durability::Full { "FULL" } else { "NORMAL" };
        conn.pragma_update(None, "synchronous", synchronous).expect("a pragma");
        conn.pragma_update(None, "cache_size", -16 * 1024).expect("a pragma");
        conn.pragma_update(None, "temp_store", "MEMORY").expect("a pragma");
        conn.busy_timeout(Duration::from_secs(10)).expect("a timeout");
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).expect("a setting");
        conn.execute(
            "INSERT INTO jobmill_lane (id, queue, kind, priority, job_type, background, owned)
             VALUES (1, 'default', 'floor', 2, 0, 0, 0) ON CONFLICT DO NOTHING",
            [],
        )
        .expect("a lane");
        let last_id = conn
            .query_row("SELECT coalesce(max(id), 1790000000000000 << 10) FROM jobmill_job", [], |row| row.get(0))
            .expect("the newest id");
        let payload = serde_json::to_vec(&payload()).expect("a payload");
        Self { conn, last_id, payload, counted: true }
    }

    /// The same without counters.
    pub fn without_counters(self) -> Self {
        Self { counted: false, ..self }
    }

    pub fn begin(&self) {
        self.conn.prepare_cached("BEGIN IMMEDIATE").and_then(|mut begin| begin.execute([])).expect("a transaction");
    }

    /// Commits what has changed the counts by this much.
    pub fn commit(&self, pending: i64, running: i64, completed: i64) {
        if self.counted {
            self.conn
                .prepare_cached(
                    "UPDATE jobmill_lane SET pending = pending + ?1, running = running + ?2, completed = completed + ?3
                     WHERE id = 1",
                )
                .and_then(|mut count| count.execute([pending, running, completed]))
                .expect("counts");
        }
        self.conn.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])).expect("a commit");
    }

    pub fn insert(&mut self) -> i64 {
        self.last_id += 1024;
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_job (id, lane, state, max_attempts, payload) VALUES (?1, 1, 1, 10, ?2)",
            )
            .and_then(|mut insert| insert.execute(params![self.last_id, self.payload]))
            .expect("an insert");
        self.last_id
    }

    pub fn claim(&self, count: usize) -> Vec<i64> {
        let mut statement = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_job SET state = 2, attempt = attempt + 1, claim = claim + 1, owner = 1, started_at = ?1
                 WHERE id IN (SELECT id FROM jobmill_job WHERE lane = 1 AND state = 1 ORDER BY id LIMIT ?2)
                 RETURNING id, payload",
            )
            .expect("a statement");
        let claimed = statement
            .query_map(params![self.last_id >> 10, count as i64], |row| {
                let payload: Vec<u8> = row.get(1)?;
                std::hint::black_box(payload);
                row.get(0)
            })
            .expect("a claim");
        claimed.collect::<Result<_, _>>().expect("claimed rows")
    }

    pub fn finish(&self, id: i64) {
        let changed = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_job SET state = 3, completed_at = ?2, worker = 1, result = x'6e756c6c'
                 WHERE id = ?1 AND claim = 1 AND state = 2",
            )
            .and_then(|mut finish| finish.execute(params![id, self.last_id >> 10]))
            .expect("an end");
        assert_eq!(changed, 1);
    }

    /// Whole lives in three transactions, `batch` jobs in each.
    pub fn lives(&mut self, count: usize, batch: usize) {
        for _ in 0..count / batch {
            self.begin();
            for _ in 0..batch {
                self.insert();
            }
            self.commit(batch as i64, 0, 0);
            self.begin();
            let claimed = self.claim(batch);
            self.commit(-(batch as i64), batch as i64, 0);
            assert_eq!(claimed.len(), batch);
            self.begin();
            for id in claimed {
                self.finish(id);
            }
            self.commit(0, -(batch as i64), batch as i64);
        }
    }

    /// Claims and ends what waits, `batch` jobs in a transaction, the ends of one batch with the claims of the next.
    pub fn drain(&self, count: usize, batch: usize) {
        let mut claimed: Vec<i64> = Vec::new();
        let mut done = 0;
        while done < count {
            self.begin();
            for id in &claimed {
                self.finish(*id);
            }
            let ended = claimed.len();
            done += ended;
            claimed = self.claim(batch);
            let began = claimed.len() as i64;
            self.commit(-began, began - ended as i64, ended as i64);
        }
    }

    /// One-row inserts by `callers` threads, each awaiting its commit, through a thread that writes in groups.
    pub fn enqueue_by_writer_thread(mut self, count: usize, callers: usize) {
        let (sender, receiver) = mpsc::channel::<mpsc::SyncSender<i64>>();
        let writer = move || {
            while let Ok(first) = receiver.recv() {
                self.begin();
                let mut answers = vec![(first, self.insert())];
                while let Ok(next) = receiver.try_recv() {
                    answers.push((next, self.insert()));
                }
                self.commit(answers.len() as i64, 0, 0);
                for (reply, id) in answers {
                    reply.send(id).expect("a caller who waits");
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(writer);
            for _ in 0..callers {
                let sender = sender.clone();
                scope.spawn(move || {
                    for _ in 0..count / callers {
                        let (reply, answer) = mpsc::sync_channel(1);
                        sender.send(reply).expect("a writer");
                        answer.recv().expect("an answer");
                    }
                });
            }
            drop(sender);
        });
    }
}
