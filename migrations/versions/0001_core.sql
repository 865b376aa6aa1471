CREATE OR REPLACE FUNCTION flowstone.now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS 'SELECT statement_timestamp()';

CREATE TABLE flowstone.asset_current (
	asset TEXT NOT NULL,
	partition TEXT NOT NULL,
	value_id BIGINT NOT NULL,
	updated_at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	PRIMARY KEY (asset, partition)
)
 WITH (fillfactor = 80);

CREATE TABLE flowstone.asset_values (
	id BIGINT GENERATED ALWAYS AS IDENTITY,
	asset TEXT NOT NULL,
	partition TEXT DEFAULT '' NOT NULL,
	run_id UUID NOT NULL,
	step_id BIGINT NOT NULL,
	fence BIGINT NOT NULL,
	io TEXT NOT NULL,
	content BYTEA,
	pointer JSONB,
	size BIGINT NOT NULL,
	digest TEXT NOT NULL,
	metadata JSONB,
	code_version TEXT,
	code_digest TEXT,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	settled_at TIMESTAMP WITH TIME ZONE,
	PRIMARY KEY (id),
	CONSTRAINT asset_values_one_place CHECK ((content IS NULL) <> (pointer IS NULL)),
	CONSTRAINT asset_values_size CHECK (size >= 0)
);

CREATE INDEX asset_values_of_asset ON flowstone.asset_values (asset, partition, id DESC) WHERE settled_at IS NOT NULL;

CREATE UNIQUE INDEX asset_values_of_attempt ON flowstone.asset_values (step_id, fence);

CREATE INDEX asset_values_unsettled ON flowstone.asset_values (created_at) WHERE settled_at IS NULL;

CREATE TABLE flowstone.audit (
	id BIGINT GENERATED ALWAYS AS IDENTITY,
	at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	actor TEXT NOT NULL,
	actor_type TEXT NOT NULL,
	action TEXT NOT NULL,
	resource_type TEXT NOT NULL,
	resource_id TEXT NOT NULL,
	tenant TEXT DEFAULT '' NOT NULL,
	correlation_id TEXT,
	details JSONB,
	PRIMARY KEY (id)
);

CREATE INDEX audit_at ON flowstone.audit (at);

CREATE INDEX audit_of_actor ON flowstone.audit (actor, id);

CREATE INDEX audit_of_resource ON flowstone.audit (resource_type, resource_id, id);

CREATE TABLE flowstone.history (
	id BIGINT GENERATED ALWAYS AS IDENTITY,
	run_id UUID NOT NULL,
	step_id BIGINT,
	round INTEGER DEFAULT 1 NOT NULL,
	event TEXT NOT NULL,
	attempt INTEGER,
	fence BIGINT,
	worker_id BIGINT,
	at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	detail JSONB,
	PRIMARY KEY (id)
);

CREATE INDEX history_of_run ON flowstone.history (run_id, id);

CREATE TABLE flowstone.lineage (
	value_id BIGINT NOT NULL,
	upstream_asset TEXT NOT NULL,
	upstream_partition TEXT NOT NULL,
	upstream_value_id BIGINT NOT NULL,
	asset TEXT NOT NULL,
	partition TEXT DEFAULT '' NOT NULL,
	run_id UUID NOT NULL,
	consumed_at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	PRIMARY KEY (value_id, upstream_asset, upstream_partition)
);

CREATE INDEX lineage_down ON flowstone.lineage (upstream_asset, upstream_partition, upstream_value_id);

CREATE INDEX lineage_up ON flowstone.lineage (asset, partition);

CREATE TABLE flowstone.nodes (
	id BIGINT GENERATED ALWAYS AS IDENTITY,
	key UUID NOT NULL,
	name TEXT NOT NULL,
	place TEXT NOT NULL,
	pid INTEGER NOT NULL,
	keeper_pid INTEGER NOT NULL,
	pool TEXT NOT NULL,
	queues TEXT[] NOT NULL,
	knows TEXT[] NOT NULL,
	slots INTEGER DEFAULT 1 NOT NULL,
	protocol SMALLINT DEFAULT 1 NOT NULL,
	code_version TEXT,
	status TEXT NOT NULL,
	started_at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	alive_until TIMESTAMP WITH TIME ZONE NOT NULL,
	PRIMARY KEY (id),
	CONSTRAINT nodes_status CHECK (status IN ('live', 'draining', 'gone')),
	CONSTRAINT nodes_slots CHECK (slots > 0),
	UNIQUE (key)
)
 WITH (fillfactor = 50);

CREATE INDEX nodes_open ON flowstone.nodes (id) WHERE status <> 'gone';

CREATE TABLE flowstone.pacer (
	id INTEGER NOT NULL,
	holder UUID,
	held_until TIMESTAMP WITH TIME ZONE,
	beat_at TIMESTAMP WITH TIME ZONE,
	steady_since TIMESTAMP WITH TIME ZONE,
	PRIMARY KEY (id),
	CONSTRAINT pacer_one_row CHECK (id = 1)
);

CREATE TABLE flowstone.runs (
	id UUID NOT NULL,
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	partition TEXT DEFAULT '' NOT NULL,
	tenant TEXT DEFAULT '' NOT NULL,
	requested_by TEXT DEFAULT '' NOT NULL,
	idempotency_key TEXT,
	request_digest TEXT,
	status TEXT NOT NULL,
	round INTEGER DEFAULT 1 NOT NULL,
	paused BOOLEAN DEFAULT false NOT NULL,
	priority INTEGER DEFAULT 0 NOT NULL,
	lane TEXT,
	correlation_id TEXT,
	root_id UUID,
	parent_step BIGINT,
	input JSONB,
	output JSONB,
	error JSONB,
	total_steps INTEGER DEFAULT 0 NOT NULL,
	remaining_steps INTEGER DEFAULT 0 NOT NULL,
	failed_steps INTEGER DEFAULT 0 NOT NULL,
	cancelled_steps INTEGER DEFAULT 0 NOT NULL,
	code_version TEXT,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	started_at TIMESTAMP WITH TIME ZONE,
	cancelled_at TIMESTAMP WITH TIME ZONE,
	finished_at TIMESTAMP WITH TIME ZONE,
	PRIMARY KEY (id),
	CONSTRAINT runs_status CHECK (status IN ('pending', 'running', 'waiting', 'succeeded', 'partial', 'failed', 'cancelling', 'cancelled')),
	CONSTRAINT runs_remaining CHECK (remaining_steps BETWEEN 0 AND total_steps),
	CONSTRAINT runs_failed CHECK (failed_steps + cancelled_steps <= total_steps),
	CONSTRAINT runs_finished CHECK ((status IN ('cancelled', 'failed', 'partial', 'succeeded')) = (finished_at IS NOT NULL)),
	CONSTRAINT runs_ended_have_no_steps_left CHECK (NOT (status IN ('cancelled', 'failed', 'partial', 'succeeded')) OR remaining_steps = 0),
	CONSTRAINT runs_cancelling CHECK (status <> 'cancelling' OR cancelled_at IS NOT NULL),
	CONSTRAINT runs_started CHECK (status NOT IN ('running', 'succeeded') OR started_at IS NOT NULL)
)
 WITH (fillfactor = 80);

CREATE INDEX runs_cancelling ON flowstone.runs (cancelled_at) WHERE status = 'cancelling';

CREATE UNIQUE INDEX runs_idempotency ON flowstone.runs (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE INDEX runs_newest ON flowstone.runs (created_at DESC, id);

CREATE INDEX runs_of_name ON flowstone.runs (name, partition, created_at DESC);

CREATE INDEX runs_open ON flowstone.runs (created_at) WHERE finished_at IS NULL;

CREATE TABLE flowstone.schema_version (
	id INTEGER NOT NULL,
	version INTEGER NOT NULL,
	oldest_code INTEGER NOT NULL,
	PRIMARY KEY (id),
	CONSTRAINT schema_version_one_row CHECK (id = 1)
);

CREATE TABLE flowstone.step_edges (
	child BIGINT NOT NULL,
	parent BIGINT NOT NULL,
	optional BOOLEAN DEFAULT false NOT NULL,
	PRIMARY KEY (child, parent),
	CONSTRAINT step_edges_forward CHECK (parent < child)
);

CREATE INDEX step_edges_parent ON flowstone.step_edges (parent);

CREATE TABLE flowstone.workers (
	id BIGINT GENERATED ALWAYS AS IDENTITY,
	node_key UUID NOT NULL,
	node_name TEXT NOT NULL,
	place TEXT NOT NULL,
	pid INTEGER NOT NULL,
	pid_started BIGINT NOT NULL,
	status TEXT NOT NULL,
	started_at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	alive_until TIMESTAMP WITH TIME ZONE NOT NULL,
	PRIMARY KEY (id),
	CONSTRAINT workers_status CHECK (status IN ('live', 'dead'))
)
 WITH (fillfactor = 50);

CREATE INDEX workers_live ON flowstone.workers (node_key, id) WHERE status = 'live';

CREATE TABLE flowstone.steps (
	id BIGINT GENERATED ALWAYS AS IDENTITY,
	run_id UUID NOT NULL,
	ordinal INTEGER NOT NULL,
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	partition TEXT DEFAULT '' NOT NULL,
	task TEXT NOT NULL,
	queue TEXT NOT NULL,
	priority INTEGER DEFAULT 0 NOT NULL,
	v SMALLINT DEFAULT 1 NOT NULL,
	code_digest TEXT,
	round INTEGER DEFAULT 1 NOT NULL,
	status TEXT NOT NULL,
	phase TEXT DEFAULT 'call' NOT NULL,
	remaining INTEGER DEFAULT 0 NOT NULL,
	attempt INTEGER DEFAULT 0 NOT NULL,
	failures INTEGER DEFAULT 0 NOT NULL,
	max_failures INTEGER DEFAULT 1 NOT NULL,
	crashes INTEGER DEFAULT 0 NOT NULL,
	losses INTEGER DEFAULT 0 NOT NULL,
	fence BIGINT DEFAULT 0 NOT NULL,
	worker_id BIGINT,
	timeout_seconds FLOAT,
	retry JSONB,
	input JSONB,
	output JSONB,
	error JSONB,
	note TEXT,
	created_at TIMESTAMP WITH TIME ZONE DEFAULT flowstone.now() NOT NULL,
	due_at TIMESTAMP WITH TIME ZONE,
	sent_at TIMESTAMP WITH TIME ZONE,
	sends SMALLINT DEFAULT 0 NOT NULL,
	started_at TIMESTAMP WITH TIME ZONE,
	deadline_at TIMESTAMP WITH TIME ZONE,
	finished_at TIMESTAMP WITH TIME ZONE,
	PRIMARY KEY (id),
	CONSTRAINT steps_status CHECK (status IN ('blocked', 'ready', 'running', 'waiting', 'succeeded', 'failed', 'skipped', 'cancelled')),
	CONSTRAINT steps_phase CHECK (phase IN ('call', 'gather', 'signal', 'timeout', 'decide', 'join')),
	CONSTRAINT steps_remaining CHECK (remaining >= 0),
	CONSTRAINT steps_blocked_has_remaining CHECK (status <> 'blocked' OR remaining > 0),
	CONSTRAINT steps_started_has_none_remaining CHECK (status NOT IN ('ready', 'running', 'succeeded') OR remaining = 0),
	CONSTRAINT steps_running_has_worker CHECK ((status = 'running') = (worker_id IS NOT NULL)),
	CONSTRAINT steps_running_has_fence CHECK (status <> 'running' OR (started_at IS NOT NULL AND fence > 0)),
	CONSTRAINT steps_ready_is_due CHECK ((status = 'ready') = (due_at IS NOT NULL)),
	CONSTRAINT steps_sent_is_ready CHECK (sent_at IS NULL OR status = 'ready'),
	CONSTRAINT steps_finished CHECK ((status IN ('cancelled', 'failed', 'skipped', 'succeeded')) = (finished_at IS NOT NULL)),
	CONSTRAINT steps_counters CHECK (attempt >= 0 AND failures >= 0 AND crashes >= 0 AND losses >= 0),
	CONSTRAINT steps_run FOREIGN KEY(run_id) REFERENCES flowstone.runs (id) ON DELETE CASCADE
)
 WITH (fillfactor = 70);

CREATE INDEX steps_due ON flowstone.steps (queue, due_at) WHERE status = 'ready' AND sent_at IS NULL;

CREATE INDEX steps_of_name ON flowstone.steps (name, partition, created_at DESC);

CREATE UNIQUE INDEX steps_of_run ON flowstone.steps (run_id, ordinal);

CREATE INDEX steps_promised ON flowstone.steps (queue, sent_at) WHERE sent_at IS NOT NULL;

CREATE INDEX steps_running ON flowstone.steps (worker_id) WHERE status = 'running';

CREATE INDEX steps_unsent ON flowstone.steps (queue, priority DESC, due_at, id) WHERE status = 'ready' AND sent_at IS NULL;

INSERT INTO flowstone.pacer (id) VALUES (1);

INSERT INTO flowstone.schema_version (id, version, oldest_code) VALUES (1, 1, 1);
