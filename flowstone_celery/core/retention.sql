-- Retention: what is old enough goes, batch by batch, each whole in its own commit. Never a current value, what a live run consumed,
-- or a run whose idempotency key is still to be honored. Lineage keeps the names and ids of what is gone.

-- name: prune_runs
-- One batch of runs that ended long ago, as many as have few enough steps together; steps, edges and history with them, and values of
-- their slices that nothing stands on any more, also those which earlier batches had to leave because they were current.
WITH ended AS (
    SELECT r.id, r.finished_at, r.total_steps FROM flowstone.runs r
     WHERE r.finished_at < flowstone.now() - make_interval(secs => %(keep)s)
       AND (%(reached)s::timestamptz IS NULL OR r.finished_at >= %(reached)s)
       AND (r.idempotency_key IS NULL OR r.created_at < flowstone.now() - make_interval(secs => %(key_life)s))
     ORDER BY r.finished_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), old AS MATERIALIZED (
    SELECT c.id, c.finished_at, c.total_steps FROM (
        SELECT e.*, sum(e.total_steps) OVER (ORDER BY e.finished_at, e.id) - e.total_steps AS steps_before FROM ended e) c
     WHERE c.steps_before < %(most_steps)s
), parts AS MATERIALIZED (
    SELECT s.id, s.name, s.partition FROM old o JOIN flowstone.steps s ON s.run_id = o.id
), edges AS (
    DELETE FROM flowstone.step_edges e USING parts p WHERE e.child = p.id
), story AS (
    DELETE FROM flowstone.history h USING old o WHERE h.run_id = o.id
), candidates AS (
    SELECT v.id, v.asset, v.partition FROM parts p JOIN flowstone.asset_values v ON v.step_id = p.id
    UNION
    SELECT v.id, v.asset, v.partition FROM (SELECT DISTINCT p.name, p.partition FROM parts p) t CROSS JOIN LATERAL (
        SELECT w.* FROM flowstone.asset_values w
         WHERE w.asset = t.name AND w.partition = t.partition AND w.settled_at IS NOT NULL ORDER BY w.id LIMIT 100) v
     WHERE v.created_at < flowstone.now() - make_interval(secs => %(keep)s)
       AND NOT EXISTS (SELECT 1 FROM flowstone.runs r WHERE r.id = v.run_id)
), stale AS (
    DELETE FROM flowstone.asset_values v USING candidates c
     WHERE v.id = c.id
       AND NOT EXISTS (SELECT 1 FROM flowstone.asset_current n
                        WHERE n.asset = c.asset AND n.partition = c.partition AND n.value_id = c.id)
       AND NOT EXISTS (SELECT 1 FROM flowstone.lineage l JOIN flowstone.runs r ON r.id = l.run_id
                        WHERE l.upstream_asset = c.asset AND l.upstream_partition = c.partition AND l.upstream_value_id = c.id
                          AND r.finished_at IS NULL)
    RETURNING v.id
), scatters AS (
    -- Their items may be many: they go in batches of their own.
    UPDATE flowstone.barriers b SET abandoned = true FROM old o WHERE b.run_id = o.id
), gone AS (
    DELETE FROM flowstone.runs r USING old o WHERE r.id = o.id RETURNING r.id
)
SELECT (SELECT count(*) FROM gone) AS runs, (SELECT coalesce(sum(total_steps), 0) FROM old)::bigint AS steps,
       (SELECT count(*) FROM stale) AS stored, (SELECT max(finished_at) FROM old) AS reached;

-- name: expired_values
-- Large values whose attempt never settled, older than the grace.
DELETE FROM flowstone.asset_values v
 WHERE v.id IN (SELECT id FROM flowstone.asset_values WHERE settled_at IS NULL
                   AND created_at < flowstone.now() - make_interval(secs => %(grace)s) ORDER BY created_at LIMIT %(limit)s)
   AND NOT EXISTS (SELECT 1 FROM flowstone.steps s WHERE s.id = v.step_id AND s.status = 'running' AND s.fence = v.fence)
RETURNING v.id;

-- name: bury_rows
-- Rows of the dead: processes and nodes that are gone, requests for runs that are gone.
WITH processes AS (
    DELETE FROM flowstone.workers w WHERE w.id IN (
        SELECT d.id FROM flowstone.workers d
         WHERE d.status = 'dead' AND d.alive_until < flowstone.now() - make_interval(secs => %(keep)s) ORDER BY d.id LIMIT %(limit)s)
       AND NOT EXISTS (SELECT 1 FROM flowstone.steps s WHERE s.worker_id = w.id AND s.status = 'running')
    RETURNING w.id
), places AS (
    DELETE FROM flowstone.nodes n WHERE n.id IN (
        SELECT d.id FROM flowstone.nodes d
         WHERE d.status = 'gone' AND d.alive_until < flowstone.now() - make_interval(secs => %(keep)s) ORDER BY d.id LIMIT %(limit)s)
    RETURNING n.id
), asked AS (
    DELETE FROM flowstone.requests q WHERE q.id IN (
        SELECT d.id FROM flowstone.requests d
         WHERE d.asked_at < flowstone.now() - make_interval(secs => %(keep)s)
           AND NOT EXISTS (SELECT 1 FROM flowstone.runs r WHERE r.id = d.run_id) ORDER BY d.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
    RETURNING q.id
)
SELECT (SELECT count(*) FROM processes) + (SELECT count(*) FROM places) + (SELECT count(*) FROM asked) AS dead;

-- name: prunable
-- What pruning would delete; values that go with their runs are not counted apart.
SELECT (SELECT count(*) FROM flowstone.runs r
         WHERE r.finished_at < flowstone.now() - make_interval(secs => %(keep)s)
           AND (r.idempotency_key IS NULL OR r.created_at < flowstone.now() - make_interval(secs => %(key_life)s))) AS runs,
       (SELECT count(*) FROM flowstone.asset_values v
         WHERE v.settled_at IS NULL AND v.created_at < flowstone.now() - make_interval(secs => %(grace)s)) AS leftovers;
