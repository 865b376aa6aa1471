-- The ticker: what is due, what is lost, what was promised and never came.

-- name: pace
-- Hold the pacer's row. A gap between beats (the database was away, or nobody paced) starts the steady time anew.
UPDATE flowstone.pacer
   SET holder = %(node)s::uuid, held_until = flowstone.now() + make_interval(secs => %(hold)s), beat_at = flowstone.now(),
       steady_since = CASE WHEN steady_since IS NULL OR beat_at < flowstone.now() - make_interval(secs => %(gap)s)
                                OR pg_postmaster_start_time() > steady_since
                           THEN flowstone.now() ELSE steady_since END
 WHERE id = 1 AND (holder = %(node)s::uuid OR held_until IS NULL OR held_until < flowstone.now())
RETURNING steady_since;

-- name: agenda
-- One look at everything that may be due. Each part is held to a partial index.
WITH RECURSIVE queues AS (
    (SELECT s.queue FROM flowstone.steps s WHERE s.status = 'ready' AND s.sent_at IS NULL AND s.parked IS NULL ORDER BY s.queue LIMIT 1)
    UNION ALL
    SELECT (SELECT s.queue FROM flowstone.steps s
             WHERE s.status = 'ready' AND s.sent_at IS NULL AND s.parked IS NULL AND s.queue > k.queue ORDER BY s.queue LIMIT 1)
      FROM queues k WHERE k.queue IS NOT NULL
)
SELECT (SELECT array_agg(k.queue) FROM queues k WHERE k.queue IS NOT NULL) AS due,
       (SELECT extract(epoch FROM s.due_at - flowstone.now())::float8 FROM flowstone.steps s WHERE s.parked IN ('due', 'idle')
         ORDER BY s.due_at LIMIT 1) AS next_due_in,
       EXISTS (SELECT 1 FROM flowstone.steps a WHERE a.parked = 'maker' AND NOT EXISTS (
                   SELECT 1 FROM flowstone.steps m WHERE m.name = a.name AND m.partition = a.partition AND
                   -- use: m_is_making
               )) AS awaiting,
       EXISTS (SELECT 1 FROM flowstone.runs r WHERE r.deadline_at <= flowstone.now() AND r.status IN ('pending', 'running')) AS late,
       EXISTS (SELECT 1 FROM flowstone.requests) AS asked,
       EXISTS (SELECT 1 FROM flowstone.barriers b WHERE b.status = 'open')
           OR EXISTS (SELECT 1 FROM flowstone.barriers b WHERE b.keyed) AS scatters,
       EXISTS (SELECT 1 FROM flowstone.runs r WHERE r.status = 'cancelling') AS cancelling,
       EXISTS (SELECT 1 FROM flowstone.workers w JOIN flowstone.steps s ON s.worker_id = w.id AND s.status = 'running'
                WHERE w.alive_until < flowstone.now()) AS lost;

-- name: unpark_due
-- One batch of rows whose moment has come, back in the line at the present turn (of one run only, where one is named).
WITH batch AS (
    SELECT s.id, s.queue, s.priority FROM flowstone.steps s
     WHERE s.parked IN ('due', 'idle') AND s.due_at <= flowstone.now() AND (%(only_run)s::uuid IS NULL OR s.run_id = %(only_run)s)
     ORDER BY s.due_at LIMIT %(limit)s FOR NO KEY UPDATE OF s SKIP LOCKED
), turns AS (
    SELECT q.queue, q.priority,
           -- use: present_turn
           AS first
      FROM (SELECT DISTINCT queue, priority FROM batch) q
)
UPDATE flowstone.steps s SET turn = t.first, parked =
       -- use: parked_as_its_run_says
  FROM batch b JOIN turns t USING (queue, priority), flowstone.runs r
 WHERE s.id = b.id AND s.parked IN ('due', 'idle') AND r.id = s.run_id
RETURNING s.queue;

-- name: unpark_awaiting
-- Rows that wait for a maker that is no more, back in the line (of one run only, where one is named).
WITH batch AS (
    SELECT a.id FROM flowstone.steps a
     WHERE a.parked = 'maker' AND (%(only_run)s::uuid IS NULL OR a.run_id = %(only_run)s)
       AND NOT EXISTS (SELECT 1 FROM flowstone.steps m
                        WHERE m.name = a.name AND m.partition = a.partition AND
                        -- use: m_is_making
       )
     ORDER BY a.name, a.partition LIMIT %(limit)s FOR NO KEY UPDATE OF a SKIP LOCKED
)
UPDATE flowstone.steps s SET parked =
       -- use: parked_as_its_run_says
  FROM batch b, flowstone.runs r WHERE s.id = b.id AND s.parked = 'maker' AND r.id = s.run_id
RETURNING s.queue;

-- name: capacity
-- For each queue with promised rows: the slots of the live nodes that listen, how many are busy, and what those nodes know.
SELECT q.queue, coalesce(sum(n.slots), 0)::int AS slots, coalesce(sum(b.busy), 0)::int AS busy,
       coalesce((SELECT array_agg(DISTINCT k) FROM flowstone.nodes m CROSS JOIN LATERAL unnest(m.knows) k
                  WHERE m.status = 'live' AND m.alive_until > flowstone.now() AND q.queue = ANY (m.queues)), '{}') AS knows
  FROM (
      WITH RECURSIVE queues AS (
          (SELECT s.queue FROM flowstone.steps s WHERE s.sent_at IS NOT NULL ORDER BY s.queue LIMIT 1)
          UNION ALL
          SELECT (SELECT s.queue FROM flowstone.steps s WHERE s.sent_at IS NOT NULL AND s.queue > k.queue ORDER BY s.queue LIMIT 1)
            FROM queues k WHERE k.queue IS NOT NULL)
      SELECT queue FROM queues WHERE queue IS NOT NULL
  ) q
  JOIN flowstone.nodes n ON n.status = 'live' AND n.alive_until > flowstone.now() AND q.queue = ANY (n.queues)
  LEFT JOIN LATERAL (
      -- Steps side by side share the slot of their process: a child of a pool is one slot, however many it runs.
      SELECT CASE WHEN n.pool = 'prefork' THEN count(DISTINCT w.id) ELSE count(*) END AS busy
        FROM flowstone.workers w JOIN flowstone.steps s ON s.worker_id = w.id AND s.status = 'running'
       WHERE w.node_key = n.key AND w.status = 'live'
  ) b ON true
 GROUP BY q.queue;

-- name: why_not_running
-- plan: anew
-- For each unfinished step the reason why it is not running.
SELECT s.id, s.run_id, s.name, s.partition, s.queue, s.status,
       CASE
         WHEN s.status = 'running' AND w.alive_until < flowstone.now() THEN
              'its worker ' || w.node_name || ' (pid ' || w.pid || ') lost its lease; another takes over when the lease time has passed'
         WHEN s.status = 'running' THEN 'it runs on ' || w.node_name || ' (pid ' || w.pid || ')'
         WHEN s.status = 'blocked' THEN 'it waits for ' || s.remaining || ' of its dependencies: ' || coalesce(
              (SELECT string_agg(p.name || ' (' || p.status || ')', ', ' ORDER BY p.id) FROM flowstone.step_edges e
                 JOIN flowstone.steps p ON p.id = e.parent WHERE e.child = s.id
                  AND p.status NOT IN ('succeeded', 'failed', 'skipped', 'cancelled')), 'none that is open')
         WHEN r.status = 'cancelling' THEN 'its run is being cancelled'
         WHEN s.status = 'waiting' THEN coalesce((
              SELECT 'it waits for its items: ' || b.done + b.failed + (
                         SELECT coalesce(sum(p.done), 0) FROM flowstone.barrier_pages p WHERE p.barrier_id = b.id AND p.done + p.failed < p.size)
                     || ' of ' || b.total || ' have ended' || CASE
                         WHEN NOT EXISTS (SELECT 1 FROM flowstone.nodes n WHERE n.status = 'live' AND n.alive_until > flowstone.now()
                                             AND b.queue = ANY (n.queues)) THEN ', and no worker listens on queue ' || quote_literal(b.queue)
                         WHEN NOT EXISTS (SELECT 1 FROM flowstone.nodes n WHERE n.status = 'live' AND n.alive_until > flowstone.now()
                                             AND b.queue = ANY (n.queues) AND b.task = ANY (n.knows)) THEN
                              ', and no worker on queue ' || quote_literal(b.queue) || ' knows the task ' || quote_literal(b.task)
                         ELSE '' END
                FROM flowstone.barriers b WHERE b.step_id = s.id AND b.status = 'open'), 'what it waited for has ended: it goes on next')
         WHEN NOT r.admitted THEN 'earlier runs of lane ' || quote_literal(r.lane) || ' have not ended: ' || coalesce(
              (SELECT string_agg(e.id::text, ', ') FROM (SELECT o.id FROM flowstone.runs o
                 WHERE o.tenant = r.tenant AND o.lane = r.lane AND o.admitted AND o.finished_at IS NULL ORDER BY o.created_at LIMIT 3) e), 'it is let in next')
         WHEN r.paused THEN 'its run is paused'
         WHEN s.parked = 'maker' THEN coalesce((SELECT 'run ' || m.run_id || ' makes the same value now' FROM flowstone.steps m
                 WHERE m.name = s.name AND m.partition = s.partition AND
                 -- use: m_is_making
                 ), 'what it waited for has ended: it is next in line')
         WHEN s.due_at > flowstone.now() THEN 'it is due at ' || to_char(s.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC'
              || CASE WHEN s.failures > 0 THEN ' (retry ' || s.failures || ')' ELSE '' END
         WHEN NOT EXISTS (SELECT 1 FROM flowstone.nodes n WHERE n.status = 'live' AND n.alive_until > flowstone.now() AND s.queue = ANY (n.queues)) THEN
              coalesce((SELECT 'worker ' || min(n.name) || ' is too old for the database (its code is of schema ' || min(n.schema_version)
                               || ', the oldest that may run here is ' || min(v.oldest_code) || '), and '
                          FROM flowstone.nodes n JOIN flowstone.schema_version v ON n.schema_version < v.oldest_code
                         WHERE n.status = 'draining' AND n.alive_until > flowstone.now() AND s.queue = ANY (n.queues) HAVING count(*) > 0), '') ||
              'no worker listens on queue ' || quote_literal(s.queue)
         WHEN NOT EXISTS (SELECT 1 FROM flowstone.nodes n WHERE n.status = 'live' AND n.alive_until > flowstone.now() AND s.queue = ANY (n.queues)
                             AND s.task = ANY (n.knows)) THEN
              'no worker on queue ' || quote_literal(s.queue) || ' knows the task ' || quote_literal(s.task)
         WHEN NOT EXISTS (SELECT 1 FROM flowstone.nodes n WHERE n.status = 'live' AND n.alive_until > flowstone.now() AND s.queue = ANY (n.queues)
                             AND s.task = ANY (n.knows) AND n.protocol >= s.v) THEN
              'every worker on queue ' || quote_literal(s.queue) || ' is older than the step (protocol ' || s.v || ')'
         WHEN s.note IS NOT NULL AND s.sent_at IS NULL THEN s.note || '; it is next in line on queue ' || quote_literal(s.queue)
         WHEN s.sent_at IS NULL THEN 'it stands in line on queue ' || quote_literal(s.queue)
         ELSE 'a worker on queue ' || quote_literal(s.queue) || ' has been woken'
       END AS reason
  FROM flowstone.steps s
  JOIN flowstone.runs r ON r.id = s.run_id
  LEFT JOIN flowstone.workers w ON w.id = s.worker_id
 WHERE s.status NOT IN ('succeeded', 'failed', 'skipped', 'cancelled') AND s.phase <> 'item'
   AND (%(run)s::uuid IS NULL OR s.run_id = %(run)s)
 ORDER BY s.id LIMIT %(limit)s;
