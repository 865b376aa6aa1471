-- Runs: one request to bring something about, with its steps. Lock order: steps (by id), then the run.

-- name: start (run: -> pending; step: -> ready | blocked)
-- A run, its steps and its edges appear together. Steps come in topological order, so a parent's id is below its children's.
-- Wake-ups are promised here (sent_at) as far as their queue has room. No row back: the idempotency key is taken.
WITH made AS (
    INSERT INTO flowstone.runs (id, kind, name, partition, tenant, requested_by, idempotency_key, request_digest, status, priority,
                                correlation_id, root_id, input, total_steps, remaining_steps, code_version)
    VALUES (%(run)s::uuid, %(kind)s, %(name)s, %(partition)s, %(tenant)s, %(requested_by)s, %(idempotency_key)s, %(request_digest)s,
            'pending', %(priority)s, %(correlation_id)s, %(run)s::uuid, %(input)s::jsonb,
            cardinality(%(names)s::text[]), cardinality(%(names)s::text[]), %(code_version)s)
    ON CONFLICT (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
), plan AS (
    SELECT *, row_number() OVER (PARTITION BY p.queue, p.remaining = 0 AND p.due_in <= 0 ORDER BY p.priority DESC, p.ordinal) AS turn
      FROM unnest(%(kinds)s::text[], %(names)s::text[], %(partitions)s::text[], %(tasks)s::text[], %(queues)s::text[],
                  %(priorities)s::int[], %(code_digests)s::text[], %(remaining)s::int[], %(max_failures)s::int[],
                  %(timeouts)s::float8[], %(retries)s::text[], %(inputs)s::text[], %(due_in)s::float8[])
           WITH ORDINALITY AS p(kind, name, partition, task, queue, priority, code_digest, remaining, max_failures,
                                timeout_seconds, retry, input, due_in, ordinal)
), room AS (
    SELECT q.queue,
           -- use: room_of_q
           AS places
      FROM (SELECT DISTINCT queue FROM plan WHERE remaining = 0) q
), placed AS (
    INSERT INTO flowstone.steps (run_id, ordinal, kind, name, partition, task, queue, priority, v, code_digest, status, remaining,
                                 max_failures, timeout_seconds, retry, input, due_at, sent_at)
    SELECT m.id, p.ordinal, p.kind, p.name, p.partition, p.task, p.queue, p.priority, %(protocol)s, p.code_digest,
           CASE WHEN p.remaining = 0 THEN 'ready' ELSE 'blocked' END, p.remaining,
           p.max_failures, p.timeout_seconds, p.retry::jsonb, p.input::jsonb,
           CASE WHEN p.remaining = 0 THEN flowstone.now() + make_interval(secs => p.due_in) END,
           CASE WHEN p.remaining = 0 AND p.due_in <= 0 AND %(promise)s AND p.turn <= r.places THEN flowstone.now() END
      FROM made m CROSS JOIN plan p LEFT JOIN room r USING (queue)
     ORDER BY p.ordinal
    RETURNING id, ordinal, name, partition, task, queue, sent_at
), linked AS (
    INSERT INTO flowstone.step_edges (child, parent, optional)
    SELECT c.id, p.id, e.optional
      FROM unnest(%(edge_children)s::int[], %(edge_parents)s::int[], %(edge_optional)s::bool[]) AS e(child, parent, optional)
      JOIN placed c ON c.ordinal = e.child
      JOIN placed p ON p.ordinal = e.parent
), logged AS (
    INSERT INTO flowstone.history (run_id, event, detail)
    SELECT id, 'run.pending', jsonb_build_object('name', %(name)s::text, 'partition', %(partition)s::text, 'steps', cardinality(%(names)s::text[]),
                                                 'requested_by', %(requested_by)s::text)
      FROM made
)
SELECT m.id AS run_id, p.id, p.name, p.partition, p.task, p.queue
  FROM made m LEFT JOIN placed p ON p.sent_at IS NOT NULL
 ORDER BY p.ordinal;

-- name: by_key
SELECT id, name, partition, status, request_digest FROM flowstone.runs WHERE tenant = %(tenant)s AND idempotency_key = %(key)s;

-- name: cancel (run: pending | running -> cancelling)
-- The run alone is marked, with the audit row of the act; its steps follow in batches.
WITH moved AS (
    UPDATE flowstone.runs SET status = 'cancelling', cancelled_at = flowstone.now(),
           error = jsonb_build_object('code', 'FS-2006', 'message', %(reason)s::text)
     WHERE id = %(run)s AND status IN ('pending', 'running')
    RETURNING id, tenant, correlation_id, round
), logged AS (
    INSERT INTO flowstone.history (run_id, round, event, detail)
    SELECT id, round, 'run.cancelling', jsonb_build_object('reason', %(reason)s::text, 'actor', %(actor)s::text) FROM moved
), audited AS (
    INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, tenant, correlation_id, details)
    SELECT %(actor)s, %(actor_type)s, 'run.cancel', 'run', id::text, tenant, correlation_id, jsonb_build_object('reason', %(reason)s::text) FROM moved
)
SELECT id FROM moved;

-- name: cancel_steps (step: blocked | ready -> cancelled; run: cancelling -> cancelled)
-- One batch of what has not begun. Rows that somebody holds are left to the next batch or to the sweep.
WITH batch AS (
    SELECT s.id FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
     WHERE s.run_id = %(run)s AND s.status IN ('blocked', 'ready') AND r.status = 'cancelling'
     ORDER BY s.id LIMIT %(limit)s FOR NO KEY UPDATE OF s SKIP LOCKED
), moved AS (
    UPDATE flowstone.steps s SET status = 'cancelled', finished_at = flowstone.now(), due_at = NULL, sent_at = NULL
      FROM batch b WHERE s.id = b.id AND s.status IN ('blocked', 'ready')
    RETURNING s.id, s.run_id, s.round, s.attempt, s.fence
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence)
    SELECT run_id, id, round, 'step.cancelled', attempt, fence FROM moved
), ended AS (
    SELECT run_id, count(*) AS finished, 0 AS failed, count(*) AS cancelled, NULL::jsonb AS error FROM moved GROUP BY run_id
),
-- use: counted
SELECT (SELECT count(*) FROM moved) AS moved, (SELECT status FROM counted) AS run_status, (SELECT name FROM counted) AS run_name;

-- name: cancelling
SELECT id FROM flowstone.runs WHERE status = 'cancelling' ORDER BY cancelled_at LIMIT %(limit)s;

-- name: run
SELECT * FROM flowstone.runs WHERE id = %(run)s;

-- name: runs_page
-- Newest first, by keyset: pass the last row's created_at and id to go on.
SELECT * FROM flowstone.runs r
 WHERE (%(status)s::text IS NULL OR r.status = %(status)s)
   AND (%(name)s::text IS NULL OR r.name = %(name)s)
   AND (%(partition)s::text IS NULL OR r.partition = %(partition)s)
   AND (%(before)s::timestamptz IS NULL OR (r.created_at, r.id) < (%(before)s, %(before_id)s::uuid))
 ORDER BY r.created_at DESC, r.id DESC LIMIT %(limit)s;

-- name: progress
SELECT r.id, r.status, r.total_steps, r.remaining_steps, r.failed_steps, r.error,
       (SELECT max(h.id) FROM flowstone.history h WHERE h.run_id = r.id) AS last_event
  FROM flowstone.runs r WHERE r.id = %(run)s;

-- name: next_due_of_run
SELECT extract(epoch FROM min(s.due_at) - flowstone.now())::float8 AS due_in FROM flowstone.steps s WHERE s.run_id = %(run)s AND s.status = 'ready';

-- name: steps_of_run
SELECT s.*, w.node_name, w.pid,
       (SELECT jsonb_agg(e.parent ORDER BY e.parent) FROM flowstone.step_edges e WHERE e.child = s.id) AS parents
  FROM flowstone.steps s LEFT JOIN flowstone.workers w ON w.id = s.worker_id
 WHERE s.run_id = %(run)s ORDER BY s.ordinal;

-- name: events
SELECT h.*, s.name AS step, s.partition FROM flowstone.history h LEFT JOIN flowstone.steps s ON s.id = h.step_id
 WHERE h.run_id = %(run)s AND h.id > %(after)s ORDER BY h.id LIMIT %(limit)s;

-- name: latest_of_name
-- The newest step that made, or tried to make, this name and partition.
SELECT * FROM flowstone.steps WHERE name = %(name)s AND partition = %(partition)s ORDER BY created_at DESC, id DESC LIMIT 1;
