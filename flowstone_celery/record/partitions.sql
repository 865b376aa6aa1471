-- Keys of dynamic definitions, by the name of the definition; and what stands for many slices at once.

-- name: now
SELECT flowstone.now() AS now;

-- name: add_keys
INSERT INTO flowstone.partition_keys (definition, key, added_by)
SELECT %(definition)s, k.key, %(actor)s FROM unnest(%(keys)s::text[]) AS k(key)
ON CONFLICT (definition, key) DO NOTHING
RETURNING key;

-- name: remove_keys
DELETE FROM flowstone.partition_keys WHERE definition = %(definition)s AND key = ANY (%(keys)s::text[])
RETURNING key;

-- name: keys
-- Those that had been added at a moment, or all that there are.
SELECT key FROM flowstone.partition_keys
 WHERE definition = %(definition)s AND (%(until)s::timestamptz IS NULL OR added_at <= %(until)s);

-- name: present
-- Which of these slices have a value: the version, the run that made it, and the digest of its content.
SELECT w.asset, w.partition, c.value_id, v.run_id, v.digest
  FROM unnest(%(assets)s::text[], %(partitions)s::text[]) AS w(asset, partition)
  JOIN flowstone.asset_current c ON c.asset = w.asset AND c.partition = w.partition
  JOIN flowstone.asset_values v ON v.id = c.value_id;

-- name: heads
-- Versions without their content.
SELECT id, asset, partition, digest FROM flowstone.asset_values WHERE id = ANY (%(ids)s::bigint[]) AND settled_at IS NOT NULL;

-- name: standing
-- How the slices of an asset stand: whether there is a value, and the newest attempt.
SELECT coalesce(c.partition, s.partition) AS partition, c.value_id, c.updated_at AS made_at, s.status, s.phase, s.run_id, s.error
  FROM (SELECT partition, value_id, updated_at FROM flowstone.asset_current WHERE asset = %(asset)s) c
  FULL JOIN (SELECT DISTINCT ON (partition) partition, status, phase, run_id, error
               FROM flowstone.steps WHERE name = %(asset)s AND phase <> 'item' ORDER BY partition, created_at DESC, id DESC) s
    ON s.partition = c.partition;
