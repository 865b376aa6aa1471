ALTER TABLE flowstone.runs
	ADD COLUMN lane_width INTEGER DEFAULT 1 NOT NULL,
	ADD COLUMN admitted BOOLEAN DEFAULT true NOT NULL,
	ADD COLUMN deadline_at TIMESTAMP WITH TIME ZONE,
	ADD COLUMN ends_as TEXT;

CREATE INDEX runs_finished ON flowstone.runs (finished_at) WHERE finished_at IS NOT NULL;

CREATE INDEX runs_of_lane ON flowstone.runs (tenant, lane, created_at, id) WHERE lane IS NOT NULL AND finished_at IS NULL;

CREATE INDEX runs_in_lane ON flowstone.runs (lane, created_at DESC, id DESC) WHERE lane IS NOT NULL;

CREATE INDEX runs_paused ON flowstone.runs (id) WHERE paused AND finished_at IS NULL;

CREATE INDEX runs_outside ON flowstone.runs (tenant, lane) WHERE NOT admitted AND finished_at IS NULL;

CREATE INDEX runs_deadline ON flowstone.runs (deadline_at) WHERE deadline_at IS NOT NULL AND status IN ('pending', 'running');

ALTER TABLE flowstone.steps
	ADD COLUMN turn BIGINT DEFAULT 0 NOT NULL,
	ADD COLUMN parked TEXT,
	ADD COLUMN sole BOOLEAN DEFAULT false NOT NULL,
	ADD COLUMN awaited_at TIMESTAMP WITH TIME ZONE;

UPDATE flowstone.steps SET parked = 'due' WHERE status = 'ready' AND sent_at IS NULL AND due_at > flowstone.now();

CREATE OR REPLACE FUNCTION flowstone.runs_are_sound(status text, ends_as text, lane text, lane_width integer, admitted boolean, total_steps integer, remaining_steps integer, failed_steps integer, cancelled_steps integer, started_at timestamptz, cancelled_at timestamptz, finished_at timestamptz) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF NOT (status IN ('pending', 'running', 'waiting', 'succeeded', 'partial', 'failed', 'cancelling', 'cancelled')) THEN
    RAISE check_violation USING CONSTRAINT = 'runs_status', TABLE = 'runs', MESSAGE = 'a row of runs breaks runs_status';
  END IF;
  IF NOT (ends_as IN ('failed', 'cancelled')) THEN
    RAISE check_violation USING CONSTRAINT = 'runs_ends_as', TABLE = 'runs', MESSAGE = 'a row of runs breaks runs_ends_as';
  END IF;
  IF NOT (lane_width > 0 AND (lane IS NOT NULL OR admitted)) THEN
    RAISE check_violation USING CONSTRAINT = 'runs_lane', TABLE = 'runs', MESSAGE = 'a row of runs breaks runs_lane';
  END IF;
  IF NOT (remaining_steps BETWEEN 0 AND total_steps) THEN
    RAISE check_violation USING CONSTRAINT = 'runs_remaining', TABLE = 'runs', MESSAGE = 'a row of runs breaks runs_remaining';
  END IF;
  IF NOT (failed_steps + cancelled_steps <= total_steps) THEN
    RAISE check_violation USING CONSTRAINT = 'runs_failed', TABLE = 'runs', MESSAGE = 'a row of runs breaks runs_failed';
  END IF;
  IF NOT ((status IN ('cancelled', 'failed', 'partial', 'succeeded')) = (finished_at IS NOT NULL)) THEN
    RAISE check_violation USING CONSTRAINT = 'runs_finished', TABLE = 'runs', MESSAGE = 'a row of runs breaks runs_finished';
  END IF;
  IF NOT (NOT (status IN ('cancelled', 'failed', 'partial', 'succeeded')) OR remaining_steps = 0) THEN
    RAISE check_violation USING CONSTRAINT = 'runs_ended_have_no_steps_left', TABLE = 'runs', MESSAGE = 'a row of runs breaks runs_ended_have_no_steps_left';
  END IF;
  IF NOT (status <> 'cancelling' OR cancelled_at IS NOT NULL) THEN
    RAISE check_violation USING CONSTRAINT = 'runs_cancelling', TABLE = 'runs', MESSAGE = 'a row of runs breaks runs_cancelling';
  END IF;
  IF NOT (status NOT IN ('running', 'succeeded') OR started_at IS NOT NULL) THEN
    RAISE check_violation USING CONSTRAINT = 'runs_started', TABLE = 'runs', MESSAGE = 'a row of runs breaks runs_started';
  END IF;
  RETURN true;
END $$;

ALTER TABLE flowstone.runs
	DROP CONSTRAINT runs_status,
	DROP CONSTRAINT runs_remaining,
	DROP CONSTRAINT runs_failed,
	DROP CONSTRAINT runs_finished,
	DROP CONSTRAINT runs_ended_have_no_steps_left,
	DROP CONSTRAINT runs_cancelling,
	DROP CONSTRAINT runs_started,
	ADD CONSTRAINT runs_are_sound CHECK (flowstone.runs_are_sound(status, ends_as, lane, lane_width, admitted, total_steps, remaining_steps, failed_steps, cancelled_steps, started_at, cancelled_at, finished_at));

CREATE OR REPLACE FUNCTION flowstone.steps_are_sound(status text, phase text, parked text, remaining integer, attempt integer, failures integer, crashes integer, losses integer, fence bigint, worker_id bigint, due_at timestamptz, sent_at timestamptz, started_at timestamptz, finished_at timestamptz) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF NOT (status IN ('blocked', 'ready', 'running', 'waiting', 'succeeded', 'failed', 'skipped', 'cancelled')) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_status', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_status';
  END IF;
  IF NOT (phase IN ('call', 'gather', 'signal', 'timeout', 'decide', 'join')) THEN
    RAISE check_violation USING CONSTRAINT = 'steps_phase', TABLE = 'steps', MESSAGE = 'a row of steps breaks steps_phase';
  END IF;
  IF NOT (parked IN ('due', 'paused', 'lane', 'maker')) THEN
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

ALTER TABLE flowstone.steps
	DROP CONSTRAINT steps_status,
	DROP CONSTRAINT steps_phase,
	DROP CONSTRAINT steps_remaining,
	DROP CONSTRAINT steps_blocked_has_remaining,
	DROP CONSTRAINT steps_started_has_none_remaining,
	DROP CONSTRAINT steps_running_has_worker,
	DROP CONSTRAINT steps_running_has_fence,
	DROP CONSTRAINT steps_ready_is_due,
	DROP CONSTRAINT steps_sent_is_ready,
	DROP CONSTRAINT steps_finished,
	DROP CONSTRAINT steps_counters,
	ADD CONSTRAINT steps_are_sound CHECK (flowstone.steps_are_sound(status, phase, parked, remaining, attempt, failures, crashes, losses, fence, worker_id, due_at, sent_at, started_at, finished_at));

DROP INDEX flowstone.steps_unsent;

DROP INDEX flowstone.steps_due;

CREATE INDEX steps_unsent ON flowstone.steps (queue, priority DESC, turn, id) WHERE status = 'ready' AND sent_at IS NULL AND parked IS NULL;

CREATE INDEX steps_due ON flowstone.steps (due_at) WHERE parked = 'due';

CREATE INDEX steps_aside ON flowstone.steps (run_id) WHERE parked IN ('paused', 'lane');

CREATE INDEX steps_awaiting ON flowstone.steps (name, partition) WHERE parked = 'maker';

CREATE UNIQUE INDEX steps_makers ON flowstone.steps (name, partition) WHERE status = 'running' AND sole;

ALTER TABLE flowstone.history DROP CONSTRAINT history_pkey;

DROP INDEX flowstone.history_of_run;

ALTER TABLE flowstone.history ADD PRIMARY KEY (run_id, id);

DROP INDEX flowstone.lineage_up;

ALTER TABLE flowstone.asset_values ADD COLUMN recipe TEXT;

ALTER TABLE flowstone.asset_current
	ADD COLUMN invalidated_at TIMESTAMP WITH TIME ZONE,
	ADD COLUMN invalidation JSONB;

CREATE TABLE flowstone.partition_keys (
	definition TEXT NOT NULL,
	key TEXT NOT NULL,
	added_at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	added_by TEXT DEFAULT '' NOT NULL,
	PRIMARY KEY (definition, key)
);

CREATE TABLE flowstone.requests (
	id BIGINT GENERATED ALWAYS AS IDENTITY,
	run_id UUID NOT NULL,
	act TEXT NOT NULL,
	detail JSONB,
	actor TEXT NOT NULL,
	asked_at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	PRIMARY KEY (id),
	CONSTRAINT requests_act CHECK (act IN ('cancel', 'retry', 'pause', 'resume'))
);

CREATE TABLE flowstone.backfills (
	id UUID NOT NULL,
	tenant TEXT DEFAULT '' NOT NULL,
	idempotency_key TEXT,
	request_digest TEXT,
	asset TEXT NOT NULL,
	mode TEXT NOT NULL,
	partitions TEXT[] NOT NULL,
	skipped TEXT[] NOT NULL,
	begun INTEGER DEFAULT 0 NOT NULL,
	max_concurrent INTEGER DEFAULT 1 NOT NULL,
	request JSONB,
	requested_by TEXT DEFAULT '' NOT NULL,
	paused BOOLEAN DEFAULT false NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	cancelled_at TIMESTAMP WITH TIME ZONE,
	PRIMARY KEY (id),
	CONSTRAINT backfills_mode CHECK (mode IN ('missing', 'failed', 'stale', 'all')),
	CONSTRAINT backfills_begun CHECK (begun BETWEEN 0 AND cardinality(partitions)),
	CONSTRAINT backfills_max_concurrent CHECK (max_concurrent > 0)
);

CREATE UNIQUE INDEX backfills_idempotency ON flowstone.backfills (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE INDEX backfills_newest ON flowstone.backfills (created_at DESC, id DESC);

ALTER TABLE flowstone.nodes ADD COLUMN schema_version INTEGER;

UPDATE flowstone.schema_version SET version = 2, oldest_code = 2
