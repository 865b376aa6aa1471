-- The audit log: append-only.

-- name: add
INSERT INTO flowstone.audit (actor, actor_type, action, resource_type, resource_id, tenant, correlation_id, details)
VALUES (%(actor)s, %(actor_type)s, %(action)s, %(resource_type)s, %(resource_id)s, %(tenant)s, %(correlation_id)s, %(details)s::jsonb)
RETURNING id;

-- name: of_resource
SELECT * FROM flowstone.audit WHERE resource_type = %(resource_type)s AND resource_id = %(resource_id)s ORDER BY id;
