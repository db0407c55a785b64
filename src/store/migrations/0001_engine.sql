-- The engine: jobs, the lanes they run in, what rides beside them, and who works on the file.

-- What there is one of: the schema's version and the newest id ever given to a row that may be gone.
CREATE TABLE jobmill_meta (
    key   TEXT    NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A lane is all jobs of one queue, kind and priority. It names them for its jobs and counts them by state, so that
-- a job's row holds one small number instead of two words, and no count ever reads a job.
CREATE TABLE jobmill_lane (
    id        INTEGER NOT NULL PRIMARY KEY,
    queue     TEXT    NOT NULL,
    kind      TEXT    NOT NULL,
    priority  INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 3),
    created   INTEGER NOT NULL DEFAULT 0,
    pending   INTEGER NOT NULL DEFAULT 0,
    running   INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed    INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    expired   INTEGER NOT NULL DEFAULT 0,
    delayed   INTEGER NOT NULL DEFAULT 0,
    UNIQUE (queue, kind, priority)
) STRICT;

-- What is set for a queue as a whole. A queue without a row has nothing set.
CREATE TABLE jobmill_queue (
    name      TEXT    NOT NULL PRIMARY KEY,
    paused_at INTEGER
) STRICT, WITHOUT ROWID;

-- Times are microseconds since the Unix epoch. The id holds the time of creation.
CREATE TABLE jobmill_job (
    id                  INTEGER NOT NULL PRIMARY KEY,
    lane                INTEGER NOT NULL,
    -- 0 created, 1 pending, 2 running, 3 completed, 4 failed, 5 cancelled, 6 expired; 7 is pending too, with a run_at
    -- of its own.
    state               INTEGER NOT NULL CHECK (state BETWEEN 0 AND 7),
    attempt             INTEGER NOT NULL DEFAULT 0,
    claim               INTEGER NOT NULL DEFAULT 0,  -- how often it was claimed: the fencing token of the last claim
    max_attempts        INTEGER NOT NULL,
    owner               INTEGER,                     -- the instance of the last claim; null while the job waits
    worker              INTEGER,                     -- the worker of the last attempt that ended
    run_at              INTEGER,                     -- null: the time of creation
    started_at          INTEGER,
    completed_at        INTEGER,
    expires_at          INTEGER,
    timeout_us          INTEGER,
    cancel_requested_at INTEGER,
    ttft_ns             INTEGER,
    backoff             TEXT,                        -- JSON; null: the engine's
    user_id             TEXT,
    agent_id            TEXT,
    unique_key          TEXT,                        -- with its scope, as in jobmill_unique
    tags                TEXT,                        -- JSON array; null: none
    metadata            TEXT,                        -- JSON object
    error               TEXT,
    payload             BLOB,                        -- JSON; null: in jobmill_payload
    result              BLOB                         -- JSON
) STRICT;

-- Serves the claim (pending, by id), every list (a status in a lane, by id), the rescue (running) and the pruning.
CREATE INDEX jobmill_job_place ON jobmill_job (lane, state);
-- Serves the claim of jobs whose run_at is not their time of creation, so that future ones are never stepped over.
CREATE INDEX jobmill_job_delayed ON jobmill_job (lane, run_at) WHERE state = 7;
-- Serves the expiry.
CREATE INDEX jobmill_job_expiry ON jobmill_job (expires_at) WHERE expires_at IS NOT NULL AND state IN (0, 1, 7);

-- Payloads too long for the job's row, which each change of status writes anew.
CREATE TABLE jobmill_payload (
    job     INTEGER NOT NULL PRIMARY KEY,
    payload BLOB    NOT NULL
) STRICT;

CREATE TABLE jobmill_tag (
    tag TEXT    NOT NULL,
    job INTEGER NOT NULL,
    PRIMARY KEY (tag, job)
) STRICT, WITHOUT ROWID;

-- Who holds a unique key: in the statuses whose bits are set, and until then if there is a then.
CREATE TABLE jobmill_unique (
    key       TEXT    NOT NULL PRIMARY KEY,
    job       INTEGER NOT NULL,
    statuses  INTEGER NOT NULL,
    period_us INTEGER
) STRICT, WITHOUT ROWID;
-- Serves the retry and the pruning of the job that holds it.
CREATE INDEX jobmill_unique_job ON jobmill_unique (job);

-- The attempts that the job's own row does not tell of: all but its newest.
CREATE TABLE jobmill_attempt (
    job        INTEGER NOT NULL,
    claim      INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER NOT NULL,
    outcome    INTEGER NOT NULL,
    error      TEXT,
    owner      INTEGER,
    worker     INTEGER,
    PRIMARY KEY (job, claim)
) STRICT, WITHOUT ROWID;

-- What a running handler tells of itself: how far it is, and the state that its next attempt gets back.
CREATE TABLE jobmill_progress (
    job   INTEGER NOT NULL PRIMARY KEY,
    done  INTEGER NOT NULL,
    total INTEGER,
    note  TEXT
) STRICT;
CREATE TABLE jobmill_saved (
    job   INTEGER NOT NULL PRIMARY KEY,
    value BLOB    NOT NULL
) STRICT;
CREATE TABLE jobmill_log (
    job     INTEGER NOT NULL,
    line_no INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    line    TEXT    NOT NULL,
    PRIMARY KEY (job, line_no)
) STRICT, WITHOUT ROWID;

-- Running jobs that somebody outside their process wants to stop.
CREATE TABLE jobmill_signal (
    job   INTEGER NOT NULL PRIMARY KEY,
    owner INTEGER NOT NULL
) STRICT;
-- Serves the owner's look for its signals.
CREATE INDEX jobmill_signal_owner ON jobmill_signal (owner);

-- The engines that work on this file or did. An engine is alive while it holds the lock on the file that it names.
CREATE TABLE jobmill_instance (
    id         INTEGER NOT NULL PRIMARY KEY,
    lock_file  TEXT    NOT NULL,
    host       TEXT    NOT NULL,
    process    INTEGER NOT NULL,
    kinds      TEXT    NOT NULL,  -- JSON array of the kinds that it has handlers for
    port       INTEGER,           -- of its bell on the loopback interface; null: it has none, and looks often
    started_at INTEGER NOT NULL,
    beat_at    INTEGER,           -- its last heartbeat; null: its lock tells that it lives
    ended_at   INTEGER
) STRICT;
-- Serves the look for the dead.
CREATE INDEX jobmill_instance_open ON jobmill_instance (id) WHERE ended_at IS NULL;
