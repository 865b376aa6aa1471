ALTER TABLE flowstone.runs
	ADD COLUMN lane_width INTEGER DEFAULT 1 NOT NULL,
	ADD COLUMN admitted BOOLEAN DEFAULT true NOT NULL,
	ADD COLUMN deadline_at TIMESTAMP WITH TIME ZONE,
	ADD COLUMN ends_as TEXT,
	ADD CONSTRAINT runs_ends_as CHECK (ends_as IN ('failed', 'cancelled')),
	ADD CONSTRAINT runs_lane CHECK (lane_width > 0 AND (lane IS NOT NULL OR admitted));

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
	ADD COLUMN awaited_at TIMESTAMP WITH TIME ZONE,
	DROP CONSTRAINT steps_sent_is_ready;

UPDATE flowstone.steps SET parked = 'due' WHERE status = 'ready' AND sent_at IS NULL AND due_at > flowstone.now();

ALTER TABLE flowstone.steps
	ADD CONSTRAINT steps_sent_is_ready CHECK (sent_at IS NULL OR (status = 'ready' AND parked IS NULL)),
	ADD CONSTRAINT steps_parked CHECK (parked IN ('due', 'paused', 'lane', 'maker')),
	ADD CONSTRAINT steps_parked_is_ready CHECK (parked IS NULL OR status = 'ready');

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
