-- LLM batches. A batch is a job of the kind jobmill.batch; its items go to providers in requests, each of which is one
-- batch there.

CREATE TABLE jobmill_batch (
    job          INTEGER NOT NULL PRIMARY KEY,
    provider     TEXT    NOT NULL,
    step         TEXT,                          -- null: an item is done with its first reply
    max_steps    INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    budget_nanos INTEGER,
    request_items INTEGER,                      -- the most items of one request; null: as many as its provider takes
    retry_after  INTEGER,                       -- while items go once more: those behind this one still have to
    -- How many items stand where.
    waiting      INTEGER NOT NULL DEFAULT 0,
    sent         INTEGER NOT NULL DEFAULT 0,
    stepping     INTEGER NOT NULL DEFAULT 0,
    completed    INTEGER NOT NULL DEFAULT 0,
    failed       INTEGER NOT NULL DEFAULT 0,
    cancelled    INTEGER NOT NULL DEFAULT 0,
    expired      INTEGER NOT NULL DEFAULT 0,
    -- What was spent. Null: no provider told.
    input        INTEGER,
    cache_read   INTEGER,
    cache_write  INTEGER,
    output       INTEGER,
    reasoning    INTEGER,
    cost_nanos   INTEGER NOT NULL DEFAULT 0,
    unpriced     INTEGER NOT NULL DEFAULT 0,    -- results whose cost is not known
    currency     TEXT,
    prices       TEXT,                          -- the version of the price table
    strays       INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Items of a batch that go the same way, so that an item's row holds one small number instead of words.
CREATE TABLE jobmill_batch_route (
    id       INTEGER NOT NULL PRIMARY KEY,
    batch    INTEGER NOT NULL,
    provider TEXT    NOT NULL,
    endpoint TEXT    NOT NULL,  -- empty: the provider's first
    model    TEXT    NOT NULL,  -- empty: unknown
    UNIQUE (batch, provider, endpoint, model)
) STRICT;

CREATE TABLE jobmill_batch_item (
    id          INTEGER NOT NULL PRIMARY KEY,
    batch       INTEGER NOT NULL,
    -- 0 waiting, 1 sent or about to be, 2 the step is at it, 3 completed, 4 failed, 5 cancelled, 6 expired
    state       INTEGER NOT NULL CHECK (state BETWEEN 0 AND 6),
    route       INTEGER NOT NULL,
    request     INTEGER,                     -- the last that held it
    step_number INTEGER NOT NULL DEFAULT 0,
    attempt     INTEGER NOT NULL DEFAULT 0,  -- of this step; what did not count is given back
    sends       INTEGER NOT NULL DEFAULT 0,  -- how often it was put into a request: part of its custom_id
    applied     INTEGER NOT NULL DEFAULT 0,  -- of which sending a result came last
    applied_by  INTEGER,                     -- in which request
    tokens      INTEGER NOT NULL,            -- the estimated input
    max_output  INTEGER,
    request_items_max INTEGER,               -- the most items of the next request it goes in; null: as many as fit
    step_job    INTEGER,                     -- the job that is at its step
    key         TEXT    NOT NULL,
    agent_id    TEXT,
    finish      TEXT,                        -- null: it has no reply at this step
    error_class TEXT,
    error       TEXT,
    input       INTEGER,
    cache_read  INTEGER,
    cache_write INTEGER,
    output      INTEGER,
    reasoning   INTEGER,
    cost_nanos  INTEGER NOT NULL DEFAULT 0,
    unpriced    INTEGER NOT NULL DEFAULT 0
) STRICT;
-- Serves the pages of items and results, which come in the order of the batch.
CREATE INDEX jobmill_batch_item_batch ON jobmill_batch_item (batch);
-- Serves the planning, and the caller's own keys.
CREATE INDEX jobmill_batch_item_state ON jobmill_batch_item (batch, state);
CREATE UNIQUE INDEX jobmill_batch_item_key ON jobmill_batch_item (batch, key);
-- Serves what is left of a request at its end.
CREATE INDEX jobmill_batch_item_request ON jobmill_batch_item (request) WHERE state = 1;
-- Serves the look for steps whose job has gone.
CREATE INDEX jobmill_batch_item_step ON jobmill_batch_item (step_job) WHERE state = 2;

-- What an item asks, and what goes with it: kept out of its row, which each step writes anew.
CREATE TABLE jobmill_batch_body (
    item  INTEGER NOT NULL PRIMARY KEY,
    body  TEXT    NOT NULL,  -- JSON
    state TEXT               -- JSON
) STRICT;

-- What came of it: the last reply, or what the step made of it.
CREATE TABLE jobmill_batch_output (
    item   INTEGER NOT NULL PRIMARY KEY,
    output TEXT    NOT NULL  -- JSON
) STRICT;

CREATE TABLE jobmill_batch_request (
    id                  INTEGER NOT NULL PRIMARY KEY,
    batch               INTEGER NOT NULL,
    -- 0 planning, 1 submitting, 2 sent without an answer yet, 3 running, 4 ended, 5 harvested, 6 refused
    state               INTEGER NOT NULL CHECK (state BETWEEN 0 AND 6),
    provider            TEXT    NOT NULL,
    account             TEXT    NOT NULL,  -- its fingerprint
    base_url            TEXT    NOT NULL,
    api_version         TEXT,
    endpoint            TEXT    NOT NULL,
    model               TEXT,              -- null: several
    local               INTEGER NOT NULL DEFAULT 0,  -- 1: it runs here, while its results are read
    key                 TEXT    NOT NULL UNIQUE,
    items               INTEGER NOT NULL DEFAULT 0,
    bytes               INTEGER NOT NULL DEFAULT 0,
    tokens              INTEGER NOT NULL DEFAULT 0,
    reserved_nanos      INTEGER NOT NULL DEFAULT 0,  -- what it may cost at most, until it is harvested
    body_sha256         BLOB,
    file                TEXT,              -- the provider's id of the uploaded body
    uploaded_at         INTEGER,           -- when the upload was about to begin
    attempt             INTEGER NOT NULL DEFAULT 0,
    sent_at             INTEGER,           -- when the creation was about to be sent
    remote_id           TEXT,
    remote_status       TEXT,
    remote_end          TEXT,              -- JSON: how it ended
    created             TEXT,              -- the provider's first answer, JSON
    latest              TEXT,              -- its last answer, JSON
    expires_at          INTEGER,
    polled_at           INTEGER,
    next_poll_at        INTEGER,
    poll_wait_us        INTEGER,
    poll_owner          INTEGER,           -- the instance that is asking now
    poll_until          INTEGER,
    succeeded           INTEGER,
    failed              INTEGER,
    ended_at            INTEGER,
    harvested_at        INTEGER,
    cleaned_at          INTEGER,           -- when what the provider kept of it was deleted
    cancel_requested_at INTEGER,
    failures            INTEGER NOT NULL DEFAULT 0,  -- of what is being tried, since it last went well
    misses              INTEGER NOT NULL DEFAULT 0,  -- how often in a row its provider did not know it
    missed_since        INTEGER,
    error               TEXT
) STRICT;
CREATE INDEX jobmill_batch_request_batch ON jobmill_batch_request (batch, id);
-- A batch at a provider belongs to one request of ours.
CREATE UNIQUE INDEX jobmill_batch_request_remote ON jobmill_batch_request (account, remote_id)
    WHERE remote_id IS NOT NULL;
-- Serves the poller: the longest unasked first.
CREATE INDEX jobmill_batch_request_due ON jobmill_batch_request (next_poll_at) WHERE state = 3;
-- Serves the caps, and the look for what nobody is at.
CREATE INDEX jobmill_batch_request_open ON jobmill_batch_request (account) WHERE state < 5;

-- Results that belong to no item, or came when it had one.
CREATE TABLE jobmill_batch_stray (
    id         INTEGER NOT NULL PRIMARY KEY,
    request    INTEGER NOT NULL,
    custom_id  TEXT,
    why        TEXT    NOT NULL,
    line       TEXT    NOT NULL,
    cost_nanos INTEGER
) STRICT;
-- A result that is read again is no second stray.
CREATE UNIQUE INDEX jobmill_batch_stray_line ON jobmill_batch_stray (request, line);

-- Batches at a provider that turned out not to be ours.
CREATE TABLE jobmill_batch_foreign (
    account   TEXT NOT NULL,
    remote_id TEXT NOT NULL,
    PRIMARY KEY (account, remote_id)
) STRICT, WITHOUT ROWID;

-- What holds for an account, in every process.
CREATE TABLE jobmill_batch_account (
    account       TEXT    NOT NULL PRIMARY KEY,
    blocked_until INTEGER,           -- nothing is created before
    reason        TEXT,
    failures      INTEGER NOT NULL DEFAULT 0,
    creator       INTEGER,           -- the request whose creation is under way
    creating_until INTEGER,
    tokens_max    INTEGER,           -- learnt: more than this in one request was refused
    items_max     INTEGER
) STRICT, WITHOUT ROWID;

-- What the poller did.
CREATE TABLE jobmill_batch_cycle (
    id    INTEGER NOT NULL PRIMARY KEY,
    cycle TEXT    NOT NULL  -- JSON
) STRICT;
