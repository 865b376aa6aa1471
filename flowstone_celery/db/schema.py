"""All tables on one page. The migrations build the same; a test compares the two.

Statuses are text with CHECK constraints that repeat `states.py`; further checks tie counters and times to statuses, so that the
database itself refuses a row that cannot be true (`soundness.py` has those of runs and steps). Times come from `flowstone.now()`, the only clock (`clock_sql`).
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from flowstone_celery import states
from flowstone_celery.db import soundness
from flowstone_celery.db.soundness import one_of

SCHEMA = "flowstone"
VERSION = 4
"""The schema this code needs."""
OLDEST_CODE = 2
"""The oldest code that may still run on this schema (rolling upgrades)."""

metadata = MetaData(schema=SCHEMA)
Moment = DateTime(timezone=True)


def _now(name: str) -> Column[object]:
    return Column(name, Moment, nullable=False, server_default=text(f"{SCHEMA}.now()"))


def _count(name: str, default: int = 0) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text(str(default)))


def _text(name: str, default: str = "") -> Column[str]:
    return Column(name, Text, nullable=False, server_default=text(f"'{default}'"))


runs = Table(
    "runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    _text("partition"),
    _text("tenant"),
    _text("requested_by"),
    Column("idempotency_key", Text),
    Column("request_digest", Text),
    Column("status", Text, nullable=False),
    _count("round", 1),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    _count("priority"),
    Column("lane", Text),
    _count("lane_width", 1),
    Column("admitted", Boolean, nullable=False, server_default=text("true")),
    Column("correlation_id", Text),
    Column("root_id", Uuid),
    Column("parent_step", BigInteger),
    Column("input", JSONB),
    Column("output", JSONB),
    Column("error", JSONB),
    _count("total_steps"),
    _count("remaining_steps"),
    _count("failed_steps"),
    _count("cancelled_steps"),
    Column("code_version", Text),
    _now("created_at"),
    Column("started_at", Moment),
    Column("deadline_at", Moment),
    Column("cancelled_at", Moment),
    Column("ends_as", Text),
    Column("finished_at", Moment),
    CheckConstraint(soundness.RUNS.check, name="runs_are_sound"),
    Index(
        "runs_idempotency",
        "tenant",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    Index("runs_newest", text("created_at DESC"), "id"),
    Index("runs_of_name", "name", "partition", text("created_at DESC")),
    Index("runs_cancelling", "cancelled_at", postgresql_where=text("status = 'cancelling'")),
    Index("runs_open", "created_at", postgresql_where=text("finished_at IS NULL")),
    Index("runs_finished", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    Index(
        "runs_of_lane",
        "tenant",
        "lane",
        "created_at",
        "id",
        postgresql_where=text("lane IS NOT NULL AND finished_at IS NULL"),
    ),
    Index(
        "runs_in_lane",
        "lane",
        text("created_at DESC"),
        text("id DESC"),
        postgresql_where=text("lane IS NOT NULL"),
    ),
    Index("runs_paused", "id", postgresql_where=text("paused AND finished_at IS NULL")),
    Index("runs_outside", "tenant", "lane", postgresql_where=text("NOT admitted AND finished_at IS NULL")),
    Index(
        "runs_deadline",
        "deadline_at",
        postgresql_where=text("deadline_at IS NOT NULL AND status IN ('pending', 'running')"),
    ),
    postgresql_with={"fillfactor": "80"},
)

steps = Table(
    "steps",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Uuid, ForeignKey(runs.c.id, ondelete="CASCADE", name="steps_run"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    _text("partition"),
    Column("task", Text, nullable=False),
    Column("queue", Text, nullable=False),
    _count("priority"),
    Column("v", SmallInteger, nullable=False, server_default=text("1")),
    Column("code_digest", Text),
    _count("round", 1),
    Column("status", Text, nullable=False),
    _text("phase", "call"),
    _count("remaining"),
    _count("attempt"),
    _count("failures"),
    _count("max_failures", 1),
    _count("crashes"),
    _count("losses"),
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
    Column("worker_id", BigInteger),
    Column("timeout_seconds", Float),
    Column("retry", JSONB),
    Column("input", JSONB),
    Column("output", JSONB),
    Column("error", JSONB),
    Column("note", Text),
    _now("created_at"),
    Column("due_at", Moment),
    Column("turn", BigInteger, nullable=False, server_default=text("0")),
    Column("parked", Text),
    Column("sole", Boolean, nullable=False, server_default=text("false")),
    Column("awaited_at", Moment),
    Column("sent_at", Moment),
    Column("sends", SmallInteger, nullable=False, server_default=text("0")),
    Column("started_at", Moment),
    Column("deadline_at", Moment),
    Column("finished_at", Moment),
    Column("barrier_id", BigInteger),
    CheckConstraint(soundness.STEPS.check, name="steps_are_sound"),
    Index("steps_of_run", "run_id", "ordinal", unique=True),
    Index(
        "steps_unsent",
        "queue",
        text("priority DESC"),
        "turn",
        "id",
        postgresql_where=text("status = 'ready' AND sent_at IS NULL AND parked IS NULL"),
    ),
    Index("steps_due", "due_at", postgresql_where=text("parked IN ('due', 'idle')")),
    Index("steps_of_barrier", "barrier_id", "id", postgresql_where=text("barrier_id IS NOT NULL")),
    Index("steps_aside", "run_id", postgresql_where=text("parked IN ('paused', 'lane')")),
    Index("steps_awaiting", "name", "partition", postgresql_where=text("parked = 'maker'")),
    Index(
        "steps_makers",
        "name",
        "partition",
        unique=True,
        postgresql_where=text(
            "sole AND (status = 'running' OR status IN ('waiting', 'ready') AND phase = 'gather')"
        ),
    ),
    Index("steps_promised", "queue", "sent_at", postgresql_where=text("sent_at IS NOT NULL")),
    Index("steps_running", "worker_id", postgresql_where=text("status = 'running'")),
    Index("steps_of_name", "name", "partition", text("created_at DESC")),
    postgresql_with={"fillfactor": "70"},
)

step_edges = Table(
    "step_edges",
    metadata,
    Column("child", BigInteger, primary_key=True),
    Column("parent", BigInteger, primary_key=True),
    Column("optional", Boolean, nullable=False, server_default=text("false")),
    CheckConstraint("parent < child", name="step_edges_forward"),
    Index("step_edges_parent", "parent"),
)

history = Table(
    "history",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("step_id", BigInteger),
    _count("round", 1),
    Column("event", Text, nullable=False),
    Column("attempt", Integer),
    Column("fence", BigInteger),
    Column("worker_id", BigInteger),
    _now("at"),
    Column("detail", JSONB),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("key", Uuid, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("place", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("keeper_pid", Integer, nullable=False),
    Column("pool", Text, nullable=False),
    Column("queues", ARRAY(Text), nullable=False),
    Column("knows", ARRAY(Text), nullable=False),
    _count("slots", 1),
    Column("protocol", SmallInteger, nullable=False, server_default=text("1")),
    Column("code_version", Text),
    Column("schema_version", Integer),
    Column("status", Text, nullable=False),
    _now("started_at"),
    Column("alive_until", Moment, nullable=False),
    CheckConstraint(one_of("status", states.NodeStatus), name="nodes_status"),
    CheckConstraint("slots > 0", name="nodes_slots"),
    Index("nodes_open", "id", postgresql_where=text("status <> 'gone'")),
    postgresql_with={"fillfactor": "50"},
)

workers = Table(
    "workers",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("node_key", Uuid, nullable=False),
    Column("node_name", Text, nullable=False),
    Column("place", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pid_started", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    _now("started_at"),
    Column("alive_until", Moment, nullable=False),
    CheckConstraint(one_of("status", states.WorkerStatus), name="workers_status"),
    Index("workers_live", "node_key", "id", postgresql_where=text("status = 'live'")),
    postgresql_with={"fillfactor": "50"},
)

pacer = Table(
    "pacer",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("holder", Uuid),
    Column("held_until", Moment),
    Column("beat_at", Moment),
    Column("steady_since", Moment),
    CheckConstraint("id = 1", name="pacer_one_row"),
)

asset_values = Table(
    "asset_values",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("asset", Text, nullable=False),
    _text("partition"),
    Column("run_id", Uuid, nullable=False),
    Column("step_id", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("io", Text, nullable=False),
    Column("content", LargeBinary),
    Column("pointer", JSONB),
    Column("size", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("metadata", JSONB),
    Column("code_version", Text),
    Column("code_digest", Text),
    Column("recipe", Text),
    _now("created_at"),
    Column("settled_at", Moment),
    CheckConstraint("(content IS NULL) <> (pointer IS NULL)", name="asset_values_one_place"),
    CheckConstraint("size >= 0", name="asset_values_size"),
    Index("asset_values_of_attempt", "step_id", "fence", unique=True),
    Index(
        "asset_values_of_asset",
        "asset",
        "partition",
        text("id DESC"),
        postgresql_where=text("settled_at IS NOT NULL"),
    ),
    Index("asset_values_unsettled", "created_at", postgresql_where=text("settled_at IS NULL")),
)

asset_current = Table(
    "asset_current",
    metadata,
    Column("asset", Text, primary_key=True),
    Column("partition", Text, primary_key=True),
    Column("value_id", BigInteger, nullable=False),
    _now("updated_at"),
    Column("invalidated_at", Moment),
    Column("invalidation", JSONB),
    postgresql_with={"fillfactor": "80"},
)

partition_keys = Table(
    "partition_keys",
    metadata,
    Column("definition", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    _now("added_at"),
    _text("added_by"),
)

requests = Table(
    "requests",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Uuid, nullable=False),
    Column("act", Text, nullable=False),
    Column("detail", JSONB),
    Column("actor", Text, nullable=False),
    _now("asked_at"),
    CheckConstraint(one_of("act", states.Act), name="requests_act"),
)

backfills = Table(
    "backfills",
    metadata,
    Column("id", Uuid, primary_key=True),
    _text("tenant"),
    Column("idempotency_key", Text),
    Column("request_digest", Text),
    Column("asset", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("partitions", ARRAY(Text), nullable=False),
    Column("skipped", ARRAY(Text), nullable=False),
    _count("begun"),
    _count("max_concurrent", 1),
    Column("request", JSONB),
    _text("requested_by"),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    _now("created_at"),
    Column("cancelled_at", Moment),
    CheckConstraint(one_of("mode", states.BackfillMode), name="backfills_mode"),
    CheckConstraint("begun BETWEEN 0 AND cardinality(partitions)", name="backfills_begun"),
    CheckConstraint("max_concurrent > 0", name="backfills_max_concurrent"),
    Index(
        "backfills_idempotency",
        "tenant",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    Index("backfills_newest", text("created_at DESC"), text("id DESC")),
)

barriers = Table(
    "barriers",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("step_id", BigInteger, nullable=False),
    Column("run_id", Uuid, nullable=False),
    _count("round", 1),
    Column("name", Text, nullable=False),
    _text("partition"),
    Column("kind", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("queue", Text, nullable=False),
    _count("priority"),
    Column("status", Text, nullable=False),
    Column("sealed", Boolean, nullable=False, server_default=text("false")),
    _count("total"),
    _count("collapsed"),
    _count("done"),
    _count("failed"),
    Column("policy", JSONB, nullable=False),
    Column("checkpoint", JSONB),
    Column("metadata", JSONB),
    Column("error", JSONB),
    Column("keyed", Boolean, nullable=False, server_default=text("false")),
    Column("abandoned", Boolean, nullable=False, server_default=text("false")),
    _now("created_at"),
    Column("closed_at", Moment),
    CheckConstraint(one_of("status", states.BarrierStatus), name="barriers_status"),
    CheckConstraint(
        "done >= 0 AND failed >= 0 AND collapsed >= 0 AND done + failed <= total", name="barriers_counters"
    ),
    CheckConstraint("(status = 'open') = (closed_at IS NULL)", name="barriers_closed"),
    Index("barriers_of_step", "step_id", "round", unique=True),
    Index("barriers_of_run", "run_id", "id"),
    Index("barriers_of_name", "name", "partition", text("id DESC")),
    Index("barriers_open", "id", postgresql_where=text("status = 'open'")),
    Index("barriers_keyed", "id", postgresql_where=text("keyed")),
    Index("barriers_abandoned", "id", postgresql_where=text("abandoned")),
    postgresql_with={"fillfactor": "50"},
)

barrier_pages = Table(
    "barrier_pages",
    metadata,
    Column("barrier_id", BigInteger, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("first", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    _count("next"),
    _count("done"),
    _count("failed"),
    Column("patchy", Boolean, nullable=False, server_default=text("false")),
    Column("keys", LargeBinary, nullable=False),
    CheckConstraint(soundness.BARRIER_PAGES.check, name="barrier_pages_are_sound"),
    Index("barrier_pages_first", "barrier_id", "first", unique=True),
    Index("barrier_pages_open", "barrier_id", "number", postgresql_where=text("next < size")),
    postgresql_with={"fillfactor": "40"},
)

barrier_keys = Table(
    "barrier_keys",
    metadata,
    Column("barrier_id", BigInteger, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
)

item_claims = Table(
    "item_claims",
    metadata,
    Column("hand_id", BigInteger, primary_key=True, autoincrement=False),
    Column("barrier_id", BigInteger, nullable=False),
    _count("round", 1),
    Column("kind", Text, nullable=False),
    Column("page", Integer),
    _count("first"),
    _count("size"),
    Column("items", ARRAY(Integer)),
    _count("left_open"),
    _count("width", 1),
    Column("alone", Boolean, nullable=False, server_default=text("false")),
    Column("fence", BigInteger, nullable=False),
    Column("worker_id", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("lost_by", Text),
    CheckConstraint(soundness.ITEM_CLAIMS.check, name="item_claims_are_sound"),
    Index("item_claims_live", "barrier_id", postgresql_where=text("status <> 'settled'")),
    Index("item_claims_of_barrier", "barrier_id"),
    postgresql_with={"fillfactor": "20"},
)

items = Table(
    "items",
    metadata,
    Column("barrier_id", BigInteger, primary_key=True),
    Column("index", Integer, primary_key=True),
    Column("status", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("alone", Boolean, nullable=False),
    Column("round", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("result", LargeBinary),
    Column("error", JSONB),
    Column("claim", BigInteger),
    Column("due_at", Moment),
    Column("ended_at", Moment),
    Column("step_id", BigInteger),
    CheckConstraint(soundness.ITEMS.check, name="items_are_sound"),
    Index("items_retry", "barrier_id", "due_at", postgresql_where=text("status = 'retry'")),
    Index("items_failed", "barrier_id", "index", postgresql_where=text("status IN ('failed', 'cancelled')")),
)

lineage = Table(
    "lineage",
    metadata,
    Column("value_id", BigInteger, primary_key=True),
    Column("upstream_asset", Text, primary_key=True),
    Column("upstream_partition", Text, primary_key=True),
    Column("upstream_value_id", BigInteger, nullable=False),
    Column("asset", Text, nullable=False),
    _text("partition"),
    Column("run_id", Uuid, nullable=False),
    _now("consumed_at"),
    Index("lineage_down", "upstream_asset", "upstream_partition", "upstream_value_id"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _now("at"),
    Column("actor", Text, nullable=False),
    Column("actor_type", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("resource_type", Text, nullable=False),
    Column("resource_id", Text, nullable=False),
    _text("tenant"),
    Column("correlation_id", Text),
    Column("details", JSONB),
    Index("audit_of_resource", "resource_type", "resource_id", "id"),
    Index("audit_of_actor", "actor", "id"),
    Index("audit_at", "at"),
)

schema_version = Table(
    "schema_version",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("oldest_code", Integer, nullable=False),
    CheckConstraint("id = 1", name="schema_version_one_row"),
)


def clock_sql(schema: str = SCHEMA, offset_seconds: float = 0.0) -> str:
    """The definition of the only clock. The test kit defines it again with an offset; nothing else does.

    It is STABLE and wraps `statement_timestamp()`, so that it can drive an index and does not stand still in a user's long
    transaction.
    """
    shift = f" + interval '{offset_seconds:.6f} seconds'" if offset_seconds else ""
    return (
        f'CREATE OR REPLACE FUNCTION "{schema}".now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE '
        f"AS 'SELECT statement_timestamp(){shift.replace(chr(39), chr(39) * 2)}'"
    )


def functions_sql(schema: str = SCHEMA) -> list[str]:
    """The functions that tables rest on: they come before them."""
    return [clock_sql(schema), *(each.sql(schema) for each in soundness.ALL)]


def seed_sql(schema: str = SCHEMA) -> list[str]:
    """The rows that every database of ours has from the beginning."""
    version = (
        f"INSERT INTO {schema}.schema_version (id, version, oldest_code) VALUES (1, {VERSION}, {OLDEST_CODE})"  # noqa: S608 - the name is checked by `Database`
    )
    return [f"INSERT INTO {schema}.pacer (id) VALUES (1)", version]  # noqa: S608 - as above
