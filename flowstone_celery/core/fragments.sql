-- Pieces that several statements share.

-- fragment: worker_holds_a_lease
EXISTS (SELECT 1 FROM flowstone.workers w WHERE w.id = %(worker)s AND w.status = 'live' AND w.alive_until > flowstone.now())

-- fragment: held
-- The guard of every settlement: still running, by this worker, under this fence.
id = %(step)s AND status = 'running' AND worker_id = %(worker)s AND fence = %(fence)s

-- fragment: levels_of_queue
-- The distinct priorities among a queue's ready rows without a promised wake-up, highest first, found by skipping through the
-- index: one seek each.
levels AS (
    (SELECT s.priority FROM flowstone.steps s WHERE s.status = 'ready' AND s.sent_at IS NULL AND s.queue = %(queue)s
      ORDER BY s.priority DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT s.priority FROM flowstone.steps s
             WHERE s.status = 'ready' AND s.sent_at IS NULL AND s.queue = %(queue)s AND s.priority < l.priority
             ORDER BY s.priority DESC LIMIT 1)
      FROM levels l WHERE l.priority IS NOT NULL
)

-- fragment: may_run_here
-- What this worker may claim now.
s.due_at <= flowstone.now() AND s.v <= %(protocol)s AND s.task = ANY (%(knows)s::text[])
AND r.status IN ('pending', 'running') AND NOT r.paused AND
-- use: worker_holds_a_lease

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
                         WHEN r.status = 'cancelling' THEN 'cancelled'
                         WHEN r.failed_steps + e.failed > 0 THEN 'failed'
                         WHEN r.cancelled_steps + e.cancelled > 0 THEN 'cancelled'
                         ELSE 'succeeded' END,
           finished_at = CASE WHEN r.remaining_steps = e.finished THEN flowstone.now() END
      FROM ended e
     WHERE r.id = e.run_id AND r.status IN ('running', 'cancelling')
    RETURNING r.id, r.name, r.status, r.round, r.finished_at
), closed AS (
    INSERT INTO flowstone.history (run_id, round, event)
    SELECT id, round, 'run.' || status FROM counted WHERE finished_at IS NOT NULL
)

