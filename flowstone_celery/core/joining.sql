-- Somebody else's transaction: whose database it is in, what it sees, and the word that Postgres passes on when it commits.

-- name: identity
-- Two connections with the same answer are connections to one database. The start of the server tells a copy from its original.
SELECT (SELECT c.system_identifier FROM pg_catalog.pg_control_system() c) AS cluster, pg_catalog.pg_postmaster_start_time() AS since,
       pg_catalog.current_database()::text AS database;

-- name: may_insert
-- Whether this role may start runs here.
SELECT bool_and(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(t.oid, 'SELECT')
                AND (t.relname = 'nodes' OR has_table_privilege(t.oid, 'INSERT'))) AS allowed
  FROM pg_catalog.pg_class t JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
 WHERE n.nspname = %(schema)s AND t.relname IN ('runs', 'steps', 'step_edges', 'history', 'requests', 'nodes');

-- name: notify
-- Delivered at their commit, never at a rollback. Many in one transaction are one.
SELECT pg_catalog.pg_notify(%(channel)s, '');
