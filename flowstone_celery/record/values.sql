-- Values of assets. A row that is not settled is invisible: no reader looks at it, no pointer names it.

-- function: settle_value
-- takes: asset text, partition text, run uuid, step bigint, fence bigint, io text, content bytea, pointer jsonb, size bigint
-- takes: digest text, metadata jsonb, code_version text, code_digest text, recipe text
-- takes: up_assets text[], up_partitions text[], up_values bigint[]
-- answers: id bigint
-- The value, its lineage and the current pointer, in the settling transaction; the step's output gets its version.
DECLARE
    made bigint;
BEGIN
    INSERT INTO flowstone.asset_values (asset, partition, run_id, step_id, fence, io, content, pointer, size, digest, metadata,
                                        code_version, code_digest, recipe, settled_at)
    VALUES (%(asset)s, %(partition)s, %(run)s, %(step)s, %(fence)s, %(io)s, %(content)s, %(pointer)s, %(size)s, %(digest)s,
            %(metadata)s, %(code_version)s, %(code_digest)s, %(recipe)s, flowstone.now())
    RETURNING asset_values.id INTO made;
    INSERT INTO flowstone.asset_current (asset, partition, value_id) VALUES (%(asset)s, %(partition)s, made)
    ON CONFLICT (asset, partition) DO UPDATE SET value_id = excluded.value_id, updated_at = flowstone.now(),
    -- use: kept_mark
    ;
    IF cardinality(%(up_values)s) > 0 THEN
        INSERT INTO flowstone.lineage (value_id, upstream_asset, upstream_partition, upstream_value_id, asset, partition, run_id)
        SELECT made, u.asset, u.partition, u.value_id, %(asset)s, %(partition)s, %(run)s
          FROM unnest(%(up_assets)s, %(up_partitions)s, %(up_values)s) AS u(asset, partition, value_id);
    END IF;
    PERFORM set_config('flowstone_settlement.written', jsonb_build_object('value', made)::text, true);
    RETURN QUERY SELECT made;
END

-- name: prepare
-- A large value before its settlement, in a transaction of its own, out of sight. The same attempt finds its own again.
INSERT INTO flowstone.asset_values (asset, partition, run_id, step_id, fence, io, content, pointer, size, digest, metadata, code_version, code_digest, recipe)
VALUES (%(asset)s, %(partition)s, %(run)s, %(step)s, %(fence)s, %(io)s, %(content)s, %(pointer)s::jsonb, %(size)s, %(digest)s,
        %(metadata)s::jsonb, %(code_version)s, %(code_digest)s, %(recipe)s)
ON CONFLICT (step_id, fence) DO UPDATE SET digest = excluded.digest, content = excluded.content, pointer = excluded.pointer, size = excluded.size
 WHERE asset_values.settled_at IS NULL
RETURNING id;

-- name: settle_prepared
WITH made AS (
    UPDATE flowstone.asset_values SET settled_at = flowstone.now() WHERE id = %(value)s AND settled_at IS NULL
    RETURNING id
),
-- use: pointed_and_traced
SELECT id FROM made;

-- fragment: kept_mark
-- The mark of an invalidation goes with the value that it was put on; one that came while this value was being made stays.
invalidated_at = CASE WHEN asset_current.invalidated_at >
    (SELECT s.started_at FROM flowstone.steps s WHERE s.id = %(step)s) THEN asset_current.invalidated_at END,
invalidation = CASE WHEN asset_current.invalidated_at >
    (SELECT s.started_at FROM flowstone.steps s WHERE s.id = %(step)s) THEN asset_current.invalidation END

-- fragment: pointed_and_traced
pointed AS (
    INSERT INTO flowstone.asset_current (asset, partition, value_id) SELECT %(asset)s, %(partition)s, id FROM made
    ON CONFLICT (asset, partition) DO UPDATE SET value_id = excluded.value_id, updated_at = flowstone.now(),
           -- use: kept_mark
), traced AS (
    INSERT INTO flowstone.lineage (value_id, upstream_asset, upstream_partition, upstream_value_id, asset, partition, run_id)
    SELECT m.id, u.asset, u.partition, u.value_id, %(asset)s, %(partition)s, %(run)s::uuid
      FROM made m CROSS JOIN unnest(%(up_assets)s::text[], %(up_partitions)s::text[], %(up_values)s::bigint[]) AS u(asset, partition, value_id)
)

-- name: by_ids
SELECT * FROM flowstone.asset_values WHERE id = ANY (%(ids)s::bigint[]) AND settled_at IS NOT NULL;

-- name: current
SELECT v.* FROM flowstone.asset_current c JOIN flowstone.asset_values v ON v.id = c.value_id
 WHERE c.asset = %(asset)s AND c.partition = %(partition)s;

-- name: current_of_many
-- Which of these have a value: asset and value id.
SELECT c.asset, c.value_id, v.run_id FROM flowstone.asset_current c JOIN flowstone.asset_values v ON v.id = c.value_id
 WHERE c.asset = ANY (%(assets)s::text[]) AND c.partition = %(partition)s;

-- name: of_run
-- What the run's step answered with: a version of its own, or one that another run made of the same at that time. A step that is at
-- work again, or pruned, leaves what the run made.
SELECT v.* FROM flowstone.asset_values v
 WHERE v.settled_at IS NOT NULL AND v.id = coalesce(
       (SELECT (s.output ->> 'value')::bigint FROM flowstone.steps s
         WHERE s.run_id = %(run)s AND s.name = %(asset)s AND s.partition = %(partition)s AND s.status = 'succeeded' AND s.phase <> 'item' ORDER BY s.ordinal DESC LIMIT 1),
       (SELECT max(o.id) FROM flowstone.asset_values o
         WHERE o.asset = %(asset)s AND o.partition = %(partition)s AND o.run_id = %(run)s AND o.settled_at IS NOT NULL));

-- name: versions
SELECT id, run_id, step_id, io, size, digest, metadata, code_version, settled_at FROM flowstone.asset_values
 WHERE asset = %(asset)s AND partition = %(partition)s AND settled_at IS NOT NULL ORDER BY id DESC LIMIT %(limit)s;

-- name: summary
-- For each asset: how many partitions have a value, and when the newest was made.
SELECT c.asset, count(*) AS partitions, max(c.updated_at) AS newest FROM flowstone.asset_current c GROUP BY c.asset;

-- name: upstream
-- What a value was made from, level by level (FS-44); each version once, at its nearest level.
WITH RECURSIVE up AS (
    SELECT l.upstream_asset AS asset, l.upstream_partition AS partition, l.upstream_value_id AS value_id, 1 AS depth
      FROM flowstone.lineage l WHERE l.value_id = %(value)s
    UNION
    SELECT l.upstream_asset, l.upstream_partition, l.upstream_value_id, u.depth + 1
      FROM up u JOIN flowstone.lineage l ON l.value_id = u.value_id WHERE u.depth < %(depth)s
)
SELECT asset, partition, value_id, min(depth) AS depth,
       NOT EXISTS (SELECT 1 FROM flowstone.asset_values v WHERE v.id = up.value_id) AS pruned
  FROM up GROUP BY asset, partition, value_id ORDER BY min(depth), asset, partition;

-- name: downstream
-- What was made from a value, level by level.
WITH RECURSIVE down AS (
    SELECT l.asset, l.partition, l.value_id, 1 AS depth FROM flowstone.lineage l
     WHERE l.upstream_asset = %(asset)s AND l.upstream_partition = %(partition)s AND l.upstream_value_id = %(value)s
    UNION
    SELECT l.asset, l.partition, l.value_id, d.depth + 1
      FROM down d JOIN flowstone.lineage l ON l.upstream_asset = d.asset AND l.upstream_partition = d.partition AND l.upstream_value_id = d.value_id
     WHERE d.depth < %(depth)s
)
SELECT asset, partition, value_id, min(depth) AS depth,
       NOT EXISTS (SELECT 1 FROM flowstone.asset_values v WHERE v.id = down.value_id) AS pruned
  FROM down GROUP BY asset, partition, value_id ORDER BY min(depth), asset, partition;
