-- What `flowstone db prune` would delete: counted before it asks.

-- name: prunable
SELECT (SELECT count(*) FROM flowstone.runs r WHERE r.finished_at < flowstone.now() - make_interval(secs => %(keep)s)) AS runs,
       (SELECT count(*) FROM flowstone.asset_values v
         WHERE v.settled_at IS NULL AND v.created_at < flowstone.now() - make_interval(secs => %(grace)s)) AS leftovers;
