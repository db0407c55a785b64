-- Time and order: limits, and what a job's row must tell for workflows.

-- The jobs are made anew, for a state has come, and what only some of them have.
DROP INDEX jobmill_job_place;
DROP INDEX jobmill_job_delayed;
DROP INDEX jobmill_job_expiry;
DROP INDEX jobmill_job_share;
DROP INDEX jobmill_job_share_delayed;
DROP INDEX jobmill_job_agent;
DROP INDEX jobmill_job_source;
DROP INDEX jobmill_job_stop_reason;
ALTER TABLE jobmill_job RENAME TO jobmill_old_job;

-- Times are microseconds since the Unix epoch. The id holds the time of creation.
CREATE TABLE jobmill_job (
    id                  INTEGER NOT NULL PRIMARY KEY,
    lane                INTEGER NOT NULL,
    -- 0 created, 1 pending, 2 running, 3 completed, 4 failed, 5 cancelled, 6 expired; two more are pending too: 7 has a
    -- run_at of its own, 8 is held by a limit.
    state               INTEGER NOT NULL CHECK (state BETWEEN 0 AND 8),
    share               INTEGER,                     -- its user's share of the lane; null: it has no user
    attempt             INTEGER NOT NULL DEFAULT 0,
    claim               INTEGER NOT NULL DEFAULT 0,  -- how often it was claimed: the fencing token of the last claim
    max_attempts        INTEGER NOT NULL,
    owner               INTEGER,                     -- the instance of the last claim; null while the job waits
    worker              INTEGER,                     -- the worker of the last attempt that ended
    run_at              INTEGER,                     -- null: the time of creation; negative: so long after the admission
    started_at          INTEGER,
    completed_at        INTEGER,
    expires_at          INTEGER,
    timeout_us          INTEGER,
    cancel_requested_at INTEGER,
    updated_at          INTEGER,                     -- when it last changed, if none of the moments above tells
    detail              INTEGER,                     -- bits: 1 there is a row in jobmill_detail, 2 its user has created it
    backoff             TEXT,                        -- JSON; null: the engine's
    agent_id            TEXT,
    source_id           TEXT,                        -- of the metadata, where it can be searched for
    stop_reason         TEXT,
    callback_url        TEXT,
    unique_key          TEXT,                        -- with its scope, as in jobmill_unique
    tags                TEXT,                        -- JSON array; null: none
    metadata            TEXT,                        -- JSON object
    error               TEXT,
    payload             BLOB,                        -- JSON, empty: none; null: in jobmill_payload
    result              BLOB,                        -- JSON
    flow                INTEGER,                     -- the workflow, or the stage of one, that counts it; null: none
    limits              TEXT,                        -- JSON array of pairs, a gate and what the job takes of it; null: none
    line                INTEGER,                     -- in which line it stands, if it is held
    weight              INTEGER,                     -- what it takes of the engine's capacity; null: 1
    cost                INTEGER,                     -- what it takes of the rate of its queue; null: 1
    followers           INTEGER,                     -- 1: jobs wait for its end; null: none
    end_reason          INTEGER                      -- why it failed, where its status does not tell
) STRICT;

INSERT INTO jobmill_job (id, lane, state, share, attempt, claim, max_attempts, owner, worker, run_at, started_at, completed_at,
        expires_at, timeout_us, cancel_requested_at, updated_at, detail, backoff, agent_id, source_id, stop_reason,
        callback_url, unique_key, tags, metadata, error, payload, result)
    SELECT id, lane, state, share, attempt, claim, max_attempts, owner, worker, run_at, started_at, completed_at,
        expires_at, timeout_us, cancel_requested_at, updated_at, detail, backoff, agent_id, source_id, stop_reason,
        callback_url, unique_key, tags, metadata, error, payload, result
    FROM jobmill_old_job ORDER BY id;
DROP TABLE jobmill_old_job;

-- Serves the claim (pending, by id), every list (a status in a lane, by id), the rescue (running) and the pruning.
CREATE INDEX jobmill_job_place ON jobmill_job (lane, state);
-- Serves the claim of jobs whose run_at is not their time of creation, so that future ones are never stepped over.
CREATE INDEX jobmill_job_delayed ON jobmill_job (lane, run_at) WHERE state = 7;
-- Serves the expiry.
CREATE INDEX jobmill_job_expiry ON jobmill_job (expires_at) WHERE expires_at IS NOT NULL AND state IN (0, 1, 7, 8);
-- Serve the lists of one user, and the claim when users take turns.
CREATE INDEX jobmill_job_share ON jobmill_job (share, state) WHERE share IS NOT NULL;
CREATE INDEX jobmill_job_share_delayed ON jobmill_job (share, run_at) WHERE state = 7 AND share IS NOT NULL;
-- Serve the lists by what few jobs have in common. Jobs that have none of it cost nothing here.
CREATE INDEX jobmill_job_agent ON jobmill_job (agent_id) WHERE agent_id IS NOT NULL;
CREATE INDEX jobmill_job_source ON jobmill_job (source_id) WHERE source_id IS NOT NULL;
CREATE INDEX jobmill_job_stop_reason ON jobmill_job (stop_reason) WHERE stop_reason IS NOT NULL;
-- Serves the lists of dead letters by reason.
CREATE INDEX jobmill_job_end_reason ON jobmill_job (end_reason) WHERE end_reason IS NOT NULL;
-- Serves the claim by deadline.
CREATE INDEX jobmill_job_deadline ON jobmill_job (lane, expires_at) WHERE state = 1 AND expires_at IS NOT NULL;
-- Serves the jobs that a limit holds, in the order in which it lets them go.
CREATE INDEX jobmill_job_held ON jobmill_job (line, lane, coalesce(run_at << 10, id), id) WHERE state = 8;

ALTER TABLE jobmill_lane ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobmill_share ADD COLUMN held INTEGER NOT NULL DEFAULT 0;

-- Limits by name. Null: no bound of that sort.
CREATE TABLE jobmill_limit (
    id          INTEGER NOT NULL PRIMARY KEY,
    name        TEXT    NOT NULL UNIQUE,
    concurrency INTEGER,  -- how many jobs of one key run at a time
    rate        INTEGER,  -- how many tokens come to a key in a period
    period_us   INTEGER,
    burst       INTEGER   -- how many tokens a key can have
) STRICT;

-- A gate is a limit at one key. What of its tokens is spent, one moment tells: that at which it has all of them again,
-- in nanoseconds since the epoch, for tokens may come fast. The other times are microseconds. A moment means something
-- by the clock that it was reckoned by, so what that showed stands beside it.
CREATE TABLE jobmill_gate (
    id            INTEGER NOT NULL PRIMARY KEY,
    limit_id      INTEGER NOT NULL,
    key           TEXT    NOT NULL,
    jobs          INTEGER NOT NULL DEFAULT 0,  -- how many rows of jobs name it, whatever their states
    running       INTEGER NOT NULL DEFAULT 0,
    full_at       INTEGER NOT NULL DEFAULT 0,
    blocked_until INTEGER NOT NULL DEFAULT 0,
    as_of         INTEGER NOT NULL DEFAULT 0,  -- when full_at and blocked_until were reckoned
    wake_at       INTEGER,  -- when to look whether it lets held jobs go; null: when one of those that run ends
    UNIQUE (limit_id, key)
) STRICT;
-- Serves the look for gates whose time has come.
CREATE INDEX jobmill_gate_wake ON jobmill_gate (wake_at) WHERE wake_at IS NOT NULL;
-- Serves the removal of those that no job names any more.
CREATE INDEX jobmill_gate_idle ON jobmill_gate (id) WHERE jobs = 0;

-- How many jobs of a lane wait for a gate: those that it has let go and nobody has claimed yet, and those that it holds.
CREATE TABLE jobmill_gate_lane (
    gate  INTEGER NOT NULL,
    lane  INTEGER NOT NULL,
    ready INTEGER NOT NULL,
    held  INTEGER NOT NULL,
    PRIMARY KEY (gate, lane)
) STRICT, WITHOUT ROWID;

-- A line is all held jobs that go by the same gates. In each lane it stands at one gate that does not let it through.
CREATE TABLE jobmill_line (
    id    INTEGER NOT NULL PRIMARY KEY,
    gates TEXT    NOT NULL UNIQUE  -- JSON array of their ids, in ascending order
) STRICT;
CREATE TABLE jobmill_line_lane (
    line INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    gate INTEGER NOT NULL,
    held INTEGER NOT NULL,  -- how many jobs stand in it
    head INTEGER NOT NULL,  -- no job of it has an earlier place in the order: an id, or a run_at as an id would hold it
    PRIMARY KEY (line, lane)
) STRICT, WITHOUT ROWID;
-- Serves the gate that has room.
CREATE INDEX jobmill_line_gate ON jobmill_line_lane (gate, lane, head);

-- What a queue bears, in all processes together.
ALTER TABLE jobmill_queue ADD COLUMN concurrency INTEGER;
ALTER TABLE jobmill_queue ADD COLUMN rate INTEGER;
ALTER TABLE jobmill_queue ADD COLUMN period_us INTEGER;
ALTER TABLE jobmill_queue ADD COLUMN burst INTEGER;
ALTER TABLE jobmill_queue ADD COLUMN full_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobmill_queue ADD COLUMN blocked_until INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobmill_queue ADD COLUMN as_of INTEGER NOT NULL DEFAULT 0;
