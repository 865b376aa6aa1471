-- Steps: claim, settle, give back. Each transition is one guarded statement; no row back means that it did not happen.
-- Every settlement is guarded by worker and fence: what another claim has taken over cannot be written by its former holder.

-- fragment: claimed
-- ready -> running under a new fence; the run begins with its first step. Answers all that the call needs.
-- A claim inside a settlement holds the row of its own run and must not wait for another's, which may be waiting for it: it begins
-- a run only if nobody else has its row.
free_run AS (
    SELECT r.id FROM flowstone.runs r
     WHERE NOT %(relaxed)s AND r.status = 'pending' AND r.id = (
           SELECT n.run_id FROM candidate c JOIN flowstone.steps n ON n.id = c.id)
       FOR NO KEY UPDATE SKIP LOCKED
), claimed AS (
    UPDATE flowstone.steps s
       SET status = 'running', fence = s.fence + 1, attempt = s.attempt + 1, worker_id = %(worker)s,
           started_at = flowstone.now(), deadline_at = flowstone.now() + make_interval(secs => s.timeout_seconds),
           due_at = NULL, sent_at = NULL, sends = 0, note = NULL
      FROM candidate c
     WHERE s.id = c.id AND s.status = 'ready'
       AND (%(relaxed)s OR EXISTS (SELECT 1 FROM free_run)
            OR EXISTS (SELECT 1 FROM flowstone.runs r WHERE r.id = s.run_id AND r.status <> 'pending'))
    RETURNING s.*
), begun AS (
    UPDATE flowstone.runs r SET status = 'running', started_at = flowstone.now()
     WHERE r.id = (SELECT c.run_id FROM claimed c) AND r.status = 'pending'
    RETURNING r.id, r.round
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id)
    SELECT id, NULL, round, 'run.running', NULL, NULL, NULL::bigint FROM begun
    UNION ALL
    SELECT run_id, id, round, 'step.running', attempt, fence, worker_id FROM claimed
), durability AS (
    -- The claim's own commit may be lost in a crash of Postgres: the row is ready again then, and every guard compares worker and fence.
    SELECT set_config('synchronous_commit', 'off', true) WHERE %(relaxed)s
)
SELECT c.id, c.run_id, c.kind, c.name, c.partition, c.task, c.queue, c.round, c.phase, c.attempt, c.failures, c.max_failures,
       c.crashes, c.losses, c.fence, c.worker_id, c.sole, c.awaited_at, c.timeout_seconds, c.retry, c.input,
       (SELECT v.value_id FROM flowstone.asset_current v
         WHERE c.sole AND v.asset = c.name AND v.partition = c.partition AND v.invalidated_at IS NULL) AS stands,
       r.name AS run_name, r.requested_by, r.correlation_id, r.tenant, r.input AS run_input,
       coalesce((SELECT jsonb_agg(jsonb_build_object('name', p.name, 'partition', p.partition, 'status', p.status,
                                                     'output', p.output, 'optional', e.optional) ORDER BY p.id)
                   FROM flowstone.step_edges e JOIN flowstone.steps p ON p.id = e.parent
                  WHERE e.child = c.id), '[]'::jsonb) AS inputs,
       (SELECT count(*) FROM durability) AS relaxed
  FROM claimed c JOIN flowstone.runs r ON r.id = c.run_id

-- fragment: turns_from
-- What a settlement opens stands as far behind its parent as it does in its run: a run that has much to do takes turns with one that
-- has little. Never later than what stands first now.
turns_from AS (
    SELECT least(q.turn,
           -- use: first_turn
           ) - q.ordinal AS turn
      FROM moved q
)

-- fragment: awaited
-- Whether somebody waits for what this step was making.
(m.sole AND EXISTS (SELECT 1 FROM flowstone.steps a WHERE a.parked = 'maker' AND a.name = m.name AND a.partition = m.partition)) AS awaited

-- fragment: what_follows
(SELECT array_agg(o.queue) FROM opened o WHERE o.status = 'ready') AS opened,
k.status AS run_status, k.tenant, CASE WHEN k.finished_at IS NOT NULL THEN k.lane END AS lane,
-- use: awaited

-- name: claim (step: ready -> running; run: pending -> running)
-- The door of a wake-up: this very step, if it is still ready and due. While another step makes the same value it is parked instead.
WITH target AS (
    SELECT s.id,
           -- use: nobody_makes_it
           AS free
      FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
     WHERE s.id = %(step)s AND s.status = 'ready' AND
     -- use: may_run_here
       FOR NO KEY UPDATE OF s SKIP LOCKED
), parked AS (
    UPDATE flowstone.steps s SET parked = 'maker', sent_at = NULL, sends = 0, awaited_at = coalesce(s.awaited_at, flowstone.now())
      FROM target t WHERE s.id = t.id AND NOT t.free AND s.status = 'ready'
), candidate AS (
    SELECT id FROM target WHERE free
),
-- use: claimed

-- name: claim_next (step: ready -> running; run: pending -> running)
-- The door of a query: the queue's next ready row that this worker may run, by priority, turn and id, among those that no
-- wake-up is on its way to: so each message finds its row, and few are in vain. No row back while one is on its way that is more
-- urgent (its message may stand behind others, so `claim_promised` takes it), or that has been passed over 200 times: then the slice
-- ends, and the messages get their turn.
WITH RECURSIVE
-- use: levels_of_queue
, candidate AS (
    SELECT c.id FROM levels l CROSS JOIN LATERAL (
        SELECT s.id FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
         WHERE s.status = 'ready' AND s.sent_at IS NULL AND s.parked IS NULL AND s.queue = %(queue)s AND s.priority = l.priority
           AND (%(only_run)s::uuid IS NULL OR s.run_id = %(only_run)s) AND
           -- use: may_run_here
           AND
           -- use: may_run_beside
           AND
           -- use: nobody_makes_it
           AND NOT EXISTS (
               SELECT 1 FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
                WHERE s.sent_at IS NOT NULL AND s.status = 'ready' AND s.queue = %(queue)s
                  AND (s.priority > l.priority OR s.priority = l.priority AND s.turn + 200 < (
                       SELECT f.turn FROM flowstone.steps f
                        WHERE f.status = 'ready' AND f.sent_at IS NULL AND f.parked IS NULL AND f.queue = %(queue)s
                          AND f.priority = l.priority ORDER BY f.turn LIMIT 1))
                  AND (%(only_run)s::uuid IS NULL OR s.run_id = %(only_run)s) AND
                  -- use: may_run_here
                  AND
                  -- use: may_run_beside
           )
         ORDER BY s.turn, s.id LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED
    ) c LIMIT 1
),
-- use: claimed

-- name: claim_promised (step: ready -> running; run: pending -> running)
-- The same among the few rows whose wake-up is on its way, for when nothing else, or nothing as urgent, is ready: the message will
-- find the row gone.
WITH candidate AS (
    SELECT s.id FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
     WHERE s.sent_at IS NOT NULL AND s.status = 'ready' AND s.queue = %(queue)s
       AND (%(only_run)s::uuid IS NULL OR s.run_id = %(only_run)s) AND
       -- use: may_run_here
       AND
       -- use: may_run_beside
       AND
       -- use: nobody_makes_it
       -- A window does not wait for messages that its own process may be keeping from their turn.
       AND (%(beside)s::boolean OR NOT EXISTS (
           SELECT 1 FROM flowstone.steps f
            WHERE f.status = 'ready' AND f.sent_at IS NULL AND f.parked IS NULL AND f.queue = %(queue)s AND f.priority >= s.priority))
     ORDER BY s.priority DESC, s.turn, s.id LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED
),
-- use: claimed

-- name: succeed (step: running -> succeeded; step: blocked -> ready; run: running -> succeeded | failed | cancelled; run: cancelling -> cancelled)
-- The step ends with its output, its children count one dependency less, those with none left are ready, the run counts it.
-- Children are locked by id before they are counted: parents that share children meet in one order.
WITH moved AS (
    UPDATE flowstone.steps
       SET status = 'succeeded', output = %(output)s::jsonb, error = NULL, worker_id = NULL, deadline_at = NULL, finished_at = flowstone.now()
     WHERE
     -- use: held
    RETURNING id, run_id, ordinal, round, attempt, fence, name, partition, sole, queue, priority, turn
), waiting AS (
    -- By an array of ids: a join in the order of ids would read the edges of all runs for it.
    SELECT s.id FROM flowstone.steps s
     WHERE s.id = ANY (ARRAY(SELECT e.child FROM moved m JOIN flowstone.step_edges e ON e.parent = m.id)) AND s.status = 'blocked'
     ORDER BY s.id FOR NO KEY UPDATE OF s
),
-- use: turns_from
, opened AS (
    UPDATE flowstone.steps s
       SET remaining = s.remaining - 1,
           status = CASE WHEN s.remaining = 1 THEN 'ready' ELSE 'blocked' END,
           due_at = CASE WHEN s.remaining = 1 THEN flowstone.now() END,
           turn = s.ordinal + (SELECT turn FROM turns_from)
      FROM waiting w WHERE s.id = w.id AND s.status = 'blocked'
    RETURNING s.id, s.run_id, s.round, s.queue, s.status
), ended AS (
    SELECT m.run_id, 1 AS finished, 0 AS failed, 0 AS cancelled, NULL::jsonb AS error FROM moved m
     WHERE (SELECT count(*) FROM opened) >= 0
),
-- use: counted
, logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id)
    SELECT run_id, id, round, 'step.succeeded', attempt, fence, %(worker)s FROM moved
    UNION ALL
    SELECT run_id, id, round, 'step.ready', NULL, NULL, NULL::bigint FROM opened WHERE status = 'ready'
)
SELECT m.id,
       -- use: what_follows
  FROM moved m LEFT JOIN counted k ON true;

-- name: end_without_value (step: running -> failed | skipped | cancelled; step: blocked -> failed | skipped | cancelled | ready; run: running -> succeeded | failed | cancelled; run: cancelling -> cancelled)
-- The step ends with no value. Whatever needs it ends too, all the way down; what can do without it counts one dependency less.
-- All rows that may change are locked by id first; what really fell decides which optional children are freed.
WITH RECURSIVE moved AS (
    UPDATE flowstone.steps
       SET status = %(status)s, error = %(error)s::jsonb, worker_id = NULL, deadline_at = NULL, finished_at = flowstone.now(),
           failures = failures + %(failed_attempts)s, crashes = crashes + %(crashed)s, losses = losses + %(lost)s
     WHERE
     -- use: held
    RETURNING id, run_id, ordinal, round, attempt, fence, name, partition, sole, queue, priority, turn
), doomed(id) AS (
    SELECT s.id FROM moved m JOIN flowstone.step_edges e ON e.parent = m.id AND NOT e.optional
      JOIN flowstone.steps s ON s.id = e.child AND s.status = 'blocked'
    UNION
    SELECT s.id FROM doomed d JOIN flowstone.step_edges e ON e.parent = d.id AND NOT e.optional
      JOIN flowstone.steps s ON s.id = e.child AND s.status = 'blocked'
), locked AS (
    SELECT s.id FROM flowstone.steps s
     WHERE s.id IN (SELECT id FROM doomed UNION
                    SELECT e.child FROM (SELECT id FROM moved UNION SELECT id FROM doomed) p
                      JOIN flowstone.step_edges e ON e.parent = p.id AND e.optional)
     ORDER BY s.id FOR NO KEY UPDATE OF s
),
-- use: turns_from
, fallen AS (
    UPDATE flowstone.steps s
       SET status = %(dependents)s, error = %(dependents_error)s::jsonb, finished_at = flowstone.now()
      FROM locked l JOIN doomed d USING (id) WHERE s.id = l.id AND s.status = 'blocked'
    RETURNING s.id, s.run_id, s.round
), freed AS (
    SELECT e.child AS id, count(*) AS parents
      FROM (SELECT id FROM moved UNION ALL SELECT id FROM fallen) p JOIN flowstone.step_edges e ON e.parent = p.id AND e.optional
     GROUP BY e.child
), opened AS (
    UPDATE flowstone.steps s
       SET remaining = s.remaining - f.parents,
           status = CASE WHEN s.remaining = f.parents THEN 'ready' ELSE 'blocked' END,
           due_at = CASE WHEN s.remaining = f.parents THEN flowstone.now() END,
           turn = s.ordinal + (SELECT turn FROM turns_from)
      FROM freed f JOIN locked l USING (id)
     WHERE s.id = f.id AND s.status = 'blocked' AND s.id NOT IN (SELECT id FROM fallen)
    RETURNING s.id, s.run_id, s.round, s.queue, s.status
), gone AS (
    SELECT run_id, %(status)s::text AS status FROM moved UNION ALL SELECT run_id, %(dependents)s::text FROM fallen
), ended AS (
    SELECT run_id, count(*) AS finished, count(*) FILTER (WHERE status = 'failed') AS failed,
           count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
           CASE WHEN %(status)s::text = 'failed' THEN %(error)s::jsonb END AS error
      FROM gone WHERE (SELECT count(*) FROM opened) >= 0 GROUP BY run_id
),
-- use: counted
, logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT run_id, id, round, 'step.' || %(status)s, attempt, fence, %(worker)s, %(error)s::jsonb FROM moved
    UNION ALL
    SELECT run_id, id, round, 'step.' || %(dependents)s, NULL, NULL, NULL::bigint, %(dependents_error)s::jsonb FROM fallen
    UNION ALL
    SELECT run_id, id, round, 'step.ready', NULL, NULL, NULL::bigint, NULL::jsonb FROM opened WHERE status = 'ready'
)
SELECT m.id, (SELECT count(*) FROM fallen) AS fallen,
       -- use: what_follows
  FROM moved m LEFT JOIN counted k ON true;

-- name: retry (step: running -> ready)
-- A failed attempt with attempts left: ready again after its delay.
WITH moved AS (
    UPDATE flowstone.steps
       SET status = 'ready', failures = failures + 1, worker_id = NULL, deadline_at = NULL, error = %(error)s::jsonb,
           due_at = flowstone.now() + make_interval(secs => %(delay)s), parked = CASE WHEN %(delay)s > 0 THEN 'due' END
     WHERE
     -- use: held
    RETURNING id, run_id, round, attempt, fence, due_at, queue, name, partition, sole
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT run_id, id, round, 'step.retry', attempt, fence, %(worker)s,
           jsonb_build_object('error', %(error)s::jsonb, 'delay', %(delay)s::float8) FROM moved
)
SELECT id, due_at, CASE WHEN %(delay)s > 0 THEN '{}' ELSE ARRAY[queue] END AS opened,
       -- use: awaited
  FROM moved m;

-- name: give_back (step: running -> ready)
-- The holder gives its step back unharmed (a stop that was announced): no failure, no crash is counted.
WITH moved AS (
    UPDATE flowstone.steps
       SET status = 'ready', worker_id = NULL, deadline_at = NULL, due_at = flowstone.now(), note = %(reason)s
     WHERE
     -- use: held
    RETURNING id, run_id, round, attempt, fence, queue, name, partition, sole
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT run_id, id, round, 'step.released', attempt, fence, %(worker)s, jsonb_build_object('reason', %(reason)s::text) FROM moved
)
SELECT id, ARRAY[queue] AS opened,
       -- use: awaited
  FROM moved m;

-- name: release_dead (step: running -> ready)
-- What dead processes held is ready again, counted as a crash, a loss, or neither (an announced stop). A step that has reached a limit
-- is left for `at_limit` and ends as failed.
-- A crash is counted only of a step that was alone in its process. Of several nobody knows which one it was: each counts a loss instead
-- (never the last one that the limit allows), and is not run beside others again.
WITH company AS (
    SELECT s.worker_id, count(*) > 1 AS several FROM flowstone.steps s
     WHERE s.status = 'running' AND s.worker_id = ANY (%(workers)s::bigint[]) GROUP BY s.worker_id
), held AS (
    SELECT s.id, s.worker_id, c.several AND %(crash)s > 0 AS suspected FROM flowstone.steps s JOIN company c USING (worker_id)
     WHERE s.status = 'running' AND s.worker_id = ANY (%(workers)s::bigint[])
       AND (c.several OR s.crashes + %(crash)s < %(crash_limit)s) AND s.losses + %(loss)s < %(loss_limit)s
     ORDER BY s.id FOR NO KEY UPDATE OF s
), moved AS (
    UPDATE flowstone.steps s
       SET status = 'ready', worker_id = NULL, deadline_at = NULL, due_at = flowstone.now(), note = %(reason)s,
           crashes = s.crashes + CASE WHEN h.suspected THEN 0 ELSE %(crash)s END,
           losses = CASE WHEN h.suspected THEN greatest(s.losses, least(s.losses + 1, %(loss_limit)s - 1)) ELSE s.losses + %(loss)s END
      FROM held h
     WHERE s.id = h.id AND s.status = 'running' AND s.worker_id = h.worker_id
    RETURNING s.id, s.run_id, s.round, s.attempt, s.fence, s.name, s.partition, s.queue, h.worker_id
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT run_id, id, round, 'step.released', attempt, fence, worker_id, jsonb_build_object('reason', %(reason)s::text) FROM moved
)
SELECT id, run_id, name, partition, attempt, queue FROM moved;

-- name: release_lost (step: running -> ready)
-- What nodes held that no longer beat is ready again, with growing pauses. Leases do not run while the database is away: the pacer
-- must have been steady for a whole lease.
WITH held AS (
    SELECT s.id, s.worker_id FROM flowstone.steps s JOIN flowstone.workers w ON w.id = s.worker_id CROSS JOIN flowstone.pacer p
     WHERE s.status = 'running' AND w.alive_until < flowstone.now() AND s.losses + 1 < %(loss_limit)s
       AND p.steady_since < flowstone.now() - make_interval(secs => %(lease)s)
     ORDER BY s.id LIMIT %(limit)s FOR NO KEY UPDATE OF s SKIP LOCKED
), moved AS (
    UPDATE flowstone.steps s
       SET status = 'ready', losses = s.losses + 1, worker_id = NULL, deadline_at = NULL, note = 'lease lost',
           due_at = flowstone.now() + make_interval(secs => CASE WHEN s.losses = 0 THEN 0 ELSE least(60, power(2, s.losses)) END),
           parked = CASE WHEN s.losses > 0 THEN 'due' END
      FROM held h
     WHERE s.id = h.id AND s.status = 'running' AND s.worker_id = h.worker_id
    RETURNING s.id, s.run_id, s.round, s.attempt, s.fence, s.name, s.partition, s.queue, h.worker_id
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT run_id, id, round, 'step.released', attempt, fence, worker_id, jsonb_build_object('reason', 'lease lost') FROM moved
)
SELECT id, run_id, name, partition, attempt, queue FROM moved;

-- name: at_limit
-- Steps of dead processes, or with a lost lease, that have reached their limit of crashes or losses: each ends as failed.
SELECT s.id AS step, s.worker_id AS worker, s.fence, s.run_id, s.name, s.partition, s.attempt, s.crashes, s.losses,
       w.node_name, w.pid
  FROM flowstone.steps s JOIN flowstone.workers w ON w.id = s.worker_id CROSS JOIN flowstone.pacer p
 WHERE s.status = 'running'
   AND ((s.worker_id = ANY (%(workers)s::bigint[])
         -- A claim that the process had sent before it died may land after the others were released: it is not at a limit.
         AND (s.crashes + %(crash)s >= %(crash_limit)s OR s.losses + %(loss)s >= %(loss_limit)s))
        OR (%(lost)s AND w.alive_until < flowstone.now() AND s.losses + 1 >= %(loss_limit)s
            AND p.steady_since < flowstone.now() - make_interval(secs => %(lease)s)))
 ORDER BY s.id LIMIT 100;

-- name: settled_under
-- Whether this very attempt has settled: its history row says so, in the same commit.
SELECT event FROM flowstone.history
 WHERE run_id = %(run)s AND step_id = %(step)s AND fence = %(fence)s AND worker_id = %(worker)s
   AND event IN ('step.succeeded', 'step.failed', 'step.skipped', 'step.cancelled', 'step.retry', 'step.released')
 ORDER BY id DESC LIMIT 1;

-- name: promise
-- Wake-ups are promised to the next ready rows of one queue, as many as it has room for; the caller sends them after the commit.
-- Rows that no listening node knows get none: their messages would come back, and fill the room that others need.
WITH RECURSIVE
-- use: levels_of_queue
, room AS (
    -- Whoever is promising on this queue at the same moment does it for both: two at once would fill the room twice.
    SELECT CASE WHEN pg_try_advisory_xact_lock(hashtextextended('flowstone.promise.' || q.queue, 0)) THEN
    -- use: room_of_q
    ELSE 0 END AS places FROM (SELECT %(queue)s::text AS queue) q
), known AS (
    SELECT count(*) > 0 AS listens, coalesce(array_agg(DISTINCT k.task), '{}') AS tasks, max(n.protocol) AS protocol
      FROM flowstone.nodes n CROSS JOIN LATERAL unnest(n.knows) AS k(task)
     WHERE n.status = 'live' AND n.alive_until > flowstone.now() AND %(queue)s = ANY (n.queues)
), chosen AS (
    SELECT c.id FROM room r CROSS JOIN levels l CROSS JOIN LATERAL (
        SELECT s.id FROM flowstone.steps s
         WHERE s.status = 'ready' AND s.sent_at IS NULL AND s.parked IS NULL AND s.queue = %(queue)s AND s.priority = l.priority
           AND s.due_at <= flowstone.now()
           AND (NOT (SELECT listens FROM known)
                OR (s.task = ANY ((SELECT tasks FROM known)::text[]) AND s.v <= (SELECT protocol FROM known)))
         ORDER BY s.turn, s.id LIMIT (SELECT places FROM room) FOR NO KEY UPDATE OF s SKIP LOCKED
    ) c LIMIT (SELECT places FROM room)
)
-- An array, not a join: how many the limit lets through is not known to the planner, which would read the whole table for it.
UPDATE flowstone.steps s SET sent_at = flowstone.now(), sends = 0
 WHERE s.id = ANY (ARRAY(SELECT id FROM chosen)) AND s.status = 'ready'
RETURNING s.id, s.run_id, s.name, s.partition, s.task, s.queue;

-- name: promise_again
-- Into idle slots only: promised rows whose wake-up seems lost, with pauses that double for each row up to a minute.
WITH chosen AS (
    SELECT s.id FROM flowstone.steps s
     WHERE s.sent_at IS NOT NULL AND s.queue = %(queue)s AND s.status = 'ready' AND s.task = ANY (%(knows)s::text[])
       AND s.sent_at < flowstone.now() - make_interval(secs => least(60, %(pause)s * power(2, s.sends)))
     ORDER BY s.priority DESC, s.sent_at LIMIT %(places)s FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE flowstone.steps s SET sent_at = flowstone.now(), sends = least(s.sends + 1, 10)
 WHERE s.id = ANY (ARRAY(SELECT id FROM chosen)) AND s.status = 'ready'
RETURNING s.id, s.run_id, s.name, s.partition, s.task, s.queue;

-- name: free_awaiting
-- Nobody makes this value any more: who waited for it may try. Rows that somebody holds are left to the sweep.
WITH waiting AS (
    SELECT s.id FROM flowstone.steps s
     WHERE s.parked = 'maker' AND s.name = %(name)s AND s.partition = %(partition)s
     ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE flowstone.steps s SET parked =
       -- use: parked_as_its_run_says
  FROM waiting w, flowstone.runs r WHERE s.id = w.id AND s.parked = 'maker' AND r.id = s.run_id
RETURNING s.queue;

-- name: note
-- Say on the row why it is not running; its wake-up came back, and no longer counts as under way.
UPDATE flowstone.steps SET note = %(note)s, sent_at = NULL, sends = 0 WHERE id = %(step)s AND status = 'ready' RETURNING id;
