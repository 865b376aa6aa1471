-- The invariants of the design as queries: each answers the rows that break it, with a sentence; none is the answer that is wanted.

-- name: remaining_of_runs
SELECT 'run ' || r.id || ' counts ' || r.remaining_steps || ' steps left, but has ' || c.open AS finding
  FROM flowstone.runs r CROSS JOIN LATERAL (
      SELECT count(*) FILTER (WHERE s.status NOT IN ('succeeded', 'failed', 'skipped', 'cancelled')) AS open FROM flowstone.steps s WHERE s.run_id = r.id) c
 WHERE r.remaining_steps <> c.open;

-- name: closed_runs
SELECT 'run ' || r.id || ' is ' || r.status || ' with all its steps ended' AS finding
  FROM flowstone.runs r WHERE r.finished_at IS NULL AND r.remaining_steps = 0;

-- name: outcome_of_runs
SELECT 'run ' || r.id || ' is ' || r.status || ' with ' || c.failed || ' failed and ' || c.cancelled || ' cancelled steps (counted ' ||
       r.failed_steps || ' and ' || r.cancelled_steps || ')' AS finding
  FROM flowstone.runs r CROSS JOIN LATERAL (
      SELECT count(*) FILTER (WHERE s.status = 'failed') AS failed, count(*) FILTER (WHERE s.status = 'cancelled') AS cancelled
        FROM flowstone.steps s WHERE s.run_id = r.id) c
 WHERE r.failed_steps <> c.failed OR r.cancelled_steps <> c.cancelled
    OR (r.status = 'succeeded' AND c.failed + c.cancelled > 0) OR (r.status = 'failed' AND c.failed = 0 AND r.ends_as IS DISTINCT FROM 'failed');

-- name: remaining_of_steps
-- A blocked step waits for exactly its parents that have not counted down: no value yet, or an optional one not ended.
SELECT 'step ' || s.id || ' (' || s.name || ') waits for ' || s.remaining || ' dependencies, but ' || c.open || ' are open' AS finding
  FROM flowstone.steps s CROSS JOIN LATERAL (
      SELECT count(*) FILTER (WHERE NOT (p.status = 'succeeded' OR (e.optional AND p.status IN ('failed', 'skipped', 'cancelled')))) AS open
        FROM flowstone.step_edges e JOIN flowstone.steps p ON p.id = e.parent WHERE e.child = s.id) c
 WHERE s.status = 'blocked' AND s.remaining <> c.open;

-- name: started_too_early
-- What an earlier round has kept may stand on an optional parent that is done again.
SELECT 'step ' || s.id || ' (' || s.name || ') is ' || s.status || ' though ' || p.name || ' is ' || p.status AS finding
  FROM flowstone.steps s JOIN flowstone.step_edges e ON e.child = s.id JOIN flowstone.steps p ON p.id = e.parent
 WHERE s.status IN ('ready', 'running', 'succeeded') AND p.round <= s.round
   AND NOT (p.status = 'succeeded' OR (e.optional AND p.status IN ('failed', 'skipped', 'cancelled')));

-- name: held_by_the_dead
SELECT 'step ' || s.id || ' (' || s.name || ') runs on worker ' || s.worker_id || ', which is ' || coalesce(w.status, 'unknown') AS finding
  FROM flowstone.steps s LEFT JOIN flowstone.workers w ON w.id = s.worker_id
 WHERE s.status = 'running' AND (w.id IS NULL OR w.status = 'dead');

-- name: ended_once
-- In one round a step ends once.
SELECT 'step ' || h.step_id || ' ended ' || count(*) || ' times in round ' || h.round AS finding
  FROM flowstone.history h
 WHERE h.step_id IS NOT NULL AND h.event IN ('step.succeeded', 'step.failed', 'step.skipped', 'step.cancelled')
 GROUP BY h.step_id, h.round HAVING count(*) > 1;

-- name: history_tells_all
-- The last transition in a step's history is where it stands; its starts are counted by attempt (in this round) and fence (in all).
-- One pass over the history: looked up for each step, a run of many would be read as often as it has steps.
SELECT 'step ' || s.id || ' is ' || s.status || ' with attempt ' || s.attempt || ' and fence ' || s.fence || ', but its history says ' ||
       coalesce(h.last, 'nothing') || ' and ' || coalesce(h.starts, 0) || ' starts' AS finding
  FROM flowstone.steps s LEFT JOIN (
      SELECT step_id, round, count(*) FILTER (WHERE event = 'step.running') AS starts, (array_agg(event ORDER BY id DESC))[1] AS last
        FROM flowstone.history WHERE step_id IS NOT NULL GROUP BY step_id, round) h ON h.step_id = s.id AND h.round = s.round
  LEFT JOIN (
      SELECT step_id, count(*) AS claims FROM flowstone.history WHERE step_id IS NOT NULL AND event = 'step.running' GROUP BY step_id) c
    ON c.step_id = s.id
 WHERE s.attempt <> coalesce(h.starts, 0) OR s.fence <> coalesce(c.claims, 0)
    OR (s.status IN ('running', 'waiting', 'succeeded', 'failed', 'skipped', 'cancelled') AND h.last IS DISTINCT FROM 'step.' || s.status)
    OR (s.status = 'ready' AND h.last IS NOT NULL AND h.last NOT IN ('step.ready', 'step.retry', 'step.released'))
    OR (s.status = 'blocked' AND h.last IS NOT NULL);

-- name: values_of_steps
-- A settled value of this round belongs to the attempt that succeeded; a succeeded asset step that names a value has it settled.
SELECT 'value ' || v.id || ' of ' || v.asset || ' is settled, but its step ' || v.step_id || ' is ' || s.status || ' under fence ' || s.fence ||
       ' (value: ' || v.fence || ')' AS finding
  FROM flowstone.asset_values v JOIN flowstone.steps s ON s.id = v.step_id
 WHERE v.settled_at IS NOT NULL AND v.fence > s.fence - s.attempt AND (s.status <> 'succeeded' OR s.fence <> v.fence)
UNION ALL
SELECT 'step ' || s.id || ' (' || s.name || ') succeeded with value ' || (s.output ->> 'value') || ', which is not settled'
  FROM flowstone.steps s LEFT JOIN flowstone.asset_values v ON v.id = (s.output ->> 'value')::bigint AND v.settled_at IS NOT NULL
 WHERE s.status = 'succeeded' AND s.output ? 'value' AND v.id IS NULL;

-- name: current_values
SELECT 'the current value of ' || c.asset || ' (' || c.partition || ') is ' || c.value_id || ', which is ' ||
       CASE WHEN v.id IS NULL THEN 'missing' ELSE 'not settled' END AS finding
  FROM flowstone.asset_current c LEFT JOIN flowstone.asset_values v ON v.id = c.value_id
 WHERE v.id IS NULL OR v.settled_at IS NULL;

-- name: lineage_of_values
-- Every settled value names the exact versions of what its step consumed.
SELECT 'value ' || v.id || ' of ' || v.asset || ' has no lineage to ' || p.name || ' version ' || (p.output ->> 'value') AS finding
  FROM flowstone.asset_values v JOIN flowstone.steps s ON s.id = v.step_id
  JOIN flowstone.step_edges e ON e.child = s.id
  JOIN flowstone.steps p ON p.id = e.parent AND p.status = 'succeeded' AND p.output ? 'value' AND p.round <= s.round
  LEFT JOIN flowstone.lineage l ON l.value_id = v.id AND l.upstream_asset = p.name AND l.upstream_partition = p.partition
       AND l.upstream_value_id = (p.output ->> 'value')::bigint
 WHERE v.settled_at IS NOT NULL AND v.fence = s.fence AND s.status = 'succeeded' AND l.value_id IS NULL;

-- name: acts_are_audited
SELECT 'run ' || r.id || ' was ended at ' || r.cancelled_at || ' without an audit row' AS finding
  FROM flowstone.runs r
 WHERE r.cancelled_at IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM flowstone.audit a WHERE a.resource_type = 'run' AND a.resource_id = r.id::text AND a.action IN ('run.cancel', 'run.expire'));

-- name: lanes_are_kept
-- No more runs of a lane have begun than it was ever wide.
SELECT 'lane ' || l.lane || ' lets in ' || l.inside || ' runs at once, but is ' || l.width || ' wide' AS finding
  FROM (SELECT r.tenant, r.lane, count(*) FILTER (WHERE r.admitted AND r.finished_at IS NULL) AS inside, max(r.lane_width) AS width
          FROM flowstone.runs r WHERE r.lane IS NOT NULL GROUP BY r.tenant, r.lane) l
 WHERE l.inside > l.width;

-- name: counters_of_pages
-- Pages and barriers count exactly the items that have ended.
SELECT 'page ' || p.number || ' of barrier ' || p.barrier_id || ' counts ' || p.done || ' done and ' || p.failed || ' failed, but has ' ||
       c.done || ' and ' || c.failed AS finding
  FROM flowstone.barrier_pages p CROSS JOIN LATERAL (
      SELECT count(*) FILTER (WHERE i.status = 'succeeded') AS done, count(*) FILTER (WHERE i.status = 'failed') AS failed
        FROM flowstone.items i WHERE i.barrier_id = p.barrier_id AND i.index >= p.first AND i.index < p.first + p.size) c
 WHERE (p.done <> c.done OR p.failed <> c.failed)
   AND NOT EXISTS (SELECT 1 FROM flowstone.barriers b WHERE b.id = p.barrier_id AND b.abandoned);

-- name: counters_of_barriers
SELECT 'barrier ' || b.id || ' counts ' || b.done || ' done, ' || b.failed || ' failed of ' || b.total || ', but its pages say ' ||
       p.done || ', ' || p.failed || ' of ' || p.total AS finding
  FROM flowstone.barriers b CROSS JOIN LATERAL (
      SELECT coalesce(sum(p.done) FILTER (WHERE p.done + p.failed = p.size), 0) AS done, coalesce(sum(p.failed), 0) AS failed,
             coalesce(sum(p.size), 0) AS total
        FROM flowstone.barrier_pages p WHERE p.barrier_id = b.id) p
 WHERE NOT b.abandoned AND (b.done <> p.done OR b.failed <> p.failed OR b.total <> p.total);

-- name: barriers_close
-- A barrier is open as long as its step waits for it, or fills it; one of which all items have ended has closed.
SELECT 'barrier ' || b.id || ' is open with ' || b.done || ' done and ' || b.failed || ' failed of ' || b.total AS finding
  FROM flowstone.barriers b WHERE b.status = 'open' AND b.sealed AND b.done + b.failed = b.total
UNION ALL
SELECT 'barrier ' || b.id || ' is open, but its step ' || b.step_id || ' is ' || coalesce(s.status, 'gone')
  FROM flowstone.barriers b LEFT JOIN flowstone.steps s ON s.id = b.step_id
 WHERE b.status = 'open' AND (s.id IS NULL OR s.status NOT IN ('waiting', 'running', 'ready', 'blocked') OR b.sealed AND s.status <> 'waiting')
UNION ALL
SELECT 'step ' || s.id || ' (' || s.name || ') waits, but no barrier of it is open'
  FROM flowstone.steps s WHERE s.status = 'waiting' AND NOT EXISTS (
       SELECT 1 FROM flowstone.barriers b WHERE b.step_id = s.id AND b.status = 'open');

-- name: claims_of_items
-- A claim that is held belongs to a hand that runs under its fence; what it counts as open is open.
SELECT 'hand ' || c.hand_id || ' holds items of barrier ' || c.barrier_id || ' under fence ' || c.fence || ', but is ' ||
       coalesce(s.status || ' under fence ' || s.fence, 'gone') AS finding
  FROM flowstone.item_claims c JOIN flowstone.barriers b ON b.id = c.barrier_id AND b.status = 'open' LEFT JOIN flowstone.steps s ON s.id = c.hand_id
 WHERE c.status = 'held' AND (s.id IS NULL OR s.status <> 'running' OR s.fence <> c.fence)
UNION ALL
SELECT 'hand ' || c.hand_id || ' counts ' || c.left_open || ' open items, but has ' || o.open
  FROM flowstone.item_claims c JOIN flowstone.barriers b ON b.id = c.barrier_id AND b.status = 'open' CROSS JOIN LATERAL (
      SELECT count(*) AS open FROM (
          SELECT unnest(c.items) AS index UNION ALL SELECT generate_series(c.first, c.first + c.size - 1)) x
        LEFT JOIN flowstone.items i ON i.barrier_id = c.barrier_id AND i.index = x.index
       WHERE i.index IS NULL OR i.claim = c.hand_id) o
 WHERE c.status <> 'settled' AND c.left_open <> o.open
UNION ALL
SELECT 'item ' || i.index || ' of barrier ' || i.barrier_id || ' is claimed by ' || i.claim || ', which holds nothing'
  FROM flowstone.items i JOIN flowstone.barriers b ON b.id = i.barrier_id AND b.status = 'open'
 WHERE i.status = 'retry' AND i.claim IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM flowstone.item_claims c WHERE c.hand_id = i.claim AND c.status <> 'settled');

-- name: clock_is_not_shifted
-- Only the test kit moves the clock.
SELECT 'the clock of the schema is shifted: ' || p.prosrc AS finding
  FROM pg_proc p WHERE p.oid = 'flowstone.now'::regproc AND %(production)s AND position('interval' IN p.prosrc) > 0;
