-- Runs: one request to bring something about, with its steps. Lock order: steps (by id), then the run.

-- name: start (run: -> pending; step: -> ready | blocked)
-- A run, its steps and its edges appear together. Steps come in topological order, so a parent's id is below its children's.
-- Wake-ups are promised here (sent_at) as far as their queue has room. No row back: the idempotency key is taken.
WITH made AS (
    INSERT INTO flowstone.runs (id, kind, name, partition, tenant, requested_by, idempotency_key, request_digest, status, priority,
                                correlation_id, root_id, input, total_steps, remaining_steps, code_version,
                                lane, lane_width, admitted, deadline_at)
    VALUES (%(run)s::uuid, %(kind)s, %(name)s, %(partition)s, %(tenant)s, %(requested_by)s, %(idempotency_key)s, %(request_digest)s,
            'pending', %(priority)s, %(correlation_id)s, %(run)s::uuid, %(input)s::jsonb,
            cardinality(%(names)s::text[]), cardinality(%(names)s::text[]), %(code_version)s,
            %(lane)s, %(lane_width)s, %(lane)s::text IS NULL, flowstone.now() + make_interval(secs => %(deadline_in)s::float8))
    ON CONFLICT (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
), plan AS (
    SELECT *, row_number() OVER (PARTITION BY p.queue, p.remaining = 0 AND p.due_in <= 0 ORDER BY p.priority DESC, p.ordinal) AS nth,
           CASE WHEN p.remaining > 0 THEN NULL WHEN %(lane)s::text IS NOT NULL THEN 'lane' WHEN p.due_in > 0 THEN 'due' END AS parked
      FROM unnest(%(kinds)s::text[], %(names)s::text[], %(partitions)s::text[], %(tasks)s::text[], %(queues)s::text[],
                  %(priorities)s::int[], %(code_digests)s::text[], %(remaining)s::int[], %(max_failures)s::int[],
                  %(timeouts)s::float8[], %(retries)s::text[], %(inputs)s::text[], %(due_in)s::float8[], %(sole)s::bool[])
           WITH ORDINALITY AS p(kind, name, partition, task, queue, priority, code_digest, remaining, max_failures,
                                timeout_seconds, retry, input, due_in, sole, ordinal)
), room AS (
    SELECT q.queue,
           -- use: room_of_q
           AS places
      FROM (SELECT DISTINCT queue FROM plan WHERE remaining = 0) q
), turns AS (
    SELECT q.queue, q.priority,
           -- use: present_turn
           AS first
      FROM (SELECT DISTINCT queue, priority FROM plan WHERE remaining = 0) q
), placed AS (
    INSERT INTO flowstone.steps (run_id, ordinal, kind, name, partition, task, queue, priority, v, code_digest, status, remaining,
                                 max_failures, timeout_seconds, retry, input, due_at, turn, parked, sole, sent_at)
    SELECT m.id, p.ordinal, p.kind, p.name, p.partition, p.task, p.queue, p.priority, %(protocol)s, p.code_digest,
           CASE WHEN p.remaining = 0 THEN 'ready' ELSE 'blocked' END, p.remaining,
           p.max_failures, p.timeout_seconds, p.retry::jsonb, p.input::jsonb,
           CASE WHEN p.remaining = 0 THEN flowstone.now() + make_interval(secs => p.due_in) END,
           coalesce(t.first, 0) + p.nth, p.parked, p.sole,
           CASE WHEN p.remaining = 0 AND p.parked IS NULL AND %(promise)s AND p.nth <= r.places THEN flowstone.now() END
      FROM made m CROSS JOIN plan p LEFT JOIN room r USING (queue) LEFT JOIN turns t USING (queue, priority)
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

-- name: open_barriers_of_run
-- What a run that is cancelling waits for: closed before its steps, for whoever holds a barrier may want its step.
SELECT b.id FROM flowstone.barriers b JOIN flowstone.runs r ON r.id = b.run_id
 WHERE b.run_id = %(run)s AND b.status = 'open' AND r.status = 'cancelling' ORDER BY b.id;

-- name: cancel_steps (step: blocked | ready -> cancelled; step: ready -> skipped; run: cancelling -> cancelled | failed)
-- One batch of what has not begun. Rows that somebody holds are left to the next batch or to the sweep. A hand makes nothing that could
-- be cancelled: it is skipped.
WITH batch AS (
    SELECT s.id FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
     WHERE s.run_id = %(run)s AND s.status IN ('blocked', 'ready') AND r.status = 'cancelling'
     ORDER BY s.ordinal LIMIT %(limit)s FOR NO KEY UPDATE OF s SKIP LOCKED
), moved AS (
    UPDATE flowstone.steps s
       SET status = CASE WHEN s.phase = 'item' THEN 'skipped' ELSE 'cancelled' END, finished_at = flowstone.now(), due_at = NULL, sent_at = NULL,
           parked = NULL
      FROM batch b WHERE s.id = b.id AND s.status IN ('blocked', 'ready')
    RETURNING s.id, s.run_id, s.round, s.attempt, s.fence, s.status
), logged AS (
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence)
    SELECT run_id, id, round, 'step.' || status, attempt, fence FROM moved
), ended AS (
    SELECT run_id, count(*) AS finished, 0 AS failed, count(*) FILTER (WHERE status = 'cancelled') AS cancelled, NULL::jsonb AS error
      FROM moved GROUP BY run_id
),
-- use: counted
SELECT (SELECT count(*) FROM moved) AS moved, (SELECT status FROM counted) AS run_status, (SELECT name FROM counted) AS run_name,
       (SELECT lane FROM counted WHERE finished_at IS NOT NULL) AS lane, (SELECT tenant FROM counted) AS tenant;

-- name: expire (run: pending | running -> cancelling)
-- Runs past their deadline end as failed; their steps are cancelled as for any run that is cancelling.
WITH late AS (
    SELECT id FROM flowstone.runs WHERE deadline_at <= flowstone.now() AND status IN ('pending', 'running')
     ORDER BY deadline_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
), moved AS (
    UPDATE flowstone.runs r SET status = 'cancelling', ends_as = 'failed', cancelled_at = flowstone.now(), error = %(error)s::jsonb
      FROM late l WHERE r.id = l.id AND r.status IN ('pending', 'running')
    RETURNING r.id, r.round, r.tenant, r.correlation_id, r.deadline_at
), logged AS (
    INSERT INTO flowstone.history (run_id, round, event, detail)
    SELECT id, round, 'run.cancelling', jsonb_build_object('reason', 'its deadline passed') FROM moved
), audited AS (
    INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, tenant, correlation_id, details)
    SELECT 'deadline', 'system', 'run.expire', 'run', id::text, tenant, correlation_id, jsonb_build_object('deadline', deadline_at) FROM moved
)
SELECT id FROM moved;

-- name: reopen (run: succeeded | failed | cancelled -> pending; step: succeeded | failed | skipped | cancelled -> ready | blocked)
-- The next round of a run that has ended: what failed or was cancelled, with `begin_at` also those steps and all that stands on them,
-- with `everything` all. What is kept keeps its output. A dependency that was skipped is asked again with whatever needs it. Hands of an
-- earlier round stay as they ended: a scatter that is done again has new ones.
-- The run's row comes first: of a run that has ended nobody holds a step.
WITH RECURSIVE seen AS (
    SELECT r.id, r.round FROM flowstone.runs r
     WHERE r.id = %(run)s AND (r.status IN ('failed', 'cancelled')
                               OR r.status = 'succeeded' AND (%(everything)s OR cardinality(%(begin_at)s::text[]) > 0))
), reached(id, downwards) AS (
    SELECT s.id, s.name = ANY (%(begin_at)s::text[]) FROM seen r JOIN flowstone.steps s ON s.run_id = r.id
     WHERE s.phase <> 'item' AND (%(everything)s OR s.status IN ('failed', 'cancelled') OR s.name = ANY (%(begin_at)s::text[]))
    UNION
    SELECT n.id, true FROM reached b CROSS JOIN LATERAL (
        SELECT e.child AS id FROM flowstone.step_edges e WHERE e.parent = b.id AND b.downwards
        UNION ALL
        SELECT p.id FROM flowstone.step_edges e JOIN flowstone.steps p ON p.id = e.parent
         WHERE e.child = b.id AND NOT e.optional AND p.status = 'skipped') n
), chosen AS (
    SELECT s.id FROM (SELECT DISTINCT id FROM reached) c JOIN flowstone.steps s ON s.id = c.id
     WHERE s.status IN ('succeeded', 'failed', 'skipped', 'cancelled')
), moved AS (
    UPDATE flowstone.runs r
       SET status = 'pending', round = r.round + 1, remaining_steps = (SELECT count(*) FROM chosen), failed_steps = 0, cancelled_steps = 0,
           error = NULL, output = NULL, paused = false, admitted = r.lane IS NULL, ends_as = NULL,
           started_at = NULL, cancelled_at = NULL, finished_at = NULL,
           deadline_at = flowstone.now() + make_interval(secs => %(deadline_in)s::float8)
      FROM seen WHERE r.id = seen.id AND r.round = seen.round AND r.status IN ('succeeded', 'failed', 'cancelled')
       AND EXISTS (SELECT 1 FROM chosen)
    RETURNING r.id, r.round, r.tenant, r.lane, r.correlation_id
), locked AS (
    -- One by one in their order, and IS TRUE below: the planner knows nothing of how many are chosen, and would take loops over all of
    -- them for each.
    SELECT s.id, s.queue, s.priority, m.round, m.lane FROM moved m CROSS JOIN (SELECT id FROM chosen ORDER BY id) c CROSS JOIN LATERAL (
        SELECT s.id, s.queue, s.priority FROM flowstone.steps s WHERE s.id = c.id FOR NO KEY UPDATE) s
), plan AS MATERIALIZED (
    SELECT l.*, (SELECT count(*) FROM flowstone.step_edges e WHERE e.child = l.id AND (e.parent IN (SELECT id FROM chosen)) IS TRUE) AS remaining,
           row_number() OVER (PARTITION BY l.queue, l.priority ORDER BY l.id) AS nth
      FROM locked l
), turns AS MATERIALIZED (
    SELECT q.queue, q.priority,
           -- use: present_turn
           AS first
      FROM (SELECT DISTINCT queue, priority FROM plan) q
), opened AS (
    UPDATE flowstone.steps s
       SET status = CASE WHEN p.remaining = 0 THEN 'ready' ELSE 'blocked' END, remaining = p.remaining, round = p.round,
           attempt = 0, failures = 0, crashes = 0, losses = 0, error = NULL, output = NULL, note = NULL, phase = 'call',
           started_at = NULL, finished_at = NULL, awaited_at = NULL,
           due_at = CASE WHEN p.remaining = 0 THEN flowstone.now() END,
           parked = CASE WHEN p.remaining = 0 AND p.lane IS NOT NULL THEN 'lane' END, turn = t.first + p.nth
      FROM plan p JOIN turns t USING (queue, priority)
     WHERE s.id = p.id AND s.status IN ('succeeded', 'failed', 'skipped', 'cancelled')
    RETURNING s.id, s.queue, s.status
), forgotten AS (
    -- What is done anew scatters anew: nobody goes on with the items of an earlier round.
    UPDATE flowstone.barriers b SET abandoned = true FROM opened o WHERE %(everything)s AND b.step_id = o.id
), logged AS (
    INSERT INTO flowstone.history (run_id, round, event, detail)
    SELECT id, round, 'run.reopened', jsonb_build_object('actor', %(actor)s::text, 'steps', (SELECT count(*) FROM opened)) FROM moved
), audited AS (
    INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, tenant, correlation_id, details)
    SELECT %(actor)s, %(actor_type)s, 'run.retry', 'run', id::text, tenant, correlation_id,
           jsonb_build_object('round', round, 'begin_at', %(begin_at)s::text[], 'everything', %(everything)s::bool) FROM moved
)
SELECT m.id, m.round, m.tenant, m.lane, (SELECT count(*) FROM opened) AS reopened,
       (SELECT array_agg(DISTINCT queue) FROM opened WHERE status = 'ready') AS opened
  FROM moved m;

-- name: pause
-- The run begins nothing more; what runs goes on to its end. Not a status: a flag that claims respect.
WITH moved AS (
    UPDATE flowstone.runs SET paused = true WHERE id = %(run)s AND NOT paused AND status IN ('pending', 'running')
    RETURNING id, tenant, correlation_id, round
), logged AS (
    INSERT INTO flowstone.history (run_id, round, event, detail)
    SELECT id, round, 'run.paused', jsonb_build_object('actor', %(actor)s::text) FROM moved
), audited AS (
    INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, tenant, correlation_id)
    SELECT %(actor)s, %(actor_type)s, 'run.pause', 'run', id::text, tenant, correlation_id FROM moved
)
SELECT id FROM moved;

-- name: resume
WITH moved AS (
    UPDATE flowstone.runs SET paused = false WHERE id = %(run)s AND paused AND status IN ('pending', 'running')
    RETURNING id, tenant, correlation_id, round
), logged AS (
    INSERT INTO flowstone.history (run_id, round, event, detail)
    SELECT id, round, 'run.resumed', jsonb_build_object('actor', %(actor)s::text) FROM moved
), audited AS (
    INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, tenant, correlation_id)
    SELECT %(actor)s, %(actor_type)s, 'run.resume', 'run', id::text, tenant, correlation_id FROM moved
)
SELECT id FROM moved;

-- name: park_paused
-- One batch of a paused run's ready rows leaves the line.
WITH batch AS (
    SELECT s.id FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
     WHERE s.run_id = %(run)s AND s.status = 'ready' AND s.parked IS NULL AND r.paused
     ORDER BY s.ordinal LIMIT %(limit)s FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE flowstone.steps s SET parked = 'paused', sent_at = NULL, sends = 0
 WHERE s.id = ANY (ARRAY(SELECT id FROM batch)) AND s.status = 'ready'
RETURNING s.id;

-- name: unpark_run
-- One batch of rows that stood aside for their run's pause or lane, back in the line, each at its turn. A wake-up that was refused
-- meanwhile is forgotten.
WITH batch AS (
    SELECT s.id, s.queue, s.priority FROM flowstone.steps s
     WHERE s.run_id = %(run)s AND s.status = 'ready' AND (s.parked IN ('paused', 'lane') OR s.sent_at IS NOT NULL)
     ORDER BY s.ordinal LIMIT %(limit)s FOR NO KEY UPDATE OF s SKIP LOCKED
), plan AS (
    SELECT b.*, row_number() OVER (PARTITION BY b.queue, b.priority ORDER BY b.id) AS nth FROM batch b
), turns AS (
    SELECT q.queue, q.priority,
           -- use: present_turn
           AS first
      FROM (SELECT DISTINCT queue, priority FROM plan) q
)
UPDATE flowstone.steps s SET sent_at = NULL, sends = 0, turn = t.first + p.nth, parked =
       -- use: parked_as_its_run_says
  FROM plan p JOIN turns t USING (queue, priority), flowstone.runs r
 WHERE s.id = p.id AND s.status = 'ready' AND r.id = s.run_id AND r.admitted AND NOT r.paused
RETURNING s.queue;

-- name: lane_lock
-- Whoever lets runs into this lane does it alone until its transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended('flowstone.lane.' || %(tenant)s || '.' || %(lane)s, 0))::text AS locked;

-- name: admit
-- The lane's oldest runs may begin, as many as it has room for. Runs after `lane_lock`, so that it sees what others let in.
WITH lane AS (
    SELECT max(lane_width) - count(*) FILTER (WHERE admitted) AS room FROM flowstone.runs
     WHERE tenant = %(tenant)s AND lane = %(lane)s AND finished_at IS NULL
), next AS (
    SELECT r.id FROM flowstone.runs r
     WHERE r.tenant = %(tenant)s AND r.lane = %(lane)s AND r.finished_at IS NULL AND NOT r.admitted
     ORDER BY r.created_at, r.id LIMIT (SELECT greatest(0, room) FROM lane)
), moved AS (
    UPDATE flowstone.runs r SET admitted = true FROM next n WHERE r.id = n.id AND NOT r.admitted AND r.finished_at IS NULL
    RETURNING r.id, r.round, r.created_at
), logged AS (
    INSERT INTO flowstone.history (run_id, round, event, detail)
    SELECT id, round, 'run.admitted', jsonb_build_object('lane', %(lane)s::text) FROM moved ORDER BY created_at, id
)
SELECT id FROM moved ORDER BY created_at, id;

-- name: anyone_aside
-- Whether a run is paused or waits outside its lane, or a step stands aside for either: where none does, no sweep of lanes is needed.
SELECT EXISTS (SELECT 1 FROM flowstone.runs r WHERE NOT r.admitted AND r.finished_at IS NULL)
    OR EXISTS (SELECT 1 FROM flowstone.runs r WHERE r.paused AND r.finished_at IS NULL)
    OR EXISTS (SELECT 1 FROM flowstone.steps s WHERE s.parked IN ('paused', 'lane')) AS yes;

-- name: lanes_with_room
-- Lanes in which a run waits although there is room: whoever was to let it in has died.
SELECT w.tenant, w.lane FROM (SELECT DISTINCT tenant, lane FROM flowstone.runs WHERE NOT admitted AND finished_at IS NULL) w
  CROSS JOIN LATERAL (
      SELECT max(r.lane_width) > count(*) FILTER (WHERE r.admitted) AS room FROM flowstone.runs r
       WHERE r.tenant = w.tenant AND r.lane = w.lane AND r.finished_at IS NULL) l
 WHERE l.room LIMIT %(limit)s;

-- name: unadmitted_parts
-- Runs that were let in, or resumed, while some of their rows still stand aside: whoever was to call them has died.
-- One seek for each run that has such rows, however many it has.
WITH RECURSIVE aside AS (
    (SELECT s.run_id FROM flowstone.steps s WHERE s.parked IN ('paused', 'lane') ORDER BY s.run_id LIMIT 1)
    UNION ALL
    SELECT (SELECT s.run_id FROM flowstone.steps s WHERE s.parked IN ('paused', 'lane') AND s.run_id > a.run_id ORDER BY s.run_id LIMIT 1)
      FROM aside a WHERE a.run_id IS NOT NULL
)
SELECT a.run_id FROM aside a JOIN flowstone.runs r ON r.id = a.run_id
 WHERE r.admitted AND NOT r.paused AND r.finished_at IS NULL LIMIT %(limit)s;

-- name: half_paused
-- Paused runs of which some rows are in the line still.
SELECT r.id AS run_id FROM flowstone.runs r WHERE r.paused AND r.finished_at IS NULL
   AND EXISTS (SELECT 1 FROM flowstone.steps s WHERE s.run_id = r.id AND s.status = 'ready' AND s.parked IS NULL) LIMIT %(limit)s;

-- name: ask
-- In somebody else's transaction nothing but this is written: the act follows their commit.
INSERT INTO flowstone.requests (run_id, act, detail, actor) VALUES (%(run)s, %(act)s, %(detail)s::jsonb, %(actor)s);

-- name: asked
-- One thing that was asked for, oldest first; whoever takes it does it in the same transaction.
DELETE FROM flowstone.requests q WHERE q.id = (
    SELECT id FROM flowstone.requests ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING q.id, q.run_id, q.act, q.detail, q.actor;

-- name: refuse
-- A request that cannot be done is gone, and the audit log says why.
WITH gone AS (
    DELETE FROM flowstone.requests WHERE id = %(request)s RETURNING run_id, act, actor, detail
)
INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, details)
SELECT actor, 'user', 'run.' || act || '.refused', 'run', run_id::text, jsonb_build_object('asked', detail) || %(error)s::jsonb FROM gone
RETURNING id;

-- fragment: named_by_filter
(%(statuses)s::text[] IS NULL OR r.status = ANY (%(statuses)s::text[]))
   AND (%(name)s::text IS NULL OR r.name = %(name)s)
   AND (%(partition)s::text IS NULL OR r.partition = %(partition)s)
   AND (%(lane)s::text IS NULL OR r.lane = %(lane)s)
   AND (%(since)s::timestamptz IS NULL OR r.created_at >= %(since)s)
   AND (%(until)s::timestamptz IS NULL OR r.created_at < %(until)s)
   AND (%(paused)s::bool IS NULL OR r.paused = %(paused)s)

-- name: matching
-- plan: anew
-- Runs that a filter names, newest first, by keyset: for acts on all of them.
SELECT r.id, r.created_at FROM flowstone.runs r
 WHERE
   -- use: named_by_filter
   AND (%(before)s::timestamptz IS NULL OR (r.created_at, r.id) < (%(before)s, %(before_id)s::uuid))
 ORDER BY r.created_at DESC, r.id DESC LIMIT %(limit)s;

-- name: matching_count
-- plan: anew
SELECT count(*) AS runs FROM flowstone.runs r
 WHERE
       -- use: named_by_filter
;

-- name: cancelling
SELECT id FROM flowstone.runs WHERE status = 'cancelling' ORDER BY cancelled_at LIMIT %(limit)s;

-- fragment: without_hands
-- What is shown of a run's counts, in place of those in its row: hands count in their run, and are not shown.
r.total_steps - h.hands AS total_steps, r.remaining_steps - h.open AS remaining_steps

-- fragment: hands_of_r
(SELECT count(s.id)::int AS hands, (count(s.id) FILTER (WHERE s.finished_at IS NULL))::int AS open
   FROM flowstone.barriers b JOIN flowstone.steps s ON s.barrier_id = b.id AND s.phase = 'item' WHERE b.run_id = r.id)

-- name: run
SELECT r.*,
       -- use: without_hands
  FROM flowstone.runs r CROSS JOIN LATERAL
       -- use: hands_of_r
       h
 WHERE r.id = %(run)s;

-- name: by_prefix
-- Runs whose id begins so, as the range of ids from one that ends in zeros to one that ends in fs.
SELECT id FROM flowstone.runs WHERE id BETWEEN %(low)s::uuid AND %(high)s::uuid ORDER BY id LIMIT 6;

-- name: neighbors
-- The ids next to these: what a short form must tell them from.
SELECT i.id, (SELECT r.id FROM flowstone.runs r WHERE r.id < i.id ORDER BY r.id DESC LIMIT 1) AS before,
       (SELECT r.id FROM flowstone.runs r WHERE r.id > i.id ORDER BY r.id LIMIT 1) AS after
  FROM unnest(%(runs)s::uuid[]) AS i(id);

-- name: runs_page
-- plan: anew
-- Newest first, by keyset: pass the last row's created_at and id to go on.
SELECT r.*,
       -- use: without_hands
  FROM flowstone.runs r CROSS JOIN LATERAL
       -- use: hands_of_r
       h
 WHERE (%(status)s::text IS NULL OR r.status = %(status)s)
   AND (%(name)s::text IS NULL OR r.name = %(name)s)
   AND (%(partition)s::text IS NULL OR r.partition = %(partition)s)
   AND (%(before)s::timestamptz IS NULL OR (r.created_at, r.id) < (%(before)s, %(before_id)s::uuid))
 ORDER BY r.created_at DESC, r.id DESC LIMIT %(limit)s;

-- name: progress
SELECT r.id, r.status, r.failed_steps, r.error,
       -- use: without_hands
       ,
       (SELECT max(h.id) FROM flowstone.history h WHERE h.run_id = r.id) AS last_event
  FROM flowstone.runs r CROSS JOIN LATERAL
       -- use: hands_of_r
       h
 WHERE r.id = %(run)s;

-- name: next_due_of_run
SELECT extract(epoch FROM min(s.due_at) - flowstone.now())::float8 AS due_in FROM flowstone.steps s WHERE s.run_id = %(run)s AND s.status = 'ready';

-- name: steps_of_run
-- Without its hands, unless they are asked for.
SELECT s.*, w.node_name, w.pid,
       (SELECT jsonb_agg(e.parent ORDER BY e.parent) FROM flowstone.step_edges e WHERE e.child = s.id) AS parents
  FROM flowstone.steps s LEFT JOIN flowstone.workers w ON w.id = s.worker_id
 WHERE s.run_id = %(run)s AND (%(hands)s OR s.phase <> 'item') ORDER BY s.ordinal;

-- name: events
-- Without what its hands did, unless that is asked for.
SELECT h.*, s.name AS step, s.partition FROM flowstone.history h LEFT JOIN flowstone.steps s ON s.id = h.step_id
 WHERE h.run_id = %(run)s AND h.id > %(after)s AND (%(hands)s OR s.phase IS DISTINCT FROM 'item') ORDER BY h.id LIMIT %(limit)s;

-- name: latest_of_name
-- The newest step that made, or tried to make, this name and partition.
SELECT * FROM flowstone.steps WHERE name = %(name)s AND partition = %(partition)s AND phase <> 'item' ORDER BY created_at DESC, id DESC LIMIT 1;
