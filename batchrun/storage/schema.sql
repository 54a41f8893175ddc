-- The ledger of one job. STRICT tables and CHECKs forbid what no code may write; batchrun/record.py holds the legal moves.
-- Prompts and answers are never stored here: only digests, places, ids, counts and redacted errors.
-- No CHECK says IN: SQLite would make a table of the list for each row that is written or looked through.

CREATE TABLE job (
    only             INTEGER PRIMARY KEY CHECK (only = 1),
    job_id           TEXT    NOT NULL,
    epoch            INTEGER NOT NULL DEFAULT 0,  -- starts so far; raised by the closing commit of recovery
    created_at       REAL    NOT NULL,
    input_path       TEXT    NOT NULL,            -- seen from the output's folder
    input_source     TEXT,                        -- what the spool was made of; null: the input is read as it is
    options          TEXT    NOT NULL DEFAULT '{}', -- JSON: the pace and the like of the last run, for `resume`
    settings         TEXT    NOT NULL,            -- JSON, for people; the digest decides
    settings_digest  BLOB    NOT NULL CHECK (length(settings_digest) = 16),
    input_inode      INTEGER,                     -- the input at the last complete check; null: never checked whole
    input_mtime_ns   INTEGER,
    input_size       INTEGER,
    input_digest     BLOB,
    input_records    INTEGER,
    out_committed    INTEGER NOT NULL DEFAULT 0,  -- bytes of the output that belong to DONE rows
    out_last_seq     INTEGER,                     -- whose line is the last of them
    low_water_line   INTEGER NOT NULL DEFAULT 1,  -- every earlier line has a row
    low_water_offset INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE run (
    run_id     INTEGER PRIMARY KEY,
    started_at REAL    NOT NULL,
    ended_at   REAL,                              -- null: still running, or it ended without a word
    exit_code  INTEGER,
    cause      TEXT,                              -- why it ended early, and what to do then; redacted
    remedy     TEXT,
    version    TEXT    NOT NULL
) STRICT;

CREATE TABLE record (
    seq               INTEGER PRIMARY KEY,        -- given at the first INTENT, or when a bad line is met
    line              INTEGER NOT NULL CHECK (line >= 1),
    offset            INTEGER NOT NULL CHECK (offset >= 0),
    length            INTEGER NOT NULL CHECK (length >= 0),
    id                TEXT,                       -- JSON, exactly as given
    digest            BLOB    NOT NULL CHECK (length(digest) = 16),
    state             TEXT    NOT NULL
        CHECK (state = 'new' OR state = 'intent' OR state = 'open' OR state = 'done' OR
               state = 'failed' OR state = 'held' OR state = 'expired'),
    attempt           INTEGER NOT NULL DEFAULT 1 CHECK (attempt >= 1),
    lost_replies      INTEGER NOT NULL DEFAULT 0 CHECK (lost_replies >= 0),
    maybe_paid        INTEGER NOT NULL DEFAULT 0 CHECK (maybe_paid >= 0),
    failed_operations INTEGER NOT NULL DEFAULT 0 CHECK (failed_operations >= 0),
    request_id        TEXT,
    operation_id      TEXT,
    submitted_at      REAL,
    finished_at       REAL,
    input_tokens      INTEGER,
    output_tokens     INTEGER,
    out_offset        INTEGER,
    out_length        INTEGER,
    out_crc32         INTEGER,
    error             TEXT,                       -- JSON of record.Failure
    CHECK (state <> 'intent' OR request_id IS NOT NULL),
    CHECK (operation_id IS NOT NULL OR (state <> 'open' AND state <> 'done' AND state <> 'expired')),
    CHECK (state <> 'done' OR (out_offset IS NOT NULL AND out_length IS NOT NULL AND out_crc32 IS NOT NULL)),
    CHECK (error IS NOT NULL OR (state <> 'failed' AND state <> 'held' AND state <> 'expired'))
) STRICT;

CREATE INDEX record_line ON record (line);

-- The few rows that are not simply DONE. A query that says so in these words reads no other.
CREATE INDEX record_notable ON record (line) WHERE state <> 'done' OR maybe_paid > 0;

-- Every operation ID ever received. One ID twice would mean one answer for two records.
CREATE TABLE operation (
    operation_id TEXT    PRIMARY KEY CHECK (length(operation_id) BETWEEN 1 AND 128),
    seq          INTEGER NOT NULL REFERENCES record (seq),
    accepted_at  REAL    NOT NULL
) STRICT, WITHOUT ROWID;

-- POSTs per second of the last hour or so: a restart must not forget the hourly quota.
CREATE TABLE submission (
    at_s  INTEGER PRIMARY KEY,
    posts INTEGER NOT NULL CHECK (posts > 0)
) STRICT;
