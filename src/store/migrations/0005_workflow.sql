-- Workflows: what waits for what, how the jobs of one stand, and what a handler has done step by step.

-- A workflow, or a set of its jobs that is counted together: a stage, of any number of jobs, or its callbacks. A stage is
-- counted in its workflow too; the callbacks, which begin when it has ended, are not. Ids are of the same sequence as those
-- of jobs, so that one number tells either.
CREATE TABLE jobmill_flow (
    id                  INTEGER NOT NULL PRIMARY KEY,
    parent              INTEGER,            -- the workflow; null: it is one
    role                INTEGER NOT NULL CHECK (role BETWEEN 0 AND 2),  -- 0 workflow, 1 stage, 2 callbacks
    name                TEXT    NOT NULL,
    user_id             TEXT,
    -- As of a job: 0 not let go yet, 2 under way, 3 completed, 4 failed, 5 cancelled.
    state               INTEGER NOT NULL CHECK (state IN (0, 2, 3, 4, 5)),
    ended_at            INTEGER,
    cancel_requested_at INTEGER,            -- nothing of it is admitted any more
    created             INTEGER NOT NULL DEFAULT 0,
    pending             INTEGER NOT NULL DEFAULT 0,
    running             INTEGER NOT NULL DEFAULT 0,
    completed           INTEGER NOT NULL DEFAULT 0,
    failed              INTEGER NOT NULL DEFAULT 0,
    cancelled           INTEGER NOT NULL DEFAULT 0,
    expired             INTEGER NOT NULL DEFAULT 0,
    delayed             INTEGER NOT NULL DEFAULT 0,
    held                INTEGER NOT NULL DEFAULT 0
) STRICT;
-- Serves the parts of a workflow.
CREATE INDEX jobmill_flow_parent ON jobmill_flow (parent) WHERE parent IS NOT NULL;
-- Serves the look for those that may go.
CREATE INDEX jobmill_flow_ended ON jobmill_flow (ended_at) WHERE parent IS NULL AND ended_at IS NOT NULL;
-- Serve the lists of workflows.
CREATE INDEX jobmill_flow_state ON jobmill_flow (state) WHERE parent IS NULL;
CREATE INDEX jobmill_flow_user ON jobmill_flow (user_id, state) WHERE parent IS NULL AND user_id IS NOT NULL;

-- Serves the jobs of a workflow or a stage, in their order. Jobs of none cost nothing here.
CREATE INDEX jobmill_job_flow ON jobmill_job (flow) WHERE flow IS NOT NULL;

-- What bears a name in a workflow.
CREATE TABLE jobmill_node (
    flow   INTEGER NOT NULL,
    place  INTEGER NOT NULL,  -- the order in which they were named
    role   INTEGER NOT NULL CHECK (role BETWEEN 0 AND 4),  -- 0 job, 1 stage; callbacks: 2 on success, 3 on failure, 4 on end
    target INTEGER NOT NULL,  -- the job or the stage
    name   TEXT    NOT NULL,
    PRIMARY KEY (flow, place)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX jobmill_node_name ON jobmill_node (flow, name);
-- Serves the name of a job or a stage.
CREATE INDEX jobmill_node_target ON jobmill_node (target);

-- Which job or stage waits for the end of which job, stage or workflow.
CREATE TABLE jobmill_edge (
    needs     INTEGER NOT NULL,
    follower  INTEGER NOT NULL,
    -- 0 follows success, and is cancelled otherwise; 1 follows success, and fails otherwise; 2 follows any end; 3 follows
    -- any end but success, and is cancelled otherwise.
    condition INTEGER NOT NULL CHECK (condition BETWEEN 0 AND 3),
    stage     INTEGER NOT NULL,  -- 1: the follower is a stage
    feeds     INTEGER NOT NULL,  -- 1: the result becomes the follower's payload
    flow      INTEGER,           -- the workflow that says so; null: the follower does
    verdict   INTEGER,           -- how the needed one ended, as of a job, 9 if it was deleted; null: it has not
    PRIMARY KEY (needs, follower)
) STRICT, WITHOUT ROWID;
-- Serves the look for what a follower waits for still, and its needs.
CREATE INDEX jobmill_edge_follower ON jobmill_edge (follower, verdict);

-- What an end, a cancel or a retry calls for: done a slice at a time, by whoever takes the next turn. Within a workflow it
-- is done in its order; workflows take turns.
CREATE TABLE jobmill_flow_work (
    id       INTEGER NOT NULL PRIMARY KEY,
    whole    INTEGER NOT NULL,            -- the workflow whose turn it is done in; for a job of none, that job
    work     INTEGER NOT NULL CHECK (work BETWEEN 0 AND 4),  -- 0 settle, 1 admit, 2 refuse, 3 cancel, 4 retry
    target   INTEGER NOT NULL,            -- the job or the flow
    state    INTEGER NOT NULL DEFAULT 0,  -- settle: how it ended; refuse: how its jobs end
    cause    INTEGER,                     -- refuse: what did not end as it should
    verdict  INTEGER,                     -- refuse: how that ended
    position INTEGER NOT NULL DEFAULT 0,  -- up to this id it is done
    user_id  TEXT,                        -- cancel, retry: on whose behalf
    actor    TEXT
) STRICT;
-- Serves the next duty of a workflow, and the next workflow that has one.
CREATE INDEX jobmill_flow_work_whole ON jobmill_flow_work (whole);
-- Serves whoever must know of which flows nothing begins any more.
CREATE INDEX jobmill_flow_work_cancel ON jobmill_flow_work (work) WHERE work = 3;

-- The values of a handler's steps that are done.
CREATE TABLE jobmill_journal (
    id    INTEGER NOT NULL PRIMARY KEY,
    job   INTEGER NOT NULL,
    name  TEXT    NOT NULL,
    value BLOB    NOT NULL,
    UNIQUE (job, name)
) STRICT;
