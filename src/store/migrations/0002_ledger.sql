-- The ledger: users and their shares, tracked jobs, the documented fields, history and rates.

-- The lanes and the jobs of the engine's first tables are made anew, for a lane tells more now, and the job's own row
-- holds less.
DROP INDEX jobmill_job_place;
DROP INDEX jobmill_job_delayed;
DROP INDEX jobmill_job_expiry;
ALTER TABLE jobmill_lane RENAME TO jobmill_old_lane;
ALTER TABLE jobmill_job RENAME TO jobmill_old_job;

-- A lane is all jobs that are alike: of one queue, kind, priority, type, in the background or not, and with or without a
-- user. It names all that for its jobs and counts them by state, so that a job's row holds one small number instead of
-- words, and no count ever reads a job.
CREATE TABLE jobmill_lane (
    id         INTEGER NOT NULL PRIMARY KEY,
    queue      TEXT    NOT NULL,
    kind       TEXT    NOT NULL,  -- empty: the jobs are tracked, and run elsewhere
    priority   INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 3),
    job_type   INTEGER NOT NULL CHECK (job_type BETWEEN 0 AND 2),  -- 0 job, 1 run, 2 batch
    background INTEGER NOT NULL CHECK (background IN (0, 1)),
    owned      INTEGER NOT NULL CHECK (owned IN (0, 1)),           -- whether its jobs have users
    created    INTEGER NOT NULL DEFAULT 0,
    pending    INTEGER NOT NULL DEFAULT 0,
    running    INTEGER NOT NULL DEFAULT 0,
    completed  INTEGER NOT NULL DEFAULT 0,
    failed     INTEGER NOT NULL DEFAULT 0,
    cancelled  INTEGER NOT NULL DEFAULT 0,
    expired    INTEGER NOT NULL DEFAULT 0,
    delayed    INTEGER NOT NULL DEFAULT 0,
    UNIQUE (queue, kind, priority, job_type, background, owned)
) STRICT;

-- A share is all jobs of one user in a lane, counted by state too.
CREATE TABLE jobmill_share (
    id        INTEGER NOT NULL PRIMARY KEY,
    lane      INTEGER NOT NULL,
    user_id   TEXT    NOT NULL,
    created   INTEGER NOT NULL DEFAULT 0,
    pending   INTEGER NOT NULL DEFAULT 0,
    running   INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed    INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    expired   INTEGER NOT NULL DEFAULT 0,
    delayed   INTEGER NOT NULL DEFAULT 0,
    UNIQUE (user_id, lane)
) STRICT;
-- Serves the round robin between the users who have jobs waiting.
CREATE INDEX jobmill_share_waiting ON jobmill_share (lane, id) WHERE pending > 0 OR delayed > 0;

-- Times are microseconds since the Unix epoch. The id holds the time of creation.
CREATE TABLE jobmill_job (
    id                  INTEGER NOT NULL PRIMARY KEY,
    lane                INTEGER NOT NULL,
    -- 0 created, 1 pending, 2 running, 3 completed, 4 failed, 5 cancelled, 6 expired; 7 is pending too, with a run_at
    -- of its own.
    state               INTEGER NOT NULL CHECK (state BETWEEN 0 AND 7),
    share               INTEGER,                     -- its user's share of the lane; null: it has no user
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
    result              BLOB                         -- JSON
) STRICT;

-- What few jobs have, and no step of a life changes: kept out of the job's row, which each step writes anew.
CREATE TABLE jobmill_detail (
    job                  INTEGER NOT NULL PRIMARY KEY,
    organization_id      TEXT,
    request_config       TEXT,     -- JSON
    ttft_ns              INTEGER,
    total_duration_ns    INTEGER,
    created_by           TEXT,     -- if not by its user
    updated_by           TEXT,     -- who last changed it from outside
    callback_sent_at     INTEGER,
    callback_status_code INTEGER,
    callback_error       TEXT
) STRICT;

-- What the older tables hold. A job with a user goes to a lane of its own.
INSERT INTO jobmill_lane (id, queue, kind, priority, job_type, background, owned)
    SELECT id, queue, kind, priority, 0, 0, 0 FROM jobmill_old_lane;
INSERT INTO jobmill_lane (queue, kind, priority, job_type, background, owned)
    SELECT queue, kind, priority, 0, 0, 1 FROM jobmill_old_lane
    WHERE id IN (SELECT lane FROM jobmill_old_job WHERE user_id IS NOT NULL);
INSERT INTO jobmill_share (lane, user_id)
    SELECT DISTINCT lane.id, job.user_id
    FROM jobmill_old_job AS job
    JOIN jobmill_old_lane AS old ON old.id = job.lane
    JOIN jobmill_lane AS lane ON lane.queue = old.queue AND lane.kind = old.kind AND lane.priority = old.priority
        AND lane.owned = 1
    WHERE job.user_id IS NOT NULL;
INSERT INTO jobmill_job (id, lane, state, share, attempt, claim, max_attempts, owner, worker, run_at, started_at,
        completed_at, expires_at, timeout_us, cancel_requested_at, detail, backoff, agent_id, source_id, unique_key, tags,
        metadata, error, payload, result)
    SELECT job.id, lane.id, job.state, share.id, job.attempt, job.claim, job.max_attempts, job.owner, job.worker,
        job.run_at, job.started_at, job.completed_at, job.expires_at, job.timeout_us, job.cancel_requested_at,
        CASE WHEN job.ttft_ns IS NOT NULL THEN 1 END, job.backoff, job.agent_id,
        nullif(job.metadata ->> 'source_id', ''), job.unique_key, job.tags, job.metadata, job.error, job.payload,
        job.result
    FROM jobmill_old_job AS job
    JOIN jobmill_old_lane AS old ON old.id = job.lane
    JOIN jobmill_lane AS lane ON lane.queue = old.queue AND lane.kind = old.kind AND lane.priority = old.priority
        AND lane.owned = (job.user_id IS NOT NULL)
    LEFT JOIN jobmill_share AS share ON share.lane = lane.id AND share.user_id = job.user_id
    ORDER BY job.id;
INSERT INTO jobmill_detail (job, ttft_ns) SELECT id, ttft_ns FROM jobmill_old_job WHERE ttft_ns IS NOT NULL;
DROP TABLE jobmill_old_job;
DROP TABLE jobmill_old_lane;
UPDATE jobmill_lane
SET created = counted.c0, pending = counted.c1, running = counted.c2, completed = counted.c3,
    failed = counted.c4, cancelled = counted.c5, expired = counted.c6, delayed = counted.c7
FROM (
    SELECT lane AS place, sum(state = 0) AS c0, sum(state = 1) AS c1, sum(state = 2) AS c2, sum(state = 3) AS c3,
        sum(state = 4) AS c4, sum(state = 5) AS c5, sum(state = 6) AS c6, sum(state = 7) AS c7
    FROM jobmill_job WHERE lane IS NOT NULL GROUP BY lane
) AS counted
WHERE counted.place = jobmill_lane.id;
UPDATE jobmill_share
SET created = counted.c0, pending = counted.c1, running = counted.c2, completed = counted.c3,
    failed = counted.c4, cancelled = counted.c5, expired = counted.c6, delayed = counted.c7
FROM (
    SELECT share AS place, sum(state = 0) AS c0, sum(state = 1) AS c1, sum(state = 2) AS c2, sum(state = 3) AS c3,
        sum(state = 4) AS c4, sum(state = 5) AS c5, sum(state = 6) AS c6, sum(state = 7) AS c7
    FROM jobmill_job WHERE share IS NOT NULL GROUP BY share
) AS counted
WHERE counted.place = jobmill_share.id;

-- Serves the claim (pending, by id), every list (a status in a lane, by id), the rescue (running) and the pruning.
CREATE INDEX jobmill_job_place ON jobmill_job (lane, state);
-- Serves the claim of jobs whose run_at is not their time of creation, so that future ones are never stepped over.
CREATE INDEX jobmill_job_delayed ON jobmill_job (lane, run_at) WHERE state = 7;
-- Serves the expiry.
CREATE INDEX jobmill_job_expiry ON jobmill_job (expires_at) WHERE expires_at IS NOT NULL AND state IN (0, 1, 7);
-- Serve the lists of one user, and the claim when users take turns.
CREATE INDEX jobmill_job_share ON jobmill_job (share, state) WHERE share IS NOT NULL;
CREATE INDEX jobmill_job_share_delayed ON jobmill_job (share, run_at) WHERE state = 7 AND share IS NOT NULL;
-- Serve the lists by what few jobs have in common. Jobs that have none of it cost nothing here.
CREATE INDEX jobmill_job_agent ON jobmill_job (agent_id) WHERE agent_id IS NOT NULL;
CREATE INDEX jobmill_job_source ON jobmill_job (source_id) WHERE source_id IS NOT NULL;
CREATE INDEX jobmill_job_stop_reason ON jobmill_job (stop_reason) WHERE stop_reason IS NOT NULL;

-- Who did what to a job, and when, if it is not what happens to every job. Rows outlive their jobs.
CREATE TABLE jobmill_audit (
    id         INTEGER NOT NULL PRIMARY KEY,
    at         INTEGER NOT NULL,
    job        INTEGER,           -- null: it was done to a queue
    user_id    TEXT,              -- of the job
    action     TEXT    NOT NULL,
    actor      TEXT,              -- null: the program, or the engine
    from_state INTEGER,
    to_state   INTEGER,
    attempt    INTEGER,
    note       TEXT
) STRICT;
-- Serves the history of a job.
CREATE INDEX jobmill_audit_job ON jobmill_audit (job) WHERE job IS NOT NULL;
-- Serves the retention.
CREATE INDEX jobmill_audit_at ON jobmill_audit (at);

-- Running jobs that are to be deleted as soon as they have ended.
CREATE TABLE jobmill_doomed (
    job INTEGER NOT NULL PRIMARY KEY
) STRICT;

-- What happened in a lane within a stretch of time, as JSON. Resolution 0 is all time.
CREATE TABLE jobmill_tally (
    resolution INTEGER NOT NULL,
    bucket     INTEGER NOT NULL,  -- when the stretch began
    lane       INTEGER NOT NULL,
    tally      TEXT    NOT NULL,
    PRIMARY KEY (resolution, bucket, lane)
) STRICT, WITHOUT ROWID;
