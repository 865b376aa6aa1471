-- Barriers, for whoever looks and for the gathering.

-- name: barrier
SELECT * FROM flowstone.barriers WHERE id = %(barrier)s;

-- name: barrier_of_step
-- The step's barrier of a round, or its newest; none that a round which did all anew has left behind.
SELECT * FROM flowstone.barriers WHERE step_id = %(step)s AND NOT abandoned AND (%(round)s::int IS NULL OR round = %(round)s) ORDER BY round DESC LIMIT 1;

-- name: barriers_of_run
SELECT * FROM flowstone.barriers WHERE run_id = %(run)s ORDER BY id DESC;

-- name: barriers_page
-- plan: anew
SELECT * FROM flowstone.barriers b
 WHERE (%(name)s::text IS NULL OR b.name = %(name)s) AND (%(status)s::text IS NULL OR b.status = %(status)s)
   AND (%(before)s::bigint IS NULL OR b.id < %(before)s)
 ORDER BY b.id DESC LIMIT %(limit)s;

-- name: barrier_progress
SELECT b.id, b.name, b.partition, b.run_id, b.step_id, b.round, b.status, b.sealed, b.total, b.failed, b.collapsed,
       b.done + (SELECT coalesce(sum(p.done), 0) FROM flowstone.barrier_pages p WHERE p.barrier_id = b.id AND p.done + p.failed < p.size) AS succeeded,
       (SELECT count(*) FROM flowstone.items i WHERE i.barrier_id = b.id AND i.status = 'retry' AND i.failures + i.crashes > 0) AS retrying,
       (SELECT coalesce(sum(c.width), 0) FROM flowstone.item_claims c
         WHERE c.barrier_id = b.id AND c.status <> 'settled' AND c.status = 'held' AND b.status = 'open') AS running
  FROM flowstone.barriers b WHERE b.id = %(barrier)s;

-- name: keys_of_page
SELECT keys FROM flowstone.barrier_pages WHERE barrier_id = %(barrier)s AND number = %(number)s;

-- name: pages_from
-- The pages that hold this index and those behind it.
SELECT p.number, p.first, p.size, p.keys FROM flowstone.barrier_pages p
 WHERE p.barrier_id = %(barrier)s AND p.first >= coalesce((
       SELECT o.first FROM flowstone.barrier_pages o WHERE o.barrier_id = %(barrier)s AND o.first <= %(index)s ORDER BY o.first DESC LIMIT 1), 0)
   AND p.first + p.size > %(index)s
 ORDER BY p.first LIMIT %(limit)s;

-- name: items_between
-- Items that there has been news of, by index.
SELECT i.index, i.status, i.attempt, i.error, i.seconds, i.ended_at, nullif(i.due_at, 'infinity') AS due_at FROM flowstone.items i
 WHERE i.barrier_id = %(barrier)s AND i.index >= %(first)s AND i.index < %(end)s ORDER BY i.index;

-- name: items_failed
SELECT i.index, i.status, i.attempt, i.error, i.seconds, i.ended_at, nullif(i.due_at, 'infinity') AS due_at FROM flowstone.items i
 WHERE i.barrier_id = %(barrier)s AND i.status IN ('failed', 'cancelled') AND i.status = 'failed' AND i.index > %(after)s ORDER BY i.index LIMIT %(limit)s;

-- name: results
-- Items that have ended, in the order of their indexes, by keyset.
SELECT i.index, i.status, i.round, i.result FROM flowstone.items i
 WHERE i.barrier_id = %(barrier)s AND i.index > %(after)s AND i.status IN ('succeeded', 'failed') ORDER BY i.index LIMIT %(limit)s;

-- name: contents
-- The next items that had succeeded by this round: their results, each behind its length, in the order of their indexes. None where one
-- of them is kept compressed; indexes only where some are missing between.
WITH stretch AS (
    SELECT i.index, i.result FROM flowstone.items i
     WHERE i.barrier_id = %(barrier)s AND i.index > %(after)s AND i.status = 'succeeded' AND i.round <= %(round)s
     ORDER BY i.index LIMIT %(limit)s
)
SELECT min(s.index) AS first, max(s.index) AS last, bool_or(get_byte(s.result, 0) = %(packed)s) AS packed,
       CASE WHEN max(s.index) - min(s.index) >= count(*) THEN array_agg(s.index ORDER BY s.index) END AS indexes,
       string_agg(int4send(octet_length(s.result)) || s.result, ''::bytea ORDER BY s.index) FILTER (WHERE get_byte(s.result, 0) <> %(packed)s) AS results
  FROM stretch s HAVING count(*) > 0;
