-- Steps: claim, settle, give back. Each transition is one guarded statement; no row back means that it did not happen.
-- Every settlement is guarded by worker and fence: what another claim has taken over cannot be written by its former holder.

-- fragment: turns_from
-- What a settlement opens stands as far behind its parent as it does in its run: a run that has much to do takes turns with one that
-- has little. Never later than what stands first now.
turns_from AS (
    SELECT least(q.turn,
           -- use: first_turn
           ) - q.ordinal AS turn
      FROM moved q
)

-- fragment: output_and_what_was_written
-- Its own output, and what was written in this settlement beside it (the version of a value, say).
nullif(coalesce(%(output)s::jsonb, '{}') || coalesce(nullif(current_setting('flowstone_settlement.written', true), ''), '{}')::jsonb, '{}')

-- fragment: awaited
-- Whether somebody waits for what this step was making.
(m.sole AND EXISTS (SELECT 1 FROM flowstone.steps a WHERE a.parked = 'maker' AND a.name = m.name AND a.partition = m.partition)) AS awaited

-- fragment: what_follows
(SELECT array_agg(o.queue) FROM opened o WHERE o.status = 'ready') AS opened,
k.status AS run_status, k.tenant, CASE WHEN k.finished_at IS NOT NULL THEN k.lane END AS lane,
-- use: awaited

-- fragment: all_that_falls
-- Whatever needs what has ended without a value ends too, all the way down; what can do without it counts one dependency less.
-- All rows that may change are locked by id first; what really fell decides which optional children are freed.
shut AS (
    -- The step was filling a barrier still: nobody will seal it.
    UPDATE flowstone.barriers b SET status = 'cancelled', closed_at = flowstone.now() FROM moved m WHERE b.step_id = m.id AND b.status = 'open'
    RETURNING b.id
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
    SELECT run_id, status FROM moved UNION ALL SELECT run_id, %(dependents)s::text FROM fallen
), ended AS (
    SELECT run_id, count(*) AS finished, count(*) FILTER (WHERE status = 'failed') AS failed,
           count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
           CASE WHEN bool_or(status = 'failed') THEN %(error)s::jsonb END AS error
      FROM gone WHERE (SELECT count(*) FROM opened) >= 0 GROUP BY run_id
),
-- use: counted
, logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT run_id, id, round, 'step.' || status, attempt, fence, %(worker)s, %(error)s::jsonb FROM moved
    UNION ALL
    SELECT run_id, id, round, 'step.' || %(dependents)s, NULL, NULL, NULL::bigint, %(dependents_error)s::jsonb FROM fallen
    UNION ALL
    SELECT run_id, id, round, 'step.ready', NULL, NULL, NULL::bigint, NULL::jsonb FROM opened WHERE status = 'ready'
)
SELECT m.id, (SELECT count(*) FROM fallen) AS fallen, (SELECT b.id FROM shut b LIMIT 1) AS barrier,
       -- use: what_follows
  FROM moved m LEFT JOIN counted k ON true

-- function: claim (step: ready -> running; run: pending -> running)
-- takes: step bigint, queue text, worker bigint, knows text[], protocol integer, only_run uuid, relaxed boolean, beside boolean
-- answers: id bigint, run_id uuid, kind text, name text, partition text, task text, queue text, round integer, phase text
-- answers: attempt integer, failures integer, max_failures integer, crashes integer, losses integer, fence bigint, worker_id bigint
-- answers: sole boolean, awaited_at timestamptz, timeout_seconds float8, retry jsonb, input jsonb, stands bigint
-- answers: run_name text, requested_by text, correlation_id text, tenant text, run_input jsonb, inputs jsonb, barrier_id bigint
-- Three doors, in this order; each may be closed by a NULL.
-- A wake-up names a step: this very one, if it is still ready and due. While another step makes the same value it is parked instead.
-- A query names a queue: its next ready row that this worker may run, by priority, turn and id, among those that no wake-up is on its
-- way to, so that each message finds its row, and few are in vain. None while a wake-up is on its way to one that is more urgent, or
-- that has been passed over 200 times: then the slice ends, and the messages get their turn.
-- Else the few rows whose wake-up is on its way, for when nothing else, or nothing as urgent, is ready: the message will find the row
-- gone.
DECLARE
    chosen bigint;
    level integer;
    free boolean;
    c flowstone.steps;
    r flowstone.runs;
BEGIN
    IF NOT
       -- use: worker_holds_a_lease
    THEN
        RETURN;
    END IF;
    IF %(step)s IS NOT NULL THEN
        SELECT s.id,
               -- use: nobody_makes_it
          INTO chosen, free
          FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
         WHERE s.id = %(step)s AND s.status = 'ready' AND
         -- use: may_run_here
           FOR NO KEY UPDATE OF s SKIP LOCKED;
        IF NOT free THEN
            UPDATE flowstone.steps s SET parked = 'maker', sent_at = NULL, sends = 0, awaited_at = coalesce(s.awaited_at, flowstone.now())
             WHERE s.id = chosen AND s.status = 'ready';
            chosen := NULL;
        END IF;
    END IF;
    IF chosen IS NULL AND %(queue)s IS NOT NULL THEN
        SELECT s.id, s.priority INTO chosen, level
          FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
         WHERE s.status = 'ready' AND s.sent_at IS NULL AND s.parked IS NULL AND s.queue = %(queue)s
           AND (%(only_run)s IS NULL OR s.run_id = %(only_run)s) AND
           -- use: may_run_here
           AND
           -- use: may_run_beside
           AND
           -- use: nobody_makes_it
         ORDER BY s.priority DESC, s.turn, s.id LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED;
        IF chosen IS NOT NULL AND EXISTS (
            SELECT 1 FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
             WHERE s.sent_at IS NOT NULL AND s.status = 'ready' AND s.queue = %(queue)s
               AND (s.priority > level OR s.priority = level AND s.turn + 200 < (
                    SELECT f.turn FROM flowstone.steps f
                     WHERE f.status = 'ready' AND f.sent_at IS NULL AND f.parked IS NULL AND f.queue = %(queue)s
                       AND f.priority = level ORDER BY f.turn LIMIT 1))
               AND (%(only_run)s IS NULL OR s.run_id = %(only_run)s) AND
               -- use: may_run_here
               AND
               -- use: may_run_beside
        ) THEN
            chosen := NULL;
        END IF;
    END IF;
    IF chosen IS NULL AND %(queue)s IS NOT NULL THEN
        SELECT s.id INTO chosen FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
         WHERE s.sent_at IS NOT NULL AND s.status = 'ready' AND s.queue = %(queue)s
           AND (%(only_run)s IS NULL OR s.run_id = %(only_run)s) AND
           -- use: may_run_here
           AND
           -- use: may_run_beside
           AND
           -- use: nobody_makes_it
           -- A window does not wait for messages that its own process may be keeping from their turn.
           AND (%(beside)s OR NOT EXISTS (
               SELECT 1 FROM flowstone.steps f
                WHERE f.status = 'ready' AND f.sent_at IS NULL AND f.parked IS NULL AND f.queue = %(queue)s AND f.priority >= s.priority))
         ORDER BY s.priority DESC, s.turn, s.id LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED;
    END IF;
    IF chosen IS NULL THEN
        RETURN;
    END IF;
    SELECT o.* INTO r FROM flowstone.runs o JOIN flowstone.steps s ON s.run_id = o.id WHERE s.id = chosen;
    IF r.status = 'pending' AND NOT %(relaxed)s THEN
        -- A claim inside a settlement holds the row of its own run and must not wait for another's, which may be waiting for it: it
        -- begins a run only if nobody else has its row.
        PERFORM FROM flowstone.runs o WHERE o.id = r.id AND o.status = 'pending' FOR NO KEY UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    UPDATE flowstone.steps s
       SET status = 'running', fence = s.fence + 1, attempt = s.attempt + 1, worker_id = %(worker)s,
           started_at = flowstone.now(), deadline_at = flowstone.now() + make_interval(secs => s.timeout_seconds),
           due_at = NULL, sent_at = NULL, sends = 0, note = NULL
     WHERE s.id = chosen AND s.status = 'ready'
    RETURNING s.* INTO c;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF r.status = 'pending' THEN
        UPDATE flowstone.runs o SET status = 'running', started_at = flowstone.now() WHERE o.id = r.id AND o.status = 'pending';
        IF FOUND THEN
            INSERT INTO flowstone.history (run_id, round, event) VALUES (r.id, r.round, 'run.running');
        END IF;
    END IF;
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id)
    VALUES (c.run_id, c.id, c.round, 'step.running', c.attempt, c.fence, c.worker_id);
    IF %(relaxed)s THEN
        -- The claim's own commit may be lost in a crash of Postgres: the row is ready again then, and every guard compares worker and fence.
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    -- What stands is looked up now that nobody else can make it: a maker that settled a moment before is seen.
    RETURN QUERY
    SELECT c.id, c.run_id, c.kind, c.name, c.partition, c.task, c.queue, c.round, c.phase, c.attempt, c.failures, c.max_failures,
           c.crashes, c.losses, c.fence, c.worker_id, c.sole, c.awaited_at, c.timeout_seconds, c.retry, c.input,
           CASE WHEN c.sole THEN (SELECT v.value_id FROM flowstone.asset_current v
             WHERE v.asset = c.name AND v.partition = c.partition AND v.invalidated_at IS NULL) END,
           r.name, r.requested_by, r.correlation_id, r.tenant, r.input,
           coalesce((SELECT jsonb_agg(jsonb_build_object('name', p.name, 'partition', p.partition, 'status', p.status,
                                                         'output', p.output, 'optional', e.optional) ORDER BY p.id)
                       FROM flowstone.step_edges e JOIN flowstone.steps p ON p.id = e.parent
                      WHERE e.child = c.id), '[]'::jsonb), c.barrier_id;
END

-- function: succeed (step: running -> succeeded; step: blocked -> ready; run: running -> succeeded | failed | cancelled; run: cancelling -> cancelled)
-- takes: step bigint, worker bigint, fence bigint, output jsonb
-- answers: id bigint, opened text[], run_status text, tenant text, lane text, awaited boolean
-- The step ends with its output and what was written beside it, its children count one dependency less, those with none left are
-- ready, the run counts it. Children are locked by id before they are counted: parents that share children meet in one order.
DECLARE
    m flowstone.steps;
    k flowstone.runs;
    waiting bigint[];
    first bigint;
    queues text[];
BEGIN
    UPDATE flowstone.steps
       SET status = 'succeeded', error = NULL, worker_id = NULL, deadline_at = NULL, finished_at = flowstone.now(), output =
           -- use: output_and_what_was_written
     WHERE
     -- use: held
    RETURNING * INTO m;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id)
    VALUES (m.run_id, m.id, m.round, 'step.succeeded', m.attempt, m.fence, %(worker)s);
    -- By an array of ids: a join in the order of ids would read the edges of all runs for it.
    waiting := ARRAY(
        SELECT s.id FROM flowstone.steps s
         WHERE s.id = ANY (ARRAY(SELECT e.child FROM flowstone.step_edges e WHERE e.parent = m.id)) AND s.status = 'blocked'
         ORDER BY s.id FOR NO KEY UPDATE OF s);
    IF cardinality(waiting) > 0 THEN
        -- What a settlement opens stands as far behind its parent as it does in its run: a run that has much to do takes turns with
        -- one that has little. Never later than what stands first now.
        SELECT least(m.turn, f.turn) INTO first FROM flowstone.steps f
         WHERE f.status = 'ready' AND f.sent_at IS NULL AND f.parked IS NULL AND f.queue = m.queue AND f.priority = m.priority
         ORDER BY f.turn LIMIT 1;
        WITH opened AS (
            UPDATE flowstone.steps s
               SET remaining = s.remaining - 1,
                   status = CASE WHEN s.remaining = 1 THEN 'ready' ELSE 'blocked' END,
                   due_at = CASE WHEN s.remaining = 1 THEN flowstone.now() END,
                   turn = s.ordinal + coalesce(first, m.turn) - m.ordinal
             WHERE s.id = ANY (waiting) AND s.status = 'blocked'
            RETURNING s.id, s.run_id, s.round, s.queue, s.status
        ), logged AS (
            INSERT INTO flowstone.history (run_id, step_id, round, event)
            SELECT o.run_id, o.id, o.round, 'step.ready' FROM opened o WHERE o.status = 'ready'
        )
        SELECT array_agg(o.queue) INTO queues FROM opened o WHERE o.status = 'ready';
    END IF;
    UPDATE flowstone.runs r
       SET remaining_steps = r.remaining_steps - 1,
           status = CASE WHEN r.remaining_steps > 1 THEN r.status
                         WHEN r.status = 'cancelling' THEN coalesce(r.ends_as, 'cancelled')
                         WHEN r.failed_steps > 0 THEN 'failed'
                         WHEN r.cancelled_steps > 0 THEN 'cancelled'
                         ELSE 'succeeded' END,
           finished_at = CASE WHEN r.remaining_steps = 1 THEN flowstone.now() END
     WHERE r.id = m.run_id AND r.status IN ('running', 'cancelling')
    RETURNING r.* INTO k;
    IF k.finished_at IS NOT NULL THEN
        INSERT INTO flowstone.history (run_id, round, event) VALUES (k.id, k.round, 'run.' || k.status);
    END IF;
    RETURN QUERY SELECT m.id, queues, k.status, k.tenant, CASE WHEN k.finished_at IS NOT NULL THEN k.lane END,
           -- use: awaited
    ;
END

-- name: end_without_value (barrier: open -> cancelled; step: running -> failed | skipped | cancelled; step: blocked -> failed | skipped | cancelled | ready; run: running -> succeeded | failed | cancelled; run: cancelling -> cancelled)
-- The step ends with no value. A hand makes none: it is skipped, whatever became of it, and harms no run.
WITH RECURSIVE moved AS (
    UPDATE flowstone.steps
       SET status = CASE WHEN phase = 'item' THEN 'skipped' ELSE %(status)s END, error = %(error)s::jsonb, worker_id = NULL, deadline_at = NULL, finished_at = flowstone.now(),
           failures = failures + %(failed_attempts)s, crashes = crashes + %(crashed)s, losses = losses + %(lost)s
     WHERE
     -- use: held
    RETURNING id, run_id, ordinal, round, attempt, fence, name, partition, sole, queue, priority, turn, status
),
-- use: all_that_falls
;

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

-- fragment: lost_with_their_hands
-- What a released hand had claimed is lost; whoever comes next does it. One that shared its process is under no suspicion by name.
lost AS (
    UPDATE flowstone.item_claims c SET status = 'lost', lost_by = m.lost_by FROM moved m
     WHERE m.phase = 'item' AND c.hand_id = m.id AND c.status = 'held'
)

-- name: lose_claims (item_claim: held -> lost)
-- What these hands claimed in a transaction that was open as they were being released, and that the release could not see.
UPDATE flowstone.item_claims c SET status = 'lost', lost_by = 'loss' WHERE c.hand_id = ANY (%(hands)s::bigint[]) AND c.status = 'held';

-- name: release_dead (step: running -> ready; item_claim: held -> lost)
-- What dead processes held is ready again, counted as a crash, a loss, or neither (an announced stop). A step that has reached a limit
-- is left for `at_limit` and ends as failed.
-- A crash is counted only of a step that was alone in its process. Of several nobody knows which one it was: each counts a loss instead
-- (never the last one that the limit allows), and is not run beside others again. A hand has no limit: its items have.
WITH company AS (
    SELECT s.worker_id, count(*) > 1 AS several FROM flowstone.steps s
     WHERE s.status = 'running' AND s.worker_id = ANY (%(workers)s::bigint[]) GROUP BY s.worker_id
), held AS (
    SELECT s.id, s.worker_id, c.several AND %(crash)s > 0 AS suspected FROM flowstone.steps s JOIN company c USING (worker_id)
     WHERE s.status = 'running' AND s.worker_id = ANY (%(workers)s::bigint[])
       AND (s.phase = 'item' OR (c.several OR s.crashes + %(crash)s < %(crash_limit)s) AND s.losses + %(loss)s < %(loss_limit)s)
     ORDER BY s.id FOR NO KEY UPDATE OF s
), moved AS (
    UPDATE flowstone.steps s
       SET status = 'ready', worker_id = NULL, deadline_at = NULL, due_at = flowstone.now(), note = %(reason)s,
           crashes = s.crashes + CASE WHEN h.suspected OR s.phase = 'item' THEN 0 ELSE %(crash)s END,
           losses = CASE WHEN s.phase = 'item' THEN least(1, s.losses + %(crash)s + %(loss)s)
                         WHEN h.suspected THEN greatest(s.losses, least(s.losses + 1, %(loss_limit)s - 1)) ELSE s.losses + %(loss)s END
      FROM held h
     WHERE s.id = h.id AND s.status = 'running' AND s.worker_id = h.worker_id
    RETURNING s.id, s.run_id, s.round, s.attempt, s.fence, s.name, s.partition, s.queue, s.phase, h.worker_id,
              CASE WHEN h.suspected OR %(loss)s > 0 THEN 'loss' WHEN %(crash)s > 0 THEN 'crash' ELSE 'stop' END AS lost_by
),
-- use: lost_with_their_hands
, logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT run_id, id, round, 'step.released', attempt, fence, worker_id, jsonb_build_object('reason', %(reason)s::text) FROM moved
)
SELECT id, run_id, name, partition, attempt, queue, phase FROM moved;

-- name: release_lost (step: running -> ready; item_claim: held -> lost)
-- What nodes held that no longer beat is ready again, with growing pauses. Leases do not run while the database is away: the pacer
-- must have been steady for a whole lease.
WITH held AS (
    SELECT s.id, s.worker_id FROM flowstone.steps s JOIN flowstone.workers w ON w.id = s.worker_id CROSS JOIN flowstone.pacer p
     WHERE s.status = 'running' AND w.alive_until < flowstone.now() AND (s.losses + 1 < %(loss_limit)s OR s.phase = 'item')
       AND p.steady_since < flowstone.now() - make_interval(secs => %(lease)s)
     ORDER BY s.id LIMIT %(limit)s FOR NO KEY UPDATE OF s SKIP LOCKED
), moved AS (
    UPDATE flowstone.steps s
       SET status = 'ready', losses = CASE WHEN s.phase = 'item' THEN 1 ELSE s.losses + 1 END, worker_id = NULL, deadline_at = NULL,
           note = 'lease lost',
           due_at = flowstone.now() + make_interval(secs => CASE WHEN s.losses = 0 THEN 0 ELSE least(60, power(2, s.losses)) END),
           parked = CASE WHEN s.losses > 0 THEN 'due' END
      FROM held h
     WHERE s.id = h.id AND s.status = 'running' AND s.worker_id = h.worker_id
    RETURNING s.id, s.run_id, s.round, s.attempt, s.fence, s.name, s.partition, s.queue, s.phase, h.worker_id, 'loss' AS lost_by
),
-- use: lost_with_their_hands
, logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id, detail)
    SELECT run_id, id, round, 'step.released', attempt, fence, worker_id, jsonb_build_object('reason', 'lease lost') FROM moved
)
SELECT id, run_id, name, partition, attempt, queue, phase FROM moved;

-- name: at_limit
-- Steps of dead processes, or with a lost lease, that have reached their limit of crashes or losses: each ends as failed.
SELECT s.id AS step, s.worker_id AS worker, s.fence, s.run_id, s.name, s.partition, s.attempt, s.crashes, s.losses,
       w.node_name, w.pid
  FROM flowstone.steps s JOIN flowstone.workers w ON w.id = s.worker_id CROSS JOIN flowstone.pacer p
 WHERE s.status = 'running' AND s.phase <> 'item'
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
