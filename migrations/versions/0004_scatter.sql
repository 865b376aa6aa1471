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
	CONSTRAINT barrier_pages_size CHECK (size BETWEEN 1 AND 500 AND next BETWEEN 0 AND size),
	CONSTRAINT barrier_pages_counters CHECK (done >= 0 AND failed >= 0 AND done + failed <= size)
)
 WITH (fillfactor = 70);

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
	CONSTRAINT item_claims_status CHECK (status IN ('held', 'settled', 'lost')),
	CONSTRAINT item_claims_counters CHECK (left_open >= 0 AND width > 0),
	CONSTRAINT item_claims_lost CHECK ((status = 'lost') = (lost_by IS NOT NULL))
)
 WITH (fillfactor = 70);

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
	CONSTRAINT items_status CHECK (status IN ('retry', 'promoted', 'succeeded', 'failed', 'cancelled')),
	CONSTRAINT items_ended CHECK ((ended_at IS NULL) = (status IN ('retry', 'promoted'))),
	CONSTRAINT items_claimed CHECK (num_nonnulls(due_at, claim) = (status = 'retry')::int)
);

CREATE INDEX items_failed ON flowstone.items (barrier_id, index) WHERE status IN ('failed', 'cancelled');

CREATE INDEX items_retry ON flowstone.items (barrier_id, due_at) WHERE status = 'retry';

UPDATE flowstone.schema_version SET version = 4 WHERE id = 1;
