-- How the values of slices stand: what each is made of, what it consumed, whether somebody called it wrong. Sets in, sets out.

-- name: currents
-- The current values of these slices, without their contents.
SELECT c.asset, c.partition, c.value_id, c.invalidated_at, c.invalidation,
       v.digest, v.recipe, v.code_version, v.code_digest, v.settled_at, v.run_id
  FROM unnest(%(assets)s::text[], %(partitions)s::text[]) AS w(asset, partition)
  JOIN flowstone.asset_current c ON c.asset = w.asset AND c.partition = w.partition
  JOIN flowstone.asset_values v ON v.id = c.value_id;

-- name: consumed_by
-- What these versions were made from, with the digest of each version that is still known.
SELECT l.value_id, l.upstream_asset AS asset, l.upstream_partition AS partition, l.upstream_value_id AS version, u.digest
  FROM flowstone.lineage l LEFT JOIN flowstone.asset_values u ON u.id = l.upstream_value_id
 WHERE l.value_id = ANY (%(versions)s::bigint[]);

-- name: slices_of
-- The slices of these assets that have a value.
SELECT c.asset, c.partition FROM flowstone.asset_current c WHERE c.asset = ANY (%(assets)s::text[]) ORDER BY c.asset, c.partition;

-- fragment: reached
-- The slice, if it has a value, and with `cascade` every slice whose current value was made from it, directly or through others.
reached(asset, partition) AS (
    SELECT c.asset, c.partition FROM flowstone.asset_current c WHERE c.asset = %(asset)s AND c.partition = %(partition)s
    UNION
    -- OFFSET keeps the inner query whole, so that it asks the index slice by slice; flattened it would read all lineage at each level.
    SELECT d.asset, d.partition FROM reached r CROSS JOIN LATERAL (
        SELECT l.asset, l.partition
          FROM flowstone.lineage l
          JOIN flowstone.asset_current c ON c.asset = l.asset AND c.partition = l.partition AND c.value_id = l.value_id
         WHERE l.upstream_asset = r.asset AND l.upstream_partition = r.partition OFFSET 0
    ) d WHERE %(cascade)s
)

-- name: reach
-- What `invalidate` would mark.
WITH RECURSIVE
-- use: reached
SELECT c.asset, c.partition, c.value_id FROM reached r JOIN flowstone.asset_current c USING (asset, partition)
 WHERE c.invalidated_at IS NULL ORDER BY c.asset, c.partition;

-- name: invalidate
-- The values are marked, each with the audit row of the act; what is marked already keeps its first mark. Rows are locked in one order.
WITH RECURSIVE
-- use: reached
, locked AS (
    SELECT o.asset, o.partition FROM (SELECT r.asset, r.partition FROM reached r ORDER BY r.asset, r.partition) o CROSS JOIN LATERAL (
        SELECT c.value_id FROM flowstone.asset_current c
         WHERE c.asset = o.asset AND c.partition = o.partition AND c.invalidated_at IS NULL FOR NO KEY UPDATE OF c
    ) c
), marked AS (
    UPDATE flowstone.asset_current c
       SET invalidated_at = flowstone.now(),
           invalidation = jsonb_build_object('by', %(actor)s::text, 'reason', %(reason)s::text)
               || CASE WHEN c.asset = %(asset)s AND c.partition = %(partition)s THEN '{}'::jsonb
                       ELSE jsonb_build_object('with', jsonb_build_array(%(asset)s::text, %(partition)s::text)) END
      FROM locked l WHERE c.asset = l.asset AND c.partition = l.partition AND c.invalidated_at IS NULL
    RETURNING c.asset, c.partition, c.value_id, c.invalidation
), audited AS (
    INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, details)
    SELECT %(actor)s, %(actor_type)s, 'asset.invalidate', 'asset', m.asset,
           m.invalidation || jsonb_build_object('partition', m.partition, 'version', m.value_id)
      FROM marked m ORDER BY m.asset, m.partition
)
SELECT asset, partition, value_id FROM marked;
