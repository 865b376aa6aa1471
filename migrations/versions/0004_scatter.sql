ALTER TABLE flowstone.steps ADD COLUMN barrier_id BIGINT;

CREATE OR REPLACE FUNCTION flowstone.steps_are_sound(status text, phase text, parked text, remaining integer, attempt integer, failures integer, crashes integer, losses integer, fence bigint, worker_id bigint, due_at timestamptz, sent_at timestamptz, started_at timestamptz, finished_at timestamptz) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF NOT (status IN ('blocked', 'ready', 'running', 'waiting', 'succeeded', 'failed', 'skipped', 'cancelled')) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_status', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_status';
  END IF;
  IF NOT (phase IN ('call', 'gather', 'signal', 'timeout', 'decide', 'join', 'item')) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_phase', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_phase';
  END IF;
  IF NOT (parked IN ('due', 'paused', 'lane', 'maker', 'idle')) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_parked', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_parked';
  END IF;
  IF NOT (parked IS NULL OR status = 'ready') THEN
    RAISE check_violation USING CONSTRAINT = 'steps_parked_is_ready', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_parked_is_ready';
  END IF;
  IF NOT (remaining >= 0) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_remaining', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_remaining';
  END IF;
  IF NOT (status <> 'blocked' OR remaining > 0) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_blocked_has_remaining', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_blocked_has_remaining';
  END IF;
  IF NOT (status NOT IN ('ready', 'running', 'succeeded') OR remaining = 0) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_started_has_none_remaining', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_started_has_none_remaining';
  END IF;
  IF NOT ((status = 'running') = (worker_id IS NOT NULL)) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_running_has_worker', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_running_has_worker';
  END IF;
  IF NOT (status <> 'running' OR (started_at IS NOT NULL AND fence > 0)) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_running_has_fence', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_running_has_fence';
  END IF;
  IF NOT ((status = 'ready') = (due_at IS NOT NULL)) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_ready_is_due', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_ready_is_due';
  END IF;
  IF NOT (sent_at IS NULL OR (status = 'ready' AND parked IS NULL)) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_sent_is_ready', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_sent_is_ready';
  END IF;
  IF NOT ((status IN ('cancelled', 'failed', 'skipped', 'succeeded')) = (finished_at IS NOT NULL)) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_finished', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_finished';
  END IF;
  IF NOT (attempt >= 0 AND failures >= 0 AND crashes >= 0 AND losses >= 0) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_counters', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_counters';
  END IF;
  RETURN true;
END $$;

DROP INDEX flowstone.steps_due;

CREATE INDEX steps_due ON flowstone.steps (due_at) WHERE parked IN ('due', 'idle');

DROP INDEX flowstone.steps_makers;

CREATE UNIQUE INDEX steps_makers ON flowstone.steps (name, partition) WHERE sole AND (status = 'running' OR status IN ('waiting', 'ready') AND phase = 'gather');

CREATE INDEX steps_of_barrier ON flowstone.steps (barrier_id, id) WHERE barrier_id IS NOT NULL;

CREATE OR REPLACE FUNCTION flowstone.barrier_pages_are_sound(size integer, next integer, done integer, failed integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF NOT (size BETWEEN 1 AND 500 AND next BETWEEN 0 AND size) THEN
    RAISE check_violation USING CONSTRAINT = 'barrier_pages_size', TABLE = 'barrier_pages', MESSAGE = 'a row of barrier_pages breaks barrier_pages_size';
  END IF;
  IF NOT (done >= 0 AND failed >= 0 AND done + failed <= size) THEN
    RAISE check_violation USING CONSTRAINT = 'barrier_pages_counters', TABLE = 'barrier_pages', MESSAGE = 'a row of barrier_pages breaks barrier_pages_counters';
  END IF;
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION flowstone.item_claims_are_sound(status text, lost_by text, left_open integer, width integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF NOT (status IN ('held', 'settled', 'lost')) THEN
    RAISE check_violation USING CONSTRAINT = 'item_claims_status', TABLE = 'item_claims', MESSAGE = 'a row of item_claims breaks item_claims_status';
  END IF;
  IF NOT (left_open >= 0 AND width > 0) THEN
    RAISE check_violation USING CONSTRAINT = 'item_claims_counters', TABLE = 'item_claims', MESSAGE = 'a row of item_claims breaks item_claims_counters';
  END IF;
  IF NOT ((status = 'lost') = (lost_by IS NOT NULL)) THEN
    RAISE check_violation USING CONSTRAINT = 'item_claims_lost', TABLE = 'item_claims', MESSAGE = 'a row of item_claims breaks item_claims_lost';
  END IF;
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION flowstone.items_are_sound(status text, claim bigint, due_at timestamptz, ended_at timestamptz) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF NOT (status IN ('retry', 'promoted', 'succeeded', 'failed', 'cancelled')) THEN
    RAISE check_violation USING CONSTRAINT = 'items_status', TABLE = 'items', MESSAGE = 'a row of items breaks items_status';
  END IF;
  IF NOT ((ended_at IS NULL) = (status IN ('retry', 'promoted'))) THEN
    RAISE check_violation USING CONSTRAINT = 'items_ended', TABLE = 'items', MESSAGE = 'a row of items breaks items_ended';
  END IF;
  IF NOT (num_nonnulls(due_at, claim) = (status = 'retry')::int) THEN
    RAISE check_violation USING CONSTRAINT = 'items_claimed', TABLE = 'items', MESSAGE = 'a row of items breaks items_claimed';
  END IF;
  RETURN true;
END $$;

CREATE TABLE flowstone.barriers (
	id BIGINT GENERATED ALWAYS AS IDENTITY,
	step_id BIGINT NOT NULL,
	run_id UUID NOT NULL,
	round INTEGER DEFAULT 1 NOT NULL,
	name TEXT NOT NULL,
	partition TEXT DEFAULT '' NOT NULL,
	kind TEXT NOT NULL,
	task TEXT NOT NULL,
	queue TEXT NOT NULL,
	priority INTEGER DEFAULT 0 NOT NULL,
	status TEXT NOT NULL,
	sealed BOOLEAN DEFAULT false NOT NULL,
	total INTEGER DEFAULT 0 NOT NULL,
	collapsed INTEGER DEFAULT 0 NOT NULL,
	done INTEGER DEFAULT 0 NOT NULL,
	failed INTEGER DEFAULT 0 NOT NULL,
	policy JSONB NOT NULL,
	checkpoint JSONB,
	metadata JSONB,
	error JSONB,
	keyed BOOLEAN DEFAULT false NOT NULL,
	abandoned BOOLEAN DEFAULT false NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	closed_at TIMESTAMP WITH TIME ZONE,
	PRIMARY KEY (id),
	CONSTRAINT barriers_status CHECK (status IN ('open', 'completed', 'partial_failure', 'failed', 'cancelled')),
	CONSTRAINT barriers_counters CHECK (done >= 0 AND failed >= 0 AND collapsed >= 0 AND done + failed <= total),
	CONSTRAINT barriers_closed CHECK ((status = 'open') = (closed_at IS NULL))
)
 WITH (fillfactor = 50);

CREATE INDEX barriers_abandoned ON flowstone.barriers (id) WHERE abandoned;

CREATE INDEX barriers_keyed ON flowstone.barriers (id) WHERE keyed;

CREATE INDEX barriers_of_name ON flowstone.barriers (name, partition, id DESC);

CREATE INDEX barriers_of_run ON flowstone.barriers (run_id, id);

CREATE UNIQUE INDEX barriers_of_step ON flowstone.barriers (step_id, round);

CREATE INDEX barriers_open ON flowstone.barriers (id) WHERE status = 'open';

CREATE TABLE flowstone.barrier_pages (
	barrier_id BIGINT NOT NULL,
	number INTEGER NOT NULL,
	first INTEGER NOT NULL,
	size INTEGER NOT NULL,
	next INTEGER DEFAULT 0 NOT NULL,
	done INTEGER DEFAULT 0 NOT NULL,
	failed INTEGER DEFAULT 0 NOT NULL,
	patchy BOOLEAN DEFAULT false NOT NULL,
	keys BYTEA NOT NULL,
	PRIMARY KEY (barrier_id, number),
	CONSTRAINT barrier_pages_are_sound CHECK (flowstone.barrier_pages_are_sound(size, next, done, failed))
)
 WITH (fillfactor = 40);

CREATE UNIQUE INDEX barrier_pages_first ON flowstone.barrier_pages (barrier_id, first);

CREATE INDEX barrier_pages_open ON flowstone.barrier_pages (barrier_id, number) WHERE next < size;

CREATE TABLE flowstone.barrier_keys (
	barrier_id BIGINT NOT NULL,
	digest BYTEA NOT NULL,
	PRIMARY KEY (barrier_id, digest)
);

CREATE TABLE flowstone.item_claims (
	hand_id BIGINT NOT NULL,
	barrier_id BIGINT NOT NULL,
	round INTEGER DEFAULT 1 NOT NULL,
	kind TEXT NOT NULL,
	page INTEGER,
	first INTEGER DEFAULT 0 NOT NULL,
	size INTEGER DEFAULT 0 NOT NULL,
	items INTEGER[],
	left_open INTEGER DEFAULT 0 NOT NULL,
	width INTEGER DEFAULT 1 NOT NULL,
	alone BOOLEAN DEFAULT false NOT NULL,
	fence BIGINT NOT NULL,
	worker_id BIGINT NOT NULL,
	status TEXT NOT NULL,
	lost_by TEXT,
	PRIMARY KEY (hand_id),
	CONSTRAINT item_claims_are_sound CHECK (flowstone.item_claims_are_sound(status, lost_by, left_open, width))
)
 WITH (fillfactor = 20);

CREATE INDEX item_claims_live ON flowstone.item_claims (barrier_id) WHERE status <> 'settled';

CREATE INDEX item_claims_of_barrier ON flowstone.item_claims (barrier_id);

CREATE TABLE flowstone.items (
	barrier_id BIGINT NOT NULL,
	index INTEGER NOT NULL,
	status TEXT NOT NULL,
	attempt INTEGER NOT NULL,
	failures INTEGER NOT NULL,
	crashes INTEGER NOT NULL,
	losses INTEGER NOT NULL,
	alone BOOLEAN NOT NULL,
	round INTEGER NOT NULL,
	seconds FLOAT NOT NULL,
	result BYTEA,
	error JSONB,
	claim BIGINT,
	due_at TIMESTAMP WITH TIME ZONE,
	ended_at TIMESTAMP WITH TIME ZONE,
	step_id BIGINT,
	PRIMARY KEY (barrier_id, index),
	CONSTRAINT items_are_sound CHECK (flowstone.items_are_sound(status, claim, due_at, ended_at))
);

CREATE INDEX items_failed ON flowstone.items (barrier_id, index) WHERE status IN ('failed', 'cancelled');

CREATE INDEX items_retry ON flowstone.items (barrier_id, due_at) WHERE status = 'retry';

CREATE OR REPLACE FUNCTION flowstone.settle_part(_step bigint, _worker bigint, _fence bigint, _barrier bigint, _round int, _indexes int[], _statuses text[], _attempts int[], _failures int[], _crashes int[], _losses int[], _alone boolean[], _seconds float8[], _results bytea[], _errors text[], _delays float8[]) RETURNS TABLE (status text, written int, cancelled int, done int, failed int, total int, sealed boolean) LANGUAGE plpgsql ROWS 1 AS $$
#variable_conflict use_column
DECLARE
    c flowstone.item_claims;
    b flowstone.barriers;
    news int;
    good int;
    bad int := 0;
    stopped int := 0;
    good_ones int[];
    bad_ones int[];
    complete int := 0;
BEGIN
    SELECT o.* INTO c FROM flowstone.item_claims o
     WHERE o.hand_id = _step AND o.worker_id = _worker AND o.fence = _fence AND o.barrier_id = _barrier AND o.round = _round
       AND o.status IN ('held', 'settled')
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT o.status, o.round INTO b.status, b.round FROM flowstone.barriers o WHERE o.id = _barrier;
    IF b.round IS DISTINCT FROM _round THEN
        RETURN;
    END IF;
    IF b.status <> 'open' THEN
        RETURN QUERY SELECT b.status, 0, 0, b.done, b.failed, b.total, b.sealed;
        RETURN;
    END IF;
    IF _statuses IS NULL AND cardinality(_indexes) = 1 THEN
        INSERT INTO flowstone.items (barrier_id, index, status, attempt, failures, crashes, losses, alone, round, seconds, result, ended_at)
        SELECT _barrier, g.index, 'succeeded', 1, 0, 0, 0, false, _round, coalesce((_seconds)[1], 0), (_results)[1], flowstone.now()
          FROM (SELECT (_indexes)[1] AS index) g
         WHERE g.index >= c.first AND g.index < c.first + c.size OR g.index = ANY (c.items)
ON CONFLICT (barrier_id, index) DO UPDATE
   SET status = excluded.status, attempt = excluded.attempt, failures = excluded.failures, crashes = excluded.crashes,
       losses = excluded.losses, alone = excluded.alone, round = excluded.round, seconds = excluded.seconds, result = excluded.result,
       error = excluded.error, due_at = excluded.due_at, ended_at = excluded.ended_at, claim = NULL
 WHERE items.status = 'retry' AND items.claim = _step
        ;
        GET DIAGNOSTICS news = ROW_COUNT;
        good := news;
        good_ones := CASE WHEN news > 0 THEN _indexes END;
    ELSE
        WITH written AS (
            INSERT INTO flowstone.items (barrier_id, index, status, attempt, failures, crashes, losses, alone, round, seconds, result, error, due_at,
                                         ended_at)
            SELECT _barrier, g.index, coalesce(g.status, 'succeeded'), coalesce(g.attempt, 1), coalesce(g.failures, 0), coalesce(g.crashes, 0),
                   coalesce(g.losses, 0), coalesce(g.alone, false), _round, coalesce(g.seconds, 0), g.result, g.error::jsonb,
                   CASE WHEN g.status = 'retry' THEN
                        CASE WHEN g.delay < 0 THEN 'infinity' ELSE flowstone.now() + make_interval(secs => coalesce(g.delay, 0)) END END,
                   CASE WHEN g.status = 'retry' THEN NULL ELSE flowstone.now() END
              FROM unnest(_indexes, _statuses, _attempts, _failures, _crashes, _losses, _alone, _seconds, _results,
                          _errors, _delays)
                   AS g(index, status, attempt, failures, crashes, losses, alone, seconds, result, error, delay)
             WHERE g.index >= c.first AND g.index < c.first + c.size OR g.index = ANY (c.items)
ON CONFLICT (barrier_id, index) DO UPDATE
   SET status = excluded.status, attempt = excluded.attempt, failures = excluded.failures, crashes = excluded.crashes,
       losses = excluded.losses, alone = excluded.alone, round = excluded.round, seconds = excluded.seconds, result = excluded.result,
       error = excluded.error, due_at = excluded.due_at, ended_at = excluded.ended_at, claim = NULL
 WHERE items.status = 'retry' AND items.claim = _step
            RETURNING index, status
        )
        SELECT count(*)::int, count(*) FILTER (WHERE w.status = 'succeeded')::int, count(*) FILTER (WHERE w.status = 'failed')::int,
               count(*) FILTER (WHERE w.status = 'cancelled')::int,
               CASE WHEN c.page IS NULL OR c.items IS NOT NULL THEN array_agg(w.index) FILTER (WHERE w.status = 'succeeded') END,
               CASE WHEN c.page IS NULL OR c.items IS NOT NULL THEN array_agg(w.index) FILTER (WHERE w.status = 'failed') END
          INTO news, good, bad, stopped, good_ones, bad_ones FROM written w;
    END IF;
    IF news > 0 THEN
        UPDATE flowstone.item_claims o
           SET left_open = greatest(0, c.left_open - news), status = CASE WHEN c.left_open <= news THEN 'settled' ELSE 'held' END
         WHERE o.hand_id = _step AND o.status IN ('held', 'settled');
    END IF;
    IF good + bad = 0 THEN
        complete := 0;
    ELSIF c.page IS NOT NULL AND c.items IS NULL THEN
        UPDATE flowstone.barrier_pages p SET done = p.done + good, failed = p.failed + bad
         WHERE p.barrier_id = _barrier AND p.number = c.page
        RETURNING CASE WHEN p.done + p.failed = p.size THEN p.done ELSE 0 END INTO complete;
    ELSE
        WITH counts AS (
            SELECT (SELECT p.number FROM flowstone.barrier_pages p WHERE p.barrier_id = _barrier AND p.first <= w.index
                     ORDER BY p.first DESC LIMIT 1) AS number, sum(w.done)::int AS done, sum(w.failed)::int AS failed
              FROM (SELECT unnest(good_ones) AS index, 1 AS done, 0 AS failed UNION ALL SELECT unnest(bad_ones), 0, 1) w GROUP BY 1
        ), locked AS (
            SELECT p.number FROM flowstone.barrier_pages p
             WHERE p.barrier_id = _barrier AND p.number = ANY (ARRAY(SELECT number FROM counts)) ORDER BY p.number FOR NO KEY UPDATE
        ), paged AS (
            UPDATE flowstone.barrier_pages p SET done = p.done + k.done, failed = p.failed + k.failed
              FROM locked l JOIN counts k USING (number) WHERE p.barrier_id = _barrier AND p.number = l.number
            RETURNING CASE WHEN p.done + p.failed = p.size THEN p.done ELSE 0 END AS done
        )
        SELECT coalesce(sum(p.done), 0)::int INTO complete FROM paged p;
    END IF;
    IF complete + bad > 0 THEN
        UPDATE flowstone.barriers o SET done = o.done + complete, failed = o.failed + bad WHERE o.id = _barrier
        RETURNING o.status, o.done, o.failed, o.total, o.sealed INTO b.status, b.done, b.failed, b.total, b.sealed;
    END IF;
    RETURN QUERY SELECT b.status, news, stopped, b.done, b.failed, b.total, b.sealed;
END
$$;

UPDATE flowstone.schema_version SET version = 4 WHERE id = 1;
