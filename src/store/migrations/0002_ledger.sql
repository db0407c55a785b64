-- The ledger: what was done to jobs out of the ordinary, and what their rates were.

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
