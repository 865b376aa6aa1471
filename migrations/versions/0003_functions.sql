CREATE OR REPLACE FUNCTION flowstone.claim(_step bigint, _queue text, _worker bigint, _knows text[], _protocol integer, _only_run uuid, _relaxed boolean, _beside boolean) RETURNS TABLE (id bigint, run_id uuid, kind text, name text, partition text, task text, queue text, round integer, phase text, attempt integer, failures integer, max_failures integer, crashes integer, losses integer, fence bigint, worker_id bigint, sole boolean, awaited_at timestamptz, timeout_seconds float8, retry jsonb, input jsonb, stands bigint, run_name text, requested_by text, correlation_id text, tenant text, run_input jsonb, inputs jsonb, barrier_id bigint) LANGUAGE plpgsql ROWS 1 AS $$
#variable_conflict use_column
DECLARE
    chosen bigint;
    level integer;
    free boolean;
    c flowstone.steps;
    r flowstone.runs;
BEGIN
    IF NOT
EXISTS (SELECT 1 FROM flowstone.workers w WHERE w.id = _worker AND w.status = 'live' AND w.alive_until > flowstone.now())
    THEN
        RETURN;
    END IF;
    IF _step IS NOT NULL THEN
        SELECT s.id,
(NOT s.sole OR (
    SELECT m.id FROM flowstone.steps m
     WHERE
m.sole AND (m.status = 'running' OR m.status IN ('waiting', 'ready') AND m.phase = 'gather')
       AND m.name = s.name AND m.partition = s.partition AND m.id <> s.id LIMIT 1) IS NULL)
          INTO chosen, free
          FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
         WHERE s.id = _step AND s.status = 'ready' AND
s.parked IS NULL AND s.due_at <= flowstone.now() AND s.v <= _protocol AND s.task = ANY (_knows::text[])
AND r.status IN ('pending', 'running') AND NOT r.paused
           FOR NO KEY UPDATE OF s SKIP LOCKED;
        IF NOT free THEN
            UPDATE flowstone.steps s SET parked = 'maker', sent_at = NULL, sends = 0, awaited_at = coalesce(s.awaited_at, flowstone.now())
             WHERE s.id = chosen AND s.status = 'ready';
            chosen := NULL;
        END IF;
    END IF;
    IF chosen IS NULL AND _queue IS NOT NULL THEN
        SELECT s.id, s.priority INTO chosen, level
          FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
         WHERE s.status = 'ready' AND s.sent_at IS NULL AND s.parked IS NULL AND s.queue = _queue
           AND (_only_run IS NULL OR s.run_id = _only_run) AND
s.parked IS NULL AND s.due_at <= flowstone.now() AND s.v <= _protocol AND s.task = ANY (_knows::text[])
AND r.status IN ('pending', 'running') AND NOT r.paused
           AND
(NOT _beside::boolean OR (s.crashes = 0 AND s.losses = 0))
           AND
(NOT s.sole OR (
    SELECT m.id FROM flowstone.steps m
     WHERE
m.sole AND (m.status = 'running' OR m.status IN ('waiting', 'ready') AND m.phase = 'gather')
       AND m.name = s.name AND m.partition = s.partition AND m.id <> s.id LIMIT 1) IS NULL)
         ORDER BY s.priority DESC, s.turn, s.id LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED;
        IF chosen IS NOT NULL AND EXISTS (
            SELECT 1 FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
             WHERE s.sent_at IS NOT NULL AND s.status = 'ready' AND s.queue = _queue
               AND (s.priority > level OR s.priority = level AND s.turn + 200 < (
                    SELECT f.turn FROM flowstone.steps f
                     WHERE f.status = 'ready' AND f.sent_at IS NULL AND f.parked IS NULL AND f.queue = _queue
                       AND f.priority = level ORDER BY f.turn LIMIT 1))
               AND (_only_run IS NULL OR s.run_id = _only_run) AND
s.parked IS NULL AND s.due_at <= flowstone.now() AND s.v <= _protocol AND s.task = ANY (_knows::text[])
AND r.status IN ('pending', 'running') AND NOT r.paused
               AND
(NOT _beside::boolean OR (s.crashes = 0 AND s.losses = 0))
        ) THEN
            chosen := NULL;
        END IF;
    END IF;
    IF chosen IS NULL AND _queue IS NOT NULL THEN
        SELECT s.id INTO chosen FROM flowstone.steps s JOIN flowstone.runs r ON r.id = s.run_id
         WHERE s.sent_at IS NOT NULL AND s.status = 'ready' AND s.queue = _queue
           AND (_only_run IS NULL OR s.run_id = _only_run) AND
s.parked IS NULL AND s.due_at <= flowstone.now() AND s.v <= _protocol AND s.task = ANY (_knows::text[])
AND r.status IN ('pending', 'running') AND NOT r.paused
           AND
(NOT _beside::boolean OR (s.crashes = 0 AND s.losses = 0))
           AND
(NOT s.sole OR (
    SELECT m.id FROM flowstone.steps m
     WHERE
m.sole AND (m.status = 'running' OR m.status IN ('waiting', 'ready') AND m.phase = 'gather')
       AND m.name = s.name AND m.partition = s.partition AND m.id <> s.id LIMIT 1) IS NULL)
           AND (_beside OR NOT EXISTS (
               SELECT 1 FROM flowstone.steps f
                WHERE f.status = 'ready' AND f.sent_at IS NULL AND f.parked IS NULL AND f.queue = _queue AND f.priority >= s.priority))
         ORDER BY s.priority DESC, s.turn, s.id LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED;
    END IF;
    IF chosen IS NULL THEN
        RETURN;
    END IF;
    SELECT o.* INTO r FROM flowstone.runs o JOIN flowstone.steps s ON s.run_id = o.id WHERE s.id = chosen;
    IF r.status = 'pending' AND NOT _relaxed THEN
        PERFORM FROM flowstone.runs o WHERE o.id = r.id AND o.status = 'pending' FOR NO KEY UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    UPDATE flowstone.steps s
       SET status = 'running', fence = s.fence + 1, attempt = s.attempt + 1, worker_id = _worker,
           started_at = flowstone.now(), deadline_at = flowstone.now() + make_interval(secs => s.timeout_seconds),
           due_at = NULL, sent_at = NULL, sends = 0, note = NULL
     WHERE s.id = chosen AND s.status = 'ready'
    RETURNING s.* INTO c;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF r.status = 'pending' THEN
        UPDATE flowstone.runs o SET status = 'running', started_at = flowstone.now() WHERE o.id = r.id AND o.status = 'pending';
        IF FOUND THEN
            INSERT INTO flowstone.history (run_id, round, event) VALUES (r.id, r.round, 'run.running');
        END IF;
    END IF;
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id)
    VALUES (c.run_id, c.id, c.round, 'step.running', c.attempt, c.fence, c.worker_id);
    IF _relaxed THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    RETURN QUERY
    SELECT c.id, c.run_id, c.kind, c.name, c.partition, c.task, c.queue, c.round, c.phase, c.attempt, c.failures, c.max_failures,
           c.crashes, c.losses, c.fence, c.worker_id, c.sole, c.awaited_at, c.timeout_seconds, c.retry, c.input,
           CASE WHEN c.sole THEN (SELECT v.value_id FROM flowstone.asset_current v
             WHERE v.asset = c.name AND v.partition = c.partition AND v.invalidated_at IS NULL) END,
           r.name, r.requested_by, r.correlation_id, r.tenant, r.input,
           coalesce((SELECT jsonb_agg(jsonb_build_object('name', p.name, 'partition', p.partition, 'status', p.status,
                                                         'output', p.output, 'optional', e.optional) ORDER BY p.id)
                       FROM flowstone.step_edges e JOIN flowstone.steps p ON p.id = e.parent
                      WHERE e.child = c.id), '[]'::jsonb), c.barrier_id;
END
$$;

CREATE OR REPLACE FUNCTION flowstone.succeed(_step bigint, _worker bigint, _fence bigint, _output jsonb) RETURNS TABLE (id bigint, opened text[], run_status text, tenant text, lane text, awaited boolean) LANGUAGE plpgsql ROWS 1 AS $$
#variable_conflict use_column
DECLARE
    m flowstone.steps;
    k flowstone.runs;
    waiting bigint[];
    first bigint;
    queues text[];
BEGIN
    UPDATE flowstone.steps
       SET status = 'succeeded', error = NULL, worker_id = NULL, deadline_at = NULL, finished_at = flowstone.now(), output =
nullif(coalesce(_output::jsonb, '{}') || coalesce(nullif(current_setting('flowstone_settlement.written', true), ''), '{}')::jsonb, '{}')
     WHERE
id = _step AND status = 'running' AND worker_id IS NOT DISTINCT FROM _worker AND fence = _fence
    RETURNING * INTO m;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    INSERT INTO flowstone.history (run_id, step_id, round, event, attempt, fence, worker_id)
    VALUES (m.run_id, m.id, m.round, 'step.succeeded', m.attempt, m.fence, _worker);
    waiting := ARRAY(
        SELECT s.id FROM flowstone.steps s
         WHERE s.id = ANY (ARRAY(SELECT e.child FROM flowstone.step_edges e WHERE e.parent = m.id)) AND s.status = 'blocked'
         ORDER BY s.id FOR NO KEY UPDATE OF s);
    IF cardinality(waiting) > 0 THEN
        SELECT least(m.turn, f.turn) INTO first FROM flowstone.steps f
         WHERE f.status = 'ready' AND f.sent_at IS NULL AND f.parked IS NULL AND f.queue = m.queue AND f.priority = m.priority
         ORDER BY f.turn LIMIT 1;
        WITH opened AS (
            UPDATE flowstone.steps s
               SET remaining = s.remaining - 1,
                   status = CASE WHEN s.remaining = 1 THEN 'ready' ELSE 'blocked' END,
                   due_at = CASE WHEN s.remaining = 1 THEN flowstone.now() END,
                   turn = s.ordinal + coalesce(first, m.turn) - m.ordinal
             WHERE s.id = ANY (waiting) AND s.status = 'blocked'
            RETURNING s.id, s.run_id, s.round, s.queue, s.status
        ), logged AS (
            INSERT INTO flowstone.history (run_id, step_id, round, event)
            SELECT o.run_id, o.id, o.round, 'step.ready' FROM opened o WHERE o.status = 'ready'
        )
        SELECT array_agg(o.queue) INTO queues FROM opened o WHERE o.status = 'ready';
    END IF;
    UPDATE flowstone.runs r
       SET remaining_steps = r.remaining_steps - 1,
           status = CASE WHEN r.remaining_steps > 1 THEN r.status
                         WHEN r.status = 'cancelling' THEN coalesce(r.ends_as, 'cancelled')
                         WHEN r.failed_steps > 0 THEN 'failed'
                         WHEN r.cancelled_steps > 0 THEN 'cancelled'
                         ELSE 'succeeded' END,
           finished_at = CASE WHEN r.remaining_steps = 1 THEN flowstone.now() END
     WHERE r.id = m.run_id AND r.status IN ('running', 'cancelling')
    RETURNING r.* INTO k;
    IF k.finished_at IS NOT NULL THEN
        INSERT INTO flowstone.history (run_id, round, event) VALUES (k.id, k.round, 'run.' || k.status);
    END IF;
    RETURN QUERY SELECT m.id, queues, k.status, k.tenant, CASE WHEN k.finished_at IS NOT NULL THEN k.lane END,
(m.sole AND EXISTS (SELECT 1 FROM flowstone.steps a WHERE a.parked = 'maker' AND a.name = m.name AND a.partition = m.partition)) AS awaited
    ;
END
$$;

CREATE OR REPLACE FUNCTION flowstone.settle_value(_asset text, _partition text, _run uuid, _step bigint, _fence bigint, _io text, _content bytea, _pointer jsonb, _size bigint, _digest text, _metadata jsonb, _code_version text, _code_digest text, _recipe text, _up_assets text[], _up_partitions text[], _up_values bigint[]) RETURNS TABLE (id bigint) LANGUAGE plpgsql ROWS 1 AS $$
#variable_conflict use_column
DECLARE
    made bigint;
BEGIN
    INSERT INTO flowstone.asset_values (asset, partition, run_id, step_id, fence, io, content, pointer, size, digest, metadata,
                                        code_version, code_digest, recipe, settled_at)
    VALUES (_asset, _partition, _run, _step, _fence, _io, _content, _pointer, _size, _digest,
            _metadata, _code_version, _code_digest, _recipe, flowstone.now())
    RETURNING asset_values.id INTO made;
    INSERT INTO flowstone.asset_current (asset, partition, value_id) VALUES (_asset, _partition, made)
    ON CONFLICT (asset, partition) DO UPDATE SET value_id = excluded.value_id, updated_at = flowstone.now(),
invalidated_at = CASE WHEN asset_current.invalidated_at >
    (SELECT s.started_at FROM flowstone.steps s WHERE s.id = _step) THEN asset_current.invalidated_at END,
invalidation = CASE WHEN asset_current.invalidated_at >
    (SELECT s.started_at FROM flowstone.steps s WHERE s.id = _step) THEN asset_current.invalidation END
    ;
    IF cardinality(_up_values) > 0 THEN
        INSERT INTO flowstone.lineage (value_id, upstream_asset, upstream_partition, upstream_value_id, asset, partition, run_id)
        SELECT made, u.asset, u.partition, u.value_id, _asset, _partition, _run
          FROM unnest(_up_assets, _up_partitions, _up_values) AS u(asset, partition, value_id);
    END IF;
    PERFORM set_config('flowstone_settlement.written', jsonb_build_object('value', made)::text, true);
    RETURN QUERY SELECT made;
END
$$;

UPDATE flowstone.schema_version SET version = 3 WHERE id = 1;
