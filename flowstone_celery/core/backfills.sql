-- Backfills: many partitions of one asset, a run for each, in one lane. The row says what is to be begun and how much of it is; how it
-- stands follows from the lane's runs. Lock order: the backfill, then the runs by id.

-- name: backfill_add
-- The backfill stands, with the audit row of its start. No row back: the key is taken.
WITH made AS (
    INSERT INTO flowstone.backfills (id, tenant, idempotency_key, request_digest, asset, mode, partitions, skipped, max_concurrent,
                                     request, requested_by)
    VALUES (%(backfill)s::uuid, %(tenant)s, %(idempotency_key)s, %(request_digest)s, %(asset)s, %(mode)s, %(partitions)s::text[],
            %(skipped)s::text[], %(max_concurrent)s, %(request)s::jsonb, %(requested_by)s)
    ON CONFLICT DO NOTHING
    RETURNING id, tenant, asset, mode, cardinality(partitions) AS total, cardinality(skipped) AS skipped
), audited AS (
    INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, tenant, details)
    SELECT %(actor)s, 'user', 'backfill.start', 'backfill', id::text, tenant,
           jsonb_build_object('asset', asset, 'mode', mode, 'partitions', total, 'skipped', skipped) FROM made
)
SELECT id FROM made;

-- fragment: backfill_facts
b.id, b.tenant, b.idempotency_key, b.request_digest, b.asset, b.mode, b.begun, b.max_concurrent, b.request, b.requested_by, b.paused,
b.created_at, b.cancelled_at, cardinality(b.partitions) AS total, cardinality(b.skipped) AS skipped

-- fragment: backfill_counts
-- How the runs of backfill b stand.
(SELECT count(*) AS runs,
        count(*) FILTER (WHERE r.status = 'succeeded') AS succeeded,
        count(*) FILTER (WHERE r.status = 'failed') AS failed,
        count(*) FILTER (WHERE r.status = 'cancelled') AS cancelled,
        count(*) FILTER (WHERE r.status IN ('running', 'cancelling')) AS running,
        count(*) FILTER (WHERE r.finished_at IS NULL) AS open,
        max(r.finished_at) AS newest_end
   FROM flowstone.runs r WHERE r.lane = 'backfill/' || b.id::text)

-- name: backfill
SELECT
       -- use: backfill_facts
  FROM flowstone.backfills b WHERE b.id = %(backfill)s;

-- name: backfill_by_key
SELECT
       -- use: backfill_facts
  FROM flowstone.backfills b WHERE b.tenant = %(tenant)s AND b.idempotency_key = %(key)s;

-- name: backfill_progress
SELECT
       -- use: backfill_facts
       , c.*
  FROM flowstone.backfills b CROSS JOIN LATERAL
       -- use: backfill_counts
       c
 WHERE b.id = %(backfill)s;

-- name: backfills_page
-- plan: anew
-- Newest first, by keyset.
SELECT
       -- use: backfill_facts
       , c.*
  FROM (SELECT * FROM flowstone.backfills a
         WHERE (%(name)s::text IS NULL OR a.asset = %(name)s)
           AND (%(before)s::timestamptz IS NULL OR (a.created_at, a.id) < (%(before)s, %(before_id)s::uuid))
         ORDER BY a.created_at DESC, a.id DESC LIMIT %(limit)s) b
 CROSS JOIN LATERAL
       -- use: backfill_counts
       c
 ORDER BY b.created_at DESC, b.id DESC;

-- name: backfill_by_prefix
-- Backfills whose id begins so, as the range of ids from one that ends in zeros to one that ends in fs.
SELECT id FROM flowstone.backfills WHERE id BETWEEN %(low)s::uuid AND %(high)s::uuid ORDER BY id LIMIT 6;

-- name: backfill_keys
-- The partitions from one place on, and how many of all have been begun.
SELECT begun, partitions[%(after)s::int + 1 : %(after)s::int + %(limit)s::int] AS partitions FROM flowstone.backfills WHERE id = %(backfill)s;

-- name: backfill_skipped
SELECT skipped FROM flowstone.backfills WHERE id = %(backfill)s;

-- name: backfill_advance
-- The next part is begun by whoever writes this first, in the transaction that starts its runs. Nothing is begun while it is paused.
UPDATE flowstone.backfills SET begun = begun + %(places)s
 WHERE id = %(backfill)s AND begun = %(after)s::int AND NOT paused AND cancelled_at IS NULL
RETURNING begun;

-- name: backfill_runs
-- The runs of a lane in the order of their start, by keyset.
SELECT r.id, r.partition, r.status, r.paused, r.round, r.error, r.created_at, r.started_at, r.finished_at
  FROM flowstone.runs r
 WHERE r.lane = %(lane)s
   AND (r.created_at, r.id) > (coalesce(%(before)s::timestamptz, '-infinity'), coalesce(%(before_id)s::uuid, '00000000-0000-0000-0000-000000000000'))
 ORDER BY r.created_at, r.id LIMIT %(limit)s;

-- name: backfill_pause
-- Nothing more of it is begun: neither what stands nor what a client is beginning just now.
WITH moved AS (
    UPDATE flowstone.backfills SET paused = true WHERE id = %(backfill)s AND NOT paused AND cancelled_at IS NULL
    RETURNING id, tenant
), audited AS (
    INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, tenant)
    SELECT %(actor)s, 'user', 'backfill.pause', 'backfill', id::text, tenant FROM moved
)
SELECT id FROM moved;

-- name: backfill_resume
WITH moved AS (
    UPDATE flowstone.backfills SET paused = false WHERE id = %(backfill)s AND paused AND cancelled_at IS NULL
    RETURNING id, tenant
), audited AS (
    INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, tenant)
    SELECT %(actor)s, 'user', 'backfill.resume', 'backfill', id::text, tenant FROM moved
)
SELECT id FROM moved;

-- name: backfill_cancel
-- Nothing more of it is begun, for good; its runs are cancelled one by one after this.
WITH moved AS (
    UPDATE flowstone.backfills SET cancelled_at = flowstone.now() WHERE id = %(backfill)s AND cancelled_at IS NULL
    RETURNING id, tenant
), audited AS (
    INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, tenant, details)
    SELECT %(actor)s, 'user', 'backfill.cancel', 'backfill', id::text, tenant, jsonb_build_object('reason', %(reason)s::text) FROM moved
)
SELECT id FROM moved;

-- name: backfill_reopen
-- What failed, was cancelled or was never begun may begin again.
WITH moved AS (
    UPDATE flowstone.backfills SET cancelled_at = NULL, paused = false WHERE id = %(backfill)s RETURNING id, tenant
), audited AS (
    INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, tenant)
    SELECT %(actor)s, 'user', 'backfill.retry', 'backfill', id::text, tenant FROM moved
)
SELECT id FROM moved;

-- name: lane_pause
-- All open runs of a lane begin nothing more; answers those that were let in already. Rows are locked in one order.
WITH locked AS (
    SELECT r.id FROM flowstone.runs r
     WHERE r.lane = %(lane)s AND r.finished_at IS NULL AND NOT r.paused AND r.status IN ('pending', 'running')
     ORDER BY r.id FOR NO KEY UPDATE
), moved AS (
    UPDATE flowstone.runs r SET paused = true FROM locked l WHERE r.id = l.id AND NOT r.paused AND r.status IN ('pending', 'running')
    RETURNING r.id, r.round, r.admitted
), logged AS (
    INSERT INTO flowstone.history (run_id, round, event, detail)
    SELECT id, round, 'run.paused', jsonb_build_object('actor', %(actor)s::text) FROM moved
)
SELECT id FROM moved WHERE admitted ORDER BY id;

-- name: lane_resume
-- All paused runs of a lane go on; answers those that were let in already.
WITH locked AS (
    SELECT r.id FROM flowstone.runs r
     WHERE r.lane = %(lane)s AND r.finished_at IS NULL AND r.paused AND r.status IN ('pending', 'running')
     ORDER BY r.id FOR NO KEY UPDATE
), moved AS (
    UPDATE flowstone.runs r SET paused = false FROM locked l WHERE r.id = l.id AND r.paused AND r.status IN ('pending', 'running')
    RETURNING r.id, r.round, r.admitted
), logged AS (
    INSERT INTO flowstone.history (run_id, round, event, detail)
    SELECT id, round, 'run.resumed', jsonb_build_object('actor', %(actor)s::text) FROM moved
)
SELECT id FROM moved WHERE admitted ORDER BY id;
