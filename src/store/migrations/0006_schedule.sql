-- Schedules, and the history of their ticks. Times are microseconds since the Unix epoch.

-- What a tick changes. What it does not stands beside it, for each tick writes this row anew.
CREATE TABLE jobmill_schedule (
    id          INTEGER NOT NULL PRIMARY KEY,
    name        TEXT    NOT NULL UNIQUE,
    kind        TEXT    NOT NULL,            -- of its job
    anchor      INTEGER NOT NULL,            -- from when an interval is reckoned
    tick        INTEGER,                     -- the next one; null: no more will come, or it is paused
    next_at     INTEGER,                     -- when that is due: later than the tick itself by its jitter
    computed_at INTEGER NOT NULL,            -- when that was found out
    paused_at   INTEGER,
    waiting     INTEGER,                     -- the tick that waits for the end of the last job
    last_tick   INTEGER,
    last_job    INTEGER,
    lines       INTEGER NOT NULL DEFAULT 0,  -- of its history, those included that are gone
    enqueued    INTEGER NOT NULL DEFAULT 0,
    missed      INTEGER NOT NULL DEFAULT 0,
    skipped     INTEGER NOT NULL DEFAULT 0
) STRICT;
-- Serves the ticks.
CREATE INDEX jobmill_schedule_due ON jobmill_schedule (next_at) WHERE next_at IS NOT NULL;
-- Serves the ticks that wait for a job.
CREATE INDEX jobmill_schedule_waiting ON jobmill_schedule (last_job) WHERE waiting IS NOT NULL;
-- Serves lists by kind, and the kinds that nobody handles.
CREATE INDEX jobmill_schedule_kind ON jobmill_schedule (kind);

CREATE TABLE jobmill_schedule_definition (
    schedule   INTEGER NOT NULL PRIMARY KEY,
    definition TEXT    NOT NULL,  -- JSON: when it ticks, and what becomes of late ticks
    job        TEXT    NOT NULL   -- JSON
) STRICT;

-- The newest lines of each schedule's history, in a ring: a line takes the place of the one that is too old to be kept.
CREATE TABLE jobmill_tick (
    schedule INTEGER NOT NULL,
    place    INTEGER NOT NULL,
    number   INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    -- 0 enqueued, 1 by hand, 2 backfilled, 3 had its job already, 4 skipped, 5 missed, 6 by a pause, 7 by a change
    outcome  INTEGER NOT NULL CHECK (outcome BETWEEN 0 AND 7),
    tick     INTEGER NOT NULL,
    until    INTEGER,             -- the last tick, if the line tells of several
    count    INTEGER,             -- how many these are; null: not counted
    job      INTEGER,
    PRIMARY KEY (schedule, place)
) STRICT, WITHOUT ROWID;

-- Of a job that a schedule has made, at a tick or otherwise.
ALTER TABLE jobmill_job ADD COLUMN schedule INTEGER;
-- Serves the jobs of a schedule, in their order. Jobs of none cost nothing here.
CREATE INDEX jobmill_job_schedule ON jobmill_job (schedule) WHERE schedule IS NOT NULL;
