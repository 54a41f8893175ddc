-- name: create_job
INSERT INTO job (only, job_id, created_at, input_path, settings, settings_digest)
VALUES (1, :job_id, :now, :input_path, :settings, :settings_digest);

-- name: job
SELECT * FROM job;

-- name: begin_run
INSERT INTO run (started_at, version)
VALUES (:now, :version)
RETURNING run_id;

-- name: end_run
UPDATE run
   SET ended_at  = :now,
       exit_code = :exit_code,
       cause     = :cause,
       remedy    = :remedy
 WHERE run_id = :run_id;

-- name: last_run
SELECT run_id, min(max(0.0, ended_at), :last_instant) AS ended_at, exit_code, cause, remedy
  FROM run
 ORDER BY run_id DESC
 LIMIT 1;

-- name: last_seq
SELECT coalesce(max(seq), 0) FROM record;

-- name: insert_intent
-- The first sending of a record: its row begins here.
INSERT INTO record (seq, line, offset, length, id, digest, state, request_id, submitted_at, maybe_paid)
VALUES (?, ?, ?, ?, ?, ?, 'intent', ?, ?, ?);

-- name: renew_intents
UPDATE record
   SET state        = 'intent',
       id           = json_extract(value, '$[1]'),
       request_id   = json_extract(value, '$[2]'),
       submitted_at = json_extract(value, '$[3]'),
       maybe_paid   = max(maybe_paid, json_extract(value, '$[4]'))
  FROM json_each(:batch)
 WHERE seq   = json_extract(value, '$[0]')
   AND state = 'new';

-- name: count_submissions
INSERT INTO submission (at_s, posts)
VALUES (:second, :posts)
ON CONFLICT (at_s) DO UPDATE SET posts = posts + excluded.posts;

-- name: forget_submissions
-- Those of a clock that was far ahead go as well: they would stand in the way for as long as it was wrong.
DELETE FROM submission
 WHERE at_s < :before
    OR at_s > :after;

-- name: submissions_since
SELECT at_s, posts FROM submission
 WHERE at_s >= :since
 ORDER BY at_s;

-- name: record_operations
-- The provider accepted the records. A row that is not changed means that another run moved it: stop.
UPDATE record
   SET state        = 'open',
       operation_id = json_extract(value, '$[1]'),
       submitted_at = json_extract(value, '$[2]')
  FROM json_each(:batch)
 WHERE seq   = json_extract(value, '$[0]')
   AND state = 'intent';

-- name: insert_operations
-- One ID twice would mean one answer for two records: only the records whose ID is new come back.
INSERT INTO operation (seq, operation_id, accepted_at)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
  FROM json_each(:batch)
 WHERE true
ON CONFLICT DO NOTHING
RETURNING seq;

-- name: move
-- Any move that is not an acceptance and not a written result.
UPDATE record
   SET state             = :to,
       attempt           = attempt + :adds_attempt,
       maybe_paid        = maybe_paid + :adds_maybe_paid,
       lost_replies      = (lost_replies + :adds_lost_reply) * NOT :starts_anew,
       failed_operations = (failed_operations + :adds_failed_operation) * NOT :starts_anew,
       operation_id      = CASE WHEN :to = 'new' THEN NULL ELSE operation_id END,
       finished_at       = CASE WHEN :to = 'new' THEN NULL ELSE :now END,
       error             = :error,
       input_tokens      = json_extract(:error, '$.usage.input_tokens'),
       output_tokens     = json_extract(:error, '$.usage.output_tokens'),
       out_offset        = NULL,
       out_length        = NULL,
       out_crc32         = NULL
 WHERE seq   = :seq
   AND state = :origin;

-- name: refuse_line
INSERT INTO record (line, offset, length, digest, state, finished_at, error)
VALUES (:line, :offset, :length, :digest, 'failed', :now, :error);

-- name: record_done
-- The lines are in the output and fsynced. A row that is not changed means that another run moved it: stop.
UPDATE record
   SET state         = 'done',
       finished_at   = json_extract(value, '$[4]'),
       input_tokens  = json_extract(value, '$[3].input_tokens'),
       output_tokens = json_extract(value, '$[3].output_tokens'),
       out_offset    = json_extract(value, '$[2].offset'),
       out_length    = json_extract(value, '$[2].length'),
       out_crc32     = json_extract(value, '$[2].crc32')
  FROM json_each(:batch)
 WHERE seq          = json_extract(value, '$[0]')
   AND state        = 'open'
   AND operation_id = json_extract(value, '$[1]');

-- name: doubt_lines
-- DONE -> OPEN for all, before the output is looked through line by line.
UPDATE record
   SET state = 'open'
 WHERE state = 'done';

-- name: keep_line
-- OPEN -> DONE: the very line that was written for it has been found, and has this place now.
UPDATE record
   SET state      = 'done',
       out_offset = :offset
 WHERE seq          = (SELECT seq FROM operation WHERE operation_id = :operation_id)
   AND state        = 'open'
   AND operation_id = :operation_id
   AND out_length   = :length
   AND out_crc32    = :crc32
RETURNING seq;

-- name: miss_lines
-- Those whose line was not found stay OPEN; nothing is left of their having been DONE.
UPDATE record
   SET finished_at   = NULL,
       input_tokens  = NULL,
       output_tokens = NULL,
       out_offset    = NULL,
       out_length    = NULL,
       out_crc32     = NULL
 WHERE state = 'open'
   AND out_offset IS NOT NULL;

-- name: next_epoch
UPDATE job
   SET epoch = epoch + 1
RETURNING epoch;

-- name: rows
SELECT * FROM record
 WHERE seq IN (SELECT value FROM json_each(:seqs));

-- name: row_of_operation
SELECT record.*
  FROM operation
  JOIN record USING (seq)
 WHERE operation.operation_id = :operation_id;

-- name: rows_done
-- In the order of the output.
SELECT * FROM record
 WHERE state = 'done'
 ORDER BY out_offset;

-- name: rows_in_order
-- Every row, in the order of the input: the index spares the sort.
SELECT * FROM record INDEXED BY record_line
 ORDER BY line;

-- name: rows_unwell_in_time
-- Every row with a failure, in the order in which they ended.
SELECT * FROM record
 WHERE state <> 'done'
   AND state IN ('failed', 'held', 'expired')
 ORDER BY finished_at, line;

-- name: lines_known
SELECT line FROM record
 WHERE line BETWEEN :first AND :last;

-- name: last_line
SELECT max(line) FROM record;

-- name: open_operations
SELECT seq, operation_id, submitted_at FROM record
 WHERE state <> 'done'
   AND state = 'open'
 ORDER BY submitted_at;

-- name: seqs_in_flight
SELECT seq FROM record
 WHERE state <> 'done'
   AND state = 'intent';

-- name: seqs_to_send
SELECT seq FROM record
 WHERE state <> 'done'
   AND state = 'new'
   AND offset < :end
 ORDER BY line;

-- name: rows_unwell
-- Every row with a failure, in the order of the input.
SELECT * FROM record
 WHERE state <> 'done'
   AND state IN ('failed', 'held', 'expired')
 ORDER BY line;

-- name: row_of_line
SELECT * FROM record
 WHERE line = :line;

-- name: any_operation
SELECT EXISTS (SELECT 1 FROM operation);

-- name: tally
-- A row per state that occurs, and always one for DONE.
-- Of those that are DONE only the doubtful are looked at: how many they are is what the others leave of all.
WITH notable AS MATERIALIZED (
    SELECT state,
           count(*)            AS records,
           sum(maybe_paid > 0) AS maybe_paid,
           min(submitted_at)   AS oldest
      FROM record
     WHERE state <> 'done'
        OR maybe_paid > 0
     GROUP BY state
)
SELECT state, records, maybe_paid, oldest
  FROM notable
 WHERE state <> 'done'
 UNION ALL
SELECT 'done',
       (SELECT count(*) FROM record) - coalesce(sum(records) FILTER (WHERE state <> 'done'), 0),
       coalesce(sum(maybe_paid) FILTER (WHERE state = 'done'), 0),
       NULL
  FROM notable;

-- name: totals
-- Answers written, tokens of all requests, tokens of all answers.
-- A walk over the rows themselves: an index that has lost one of them is found out.
SELECT coalesce(sum(state = 'done'), 0) AS done,
       coalesce(sum(input_tokens), 0)   AS input_tokens,
       coalesce(sum(output_tokens), 0)  AS output_tokens
  FROM record NOT INDEXED;

-- name: failure_kinds
-- The most frequent first. Beside a min(), SQLite takes the message from that very row.
SELECT json_extract(error, '$.kind')    AS kind,
       count(*)                         AS records,
       min(line)                        AS first_line,
       json_extract(error, '$.message') AS first_message
  FROM record
 WHERE state <> 'done'
   AND state IN ('failed', 'held', 'expired')
 GROUP BY 1
 ORDER BY 2 DESC, 1;

-- name: maybe_paid
SELECT line, id, maybe_paid FROM record
 WHERE maybe_paid > 0
 ORDER BY line
 LIMIT :limit;

-- name: create_inventory
-- What the input holds now, to be compared with what the ledger knows. Temporary, on disk, of any size.
CREATE TEMP TABLE inventory (
    line     INTEGER PRIMARY KEY,
    offset   INTEGER NOT NULL,
    length   INTEGER NOT NULL,
    identity TEXT,
    digest   BLOB NOT NULL
) STRICT;

-- name: add_to_inventory
INSERT INTO inventory (line, offset, length, identity, digest)
VALUES (?, ?, ?, ?, ?);

-- name: create_hashes
CREATE TEMP TABLE hashes (
    kind TEXT    NOT NULL,
    hash INTEGER NOT NULL
) STRICT;

-- name: add_hashes
INSERT INTO hashes (kind, hash)
SELECT :kind, value FROM json_each(:batch);

-- name: repeated_hashes
-- GROUP BY sorts, in bounded memory; count(DISTINCT) would make an index, which takes twice as long.
SELECT (SELECT count(*) FROM hashes WHERE kind = :kind) - count(*) AS repeats
  FROM (SELECT hash FROM hashes WHERE kind = :kind GROUP BY hash);

-- name: repeated_identity
WITH repeated AS (
    SELECT identity, min(line) AS first_line, count(*) - 1 AS repeats
      FROM inventory
     WHERE identity IS NOT NULL
     GROUP BY identity
    HAVING count(*) > 1
)
SELECT identity,
       first_line,
       (SELECT min(line) FROM inventory WHERE identity = repeated.identity AND line > first_line) AS again_line,
       (SELECT sum(repeats) FROM repeated) AS repeats
  FROM repeated
 ORDER BY again_line
 LIMIT 1;

-- name: records_without_id
SELECT (SELECT count(*) FROM inventory WHERE identity IS NULL) AS in_input,
       (SELECT count(*) FROM record WHERE id IS NULL AND NOT coalesce(json_extract(error, '$.kind') = 'bad_input', 0)) AS in_ledger;

-- name: index_inventory
CREATE INDEX IF NOT EXISTS inventory_identity ON inventory (identity);

-- name: match_by_id
CREATE TEMP TABLE matched AS
SELECT record.seq, record.line AS was, record.digest AS was_digest, record.state, inventory.line, inventory.offset, inventory.length, inventory.digest,
       inventory.digest IS record.digest AS same
  FROM record
  LEFT JOIN inventory ON inventory.identity = CASE json_type(record.id) WHEN 'text' THEN json_extract(record.id, '$') ELSE record.id END;

-- name: match_by_line
CREATE TEMP TABLE matched AS
SELECT record.seq, record.line AS was, record.digest AS was_digest, record.state, inventory.line, inventory.offset, inventory.length, inventory.digest,
       inventory.digest IS record.digest AS same
  FROM record
  LEFT JOIN inventory ON inventory.line = record.line;

-- name: conflicts
-- Rows whose input line is gone, or has changed although something was paid for it, or has moved: the line it had stands
-- where no line is as it was. A changed line may be accepted; a moved one would leave its payments to another.
SELECT was, line,
       count(*) OVER () AS conflicts
  FROM matched
 WHERE line IS NULL
    OR (NOT same
        AND ((state NOT IN ('new', 'failed') AND NOT :accept_changed)
             OR was_digest IN (SELECT inventory.digest
                                 FROM inventory
                                 LEFT JOIN matched AS here USING (line)
                                WHERE here.same IS NOT 1)))
 ORDER BY was
 LIMIT 5;

-- name: forget_what_cost_nothing
-- Bad lines and what was certainly never accepted are found again where they still are. A refusal stands while its line
-- does.
DELETE FROM record
 WHERE state IN ('new', 'failed')
   AND maybe_paid = 0
   AND (state = 'new'
        OR json_extract(error, '$.kind') = 'bad_input'
        OR (digest NOT IN (SELECT digest FROM inventory WHERE identity IS NOT NULL)
            AND NOT EXISTS (SELECT 1
                              FROM inventory
                             WHERE inventory.line = record.line
                               AND inventory.digest = record.digest)))
   AND seq NOT IN (SELECT seq FROM operation);

-- name: adopt_places
UPDATE record
   SET line   = matched.line,
       offset = matched.offset,
       length = matched.length,
       digest = matched.digest
  FROM matched
 WHERE matched.seq = record.seq;

-- name: changed_rows
SELECT seq FROM matched
 WHERE NOT same
   AND state <> 'new';

-- name: first_unknown
SELECT line, offset FROM inventory
 WHERE line NOT IN (SELECT line FROM record)
 ORDER BY line
 LIMIT 1;

-- name: drop_matched
DROP TABLE IF EXISTS matched;

-- name: drop_inventory
DROP TABLE IF EXISTS inventory;

-- name: drop_hashes
DROP TABLE IF EXISTS hashes;

-- name: drop_met
DROP TABLE IF EXISTS met;

-- name: create_met
-- The records whose line was met, while the output is read from its first line to its last.
CREATE TEMP TABLE met (
    seq INTEGER PRIMARY KEY
) STRICT;

-- name: meet
INSERT INTO met (seq)
VALUES (:seq)
ON CONFLICT DO NOTHING;

-- name: rows_not_met
SELECT * FROM record
 WHERE state = 'done'
   AND seq NOT IN (SELECT seq FROM met)
 ORDER BY out_offset;
