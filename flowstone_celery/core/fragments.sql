-- Pieces that several statements share.

-- fragment: worker_holds_a_lease
EXISTS (SELECT 1 FROM flowstone.workers w WHERE w.id = %(worker)s AND w.status = 'live' AND w.alive_until > flowstone.now())

-- fragment: held
-- The guard of every settlement: still running, by this worker, under this fence. Found by its id: the index of what a worker runs
-- holds everything that it ever ran, while somebody's old snapshot may want to see it.
id = %(step)s AND status = 'running' AND worker_id IS NOT DISTINCT FROM %(worker)s AND fence = %(fence)s

-- fragment: levels_of_queue
-- The distinct priorities among a queue's ready rows without a promised wake-up, highest first, found by skipping through the
-- index: one seek each.
levels AS (
    (SELECT s.priority FROM flowstone.steps s WHERE s.status = 'ready' AND s.sent_at IS NULL AND s.parked IS NULL AND s.queue = %(queue)s
      ORDER BY s.priority DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT s.priority FROM flowstone.steps s
             WHERE s.status = 'ready' AND s.sent_at IS NULL AND s.parked IS NULL AND s.queue = %(queue)s AND s.priority < l.priority
             ORDER BY s.priority DESC LIMIT 1)
      FROM levels l WHERE l.priority IS NOT NULL
)

-- fragment: may_run_here
-- What this worker may claim now.
s.parked IS NULL AND s.due_at <= flowstone.now() AND s.v <= %(protocol)s AND s.task = ANY (%(knows)s::text[])
AND r.status IN ('pending', 'running') AND NOT r.paused

-- fragment: may_run_beside
-- A step that a process has died with, or that lost its worker, shares its process with no other.
(NOT %(beside)s::boolean OR (s.crashes = 0 AND s.losses = 0))

-- fragment: m_is_making
-- Whether step m makes its value now: its code runs, or it has scattered and is not done with what its items make.
m.sole AND (m.status = 'running' OR m.status IN ('waiting', 'ready') AND m.phase = 'gather')

-- fragment: nobody_makes_it
-- No other step makes the same value now. `steps_makers` refuses two; this asks beforehand. A lookup, not NOT EXISTS: that may be
-- planned as a table of all makers, which reads the index with everything in it that is dead.
(NOT s.sole OR (
    SELECT m.id FROM flowstone.steps m
     WHERE
           -- use: m_is_making
       AND m.name = s.name AND m.partition = s.partition AND m.id <> s.id LIMIT 1) IS NULL)

-- fragment: parked_as_its_run_says
-- Why step s of run r may not be claimed for now, NULL if it may.
CASE WHEN NOT r.admitted THEN 'lane' WHEN r.paused THEN 'paused' WHEN s.due_at > flowstone.now() THEN 'due' END

-- fragment: first_turn
-- The turn of what stands first among the rows of the queue and priority of q, NULL if none does.
(SELECT f.turn FROM flowstone.steps f
  WHERE f.status = 'ready' AND f.sent_at IS NULL AND f.parked IS NULL AND f.queue = q.queue AND f.priority = q.priority
  ORDER BY f.turn LIMIT 1)

-- fragment: present_turn
-- The turn that stands first among the rows of the queue and priority of q: whoever comes now begins there, so that a run with
-- many rows and a run with few take turns.
coalesce(
         -- use: first_turn
         , (SELECT max(f.turn) FROM flowstone.steps f WHERE f.sent_at IS NOT NULL AND f.queue = q.queue), 0)

-- fragment: room_of_q
-- How many more wake-ups may be promised on queue q: twice its live slots, at least a few, less those under way.
greatest(0, greatest(%(min_wakeups)s::bigint, 2 * coalesce((
    SELECT sum(n.slots) FROM flowstone.nodes n
     WHERE n.status = 'live' AND n.alive_until > flowstone.now() AND q.queue = ANY (n.queues)), 0))
  - (SELECT count(*) FROM flowstone.steps p WHERE p.sent_at IS NOT NULL AND p.queue = q.queue))

-- fragment: counted
-- Finished steps are counted on their run; the last one closes it, once.
counted AS (
    UPDATE flowstone.runs r
       SET remaining_steps = r.remaining_steps - e.finished,
           failed_steps = r.failed_steps + e.failed,
           cancelled_steps = r.cancelled_steps + e.cancelled,
           error = CASE WHEN e.error IS NULL THEN r.error ELSE coalesce(r.error, e.error) END,
           status = CASE WHEN r.remaining_steps > e.finished THEN r.status
                         WHEN r.status = 'cancelling' THEN coalesce(r.ends_as, 'cancelled')
                         WHEN r.failed_steps + e.failed > 0 THEN 'failed'
                         WHEN r.cancelled_steps + e.cancelled > 0 THEN 'cancelled'
                         ELSE 'succeeded' END,
           finished_at = CASE WHEN r.remaining_steps = e.finished THEN flowstone.now() END
      FROM ended e
     WHERE r.id = e.run_id AND r.status IN ('running', 'cancelling')
    RETURNING r.id, r.name, r.status, r.round, r.finished_at, r.tenant, r.lane
), closed AS (
    INSERT INTO flowstone.history (run_id, round, event)
    SELECT id, round, 'run.' || status FROM counted WHERE finished_at IS NOT NULL
)

