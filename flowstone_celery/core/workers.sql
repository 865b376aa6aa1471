-- Nodes and worker processes. A lease belongs to a process: one row, extended by the keeper of its node.

-- name: register_node (node: -> live)
-- The keeper reports its node; a keeper that was started again takes the same row over.
INSERT INTO flowstone.nodes (key, name, place, pid, keeper_pid, pool, queues, knows, slots, protocol, code_version, schema_version, status,
                             alive_until)
VALUES (%(node)s::uuid, %(name)s, %(place)s, %(pid)s, %(keeper_pid)s, %(pool)s, %(queues)s::text[], %(knows)s::text[], %(slots)s,
        %(protocol)s, %(code_version)s, %(schema_version)s, 'live', flowstone.now() + make_interval(secs => %(lease)s))
ON CONFLICT (key) DO UPDATE
   SET keeper_pid = excluded.keeper_pid, queues = excluded.queues, knows = excluded.knows, slots = excluded.slots,
       code_version = excluded.code_version, alive_until = excluded.alive_until
 WHERE nodes.status <> 'gone'
RETURNING id;

-- name: drain_node (node: live -> draining)
UPDATE flowstone.nodes SET status = 'draining' WHERE key = %(node)s AND status = 'live' RETURNING id;

-- name: leave_node (node: live | draining -> gone)
UPDATE flowstone.nodes SET status = 'gone', alive_until = flowstone.now() WHERE key = %(node)s AND status IN ('live', 'draining') RETURNING id;

-- name: register_worker (worker: -> live)
INSERT INTO flowstone.workers (node_key, node_name, place, pid, pid_started, status, alive_until)
VALUES (%(node)s::uuid, %(name)s, %(place)s, %(pid)s, %(pid_started)s, 'live', flowstone.now() + make_interval(secs => %(lease)s))
RETURNING id;

-- name: beat
-- The node and those of its processes that live keep their leases; the others' run out.
WITH node AS (
    UPDATE flowstone.nodes SET alive_until = flowstone.now() + make_interval(secs => %(lease)s)
     WHERE key = %(node)s AND status IN ('live', 'draining')
    RETURNING id
), held AS (
    SELECT id FROM flowstone.workers WHERE id = ANY (%(alive)s::bigint[]) AND status = 'live' ORDER BY id FOR NO KEY UPDATE
)
UPDATE flowstone.workers w SET alive_until = flowstone.now() + make_interval(secs => %(lease)s)
  FROM held h WHERE w.id = h.id AND w.status = 'live'
RETURNING w.id;

-- name: node_and_schema
-- Whether the database knows this node, and which code it still serves.
SELECT v.version, v.oldest_code, EXISTS (SELECT 1 FROM flowstone.nodes WHERE key = %(node)s) AS known FROM flowstone.schema_version v;

-- name: worker_is_known
SELECT 1 AS yes FROM flowstone.workers WHERE id = %(worker)s;

-- name: bury (worker: live -> dead)
-- Proof of death: the process is gone. What it held is released in the same transaction.
UPDATE flowstone.workers SET status = 'dead', alive_until = least(alive_until, flowstone.now())
 WHERE id = ANY (%(workers)s::bigint[]) AND status = 'live'
RETURNING id;

-- name: workers_of_place
-- The processes of this machine that may still be believed alive, with what a keeper must know of each, and whose they are.
SELECT w.id, w.node_key, w.node_name, w.pid, w.pid_started, n.keeper_pid
  FROM flowstone.workers w LEFT JOIN flowstone.nodes n ON n.key = w.node_key AND n.place = w.place AND n.status <> 'gone'
 WHERE w.place = %(place)s AND w.status = 'live';

-- name: watch
-- What the keeper must interrupt on its node: work of runs that are being cancelled, and work past its time.
SELECT s.id, s.run_id, s.fence, s.worker_id, w.pid, s.task, s.name, s.partition, s.retry, s.failures, s.max_failures, s.timeout_seconds,
       s.phase, CASE WHEN r.status = 'cancelling' THEN 'cancelled' ELSE 'timeout' END AS reason,
       extract(epoch FROM flowstone.now() - CASE WHEN r.status = 'cancelling' THEN r.cancelled_at ELSE s.deadline_at END)::float8 AS overdue
  FROM flowstone.workers w
  JOIN flowstone.steps s ON s.worker_id = w.id AND s.status = 'running'
  JOIN flowstone.runs r ON r.id = s.run_id
 WHERE w.node_key = %(node)s AND w.status = 'live' AND (r.status = 'cancelling' OR s.deadline_at <= flowstone.now());

-- name: nodes
SELECT n.*, n.alive_until > flowstone.now() AS alive, (SELECT v.oldest_code FROM flowstone.schema_version v) > n.schema_version AS outgrown,
       (SELECT count(*) FROM flowstone.workers w JOIN flowstone.steps s ON s.worker_id = w.id AND s.status = 'running'
         WHERE w.node_key = n.key) AS busy
  FROM flowstone.nodes n WHERE n.status <> 'gone' ORDER BY n.id;

-- name: forget_nodes (node: live | draining -> gone)
-- Nodes that have not beaten for long are history. Long is counted while somebody paced: a machine that slept comes back as a whole.
UPDATE flowstone.nodes SET status = 'gone'
 WHERE status IN ('live', 'draining') AND alive_until < flowstone.now() - make_interval(secs => %(after)s)
   AND (SELECT p.steady_since FROM flowstone.pacer p) < flowstone.now() - make_interval(secs => %(after)s)
RETURNING id;

-- name: forget_workers (worker: live -> dead)
-- So are processes of machines that are gone for good, once they hold nothing.
UPDATE flowstone.workers w SET status = 'dead'
 WHERE w.status = 'live' AND w.alive_until < flowstone.now() - make_interval(secs => %(after)s)
   AND (SELECT p.steady_since FROM flowstone.pacer p) < flowstone.now() - make_interval(secs => %(after)s)
   AND NOT EXISTS (SELECT 1 FROM flowstone.steps s WHERE s.worker_id = w.id AND s.status = 'running')
RETURNING w.id;
