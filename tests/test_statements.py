"""Every named statement: it prepares on the real schema, somebody uses it, one clock, PostgreSQL 15, and sweeps that keep to their indexes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from corelab import QUEUE, TASK, Lab, laboratory, package_sql

import flowstone_celery
from flowstone_celery.core.statements import SQL
from flowstone_celery.db.migrate import revisions_folder
from flowstone_celery.db.schema import SCHEMA, VERSION, clock_sql
from flowstone_celery.db.statements import Statement, load, parse, parse_arrows

PACKAGE = Path(flowstone_celery.__file__).parent
ROOMS = {room: load(room, *files) for room, files in package_sql(PACKAGE).items()}
STATEMENTS = {
    f"{room.rpartition('.')[2]}.{name}": statement
    for room, page in ROOMS.items()
    for name, statement in page.items()
}
MIGRATIONS = {path.name: path.read_text(encoding="utf-8") for path in revisions_folder().rglob("*.sql")}
PAGES = {**{name: each.text for name, each in STATEMENTS.items()}, **MIGRATIONS}


def test_the_pages_are_found() -> None:
    assert {"core.claim", "record.settle_value", "core.remaining_of_runs"} <= STATEMENTS.keys()
    assert "0001_core.sql" in MIGRATIONS


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_statement_prepares_on_the_real_schema(lab: Lab, name: str) -> None:
    text, _ = _numbered(STATEMENTS[name])
    with lab.database.connection(autocommit=True) as connection:
        connection.execute(f"PREPARE tried AS {text}", prepare=False)
        connection.execute("DEALLOCATE tried", prepare=False)


def _numbered(statement: Statement) -> tuple[str, list[str]]:
    """The text with $1, $2 … as the server knows parameters, and their names in that order."""
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"${names.setdefault(match[1], len(names) + 1)}"

    return re.sub(r"%\((\w+)\)s", number, statement.sql(SCHEMA)).replace("%%", "%"), list(names)


# --- used -------------------------------------------------------------------------------------------------------------------------

READ_AS_A_WHOLE = {"doctor.sql": "DOCTOR.items()"}
"""Pages of which every statement is run in a loop, and the words that run it."""


def _page_of(name: str) -> str:
    room, _, short = name.partition(".")
    files = [path for path in PACKAGE.rglob("*.sql") if path.parent.name == room]
    found = [
        path.name
        for path in files
        if re.search(rf"^-- (name|function): {short}\b", path.read_text(), re.MULTILINE)
    ]
    assert len(found) == 1, f"{name} stands on {found}"
    return found[0]


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_statement_is_used_by_the_code(name: str) -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    short = name.partition(".")[2]
    words = (
        [READ_AS_A_WHOLE[_page_of(name)]]
        if _page_of(name) in READ_AS_A_WHOLE
        else [f'["{short}"]', f'("{short}")']
    )
    assert any(word in code for word in words)


def test_every_statement_that_the_code_names_exists() -> None:
    for path in PACKAGE.rglob("*.py"):
        named = set(re.findall(r'\bSQL\["(\w+)"\]', path.read_text(encoding="utf-8")))
        known = {name for page in ROOMS.values() for name in page}
        assert named <= known, path.name


# --- PostgreSQL 15, one clock, parameters by name -----------------------------------------------------------------------------------

NEWER_THAN_15 = (
    r"\bMERGE\b.*\bRETURNING\b", r"\bRETURNING\s+(WITH\b|old\b|new\b|.*\b(old|new)\.)", r"\buuidv[47]\s*\(", r"\btransaction_timeout\b",
    r"\bJSON_(TABLE|QUERY|VALUE|EXISTS|SCALAR|SERIALIZE)\b", r"\bany_value\s*\(", r"\bNOT\s+ENFORCED\b", r"\bVIRTUAL\b",
    r"\bWITHOUT\s+OVERLAPS\b", r"\bERROR_ON\b", r"\brandom_normal\s*\(", r"\barray_(sample|shuffle|sort)\s*\(", r"\bIS\s+JSON\b",
    r"\bGENERIC_PLAN\b", r"\b0[xob][0-9a-f]+\b",
)  # fmt: skip
OTHER_CLOCKS = (
    r"(?<!\.)\bnow\s*\(\)", r"\bclock_timestamp\b", r"\btransaction_timestamp\b", r"\bstatement_timestamp\b", r"\btimeofday\b",
    r"\bCURRENT_(TIME|DATE|TIMESTAMP)\b", r"\bLOCALTIME(STAMP)?\b", r"'now'", r"'(today|tomorrow|yesterday)'",
)  # fmt: skip


def _without_comments(text: str) -> str:
    return re.sub(r"--.*", "", text)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_no_construct_is_newer_than_postgresql_15(page: str) -> None:
    for pattern in NEWER_THAN_15:
        assert not re.search(pattern, _without_comments(PAGES[page]), re.IGNORECASE), pattern


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_only_clock_is_the_schema_s_own(page: str) -> None:
    text = _without_comments(PAGES[page]).replace(f"{clock_sql()};".replace('"', ""), "")
    for pattern in OTHER_CLOCKS:
        assert not re.search(pattern, text, re.IGNORECASE), pattern


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        (NEWER_THAN_15, "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE RETURNING t.id"),
        (NEWER_THAN_15, "UPDATE t SET a = 1 RETURNING old.a"),
        (NEWER_THAN_15, "SELECT uuidv7()"),
        (NEWER_THAN_15, "SET transaction_timeout = 1"),
        (OTHER_CLOCKS, "SELECT now()"),
        (OTHER_CLOCKS, "SELECT pg_catalog.clock_timestamp()"),
        (OTHER_CLOCKS, "WHERE due_at < CURRENT_TIMESTAMP"),
    ],
)
def test_these_refusals_would_be_seen(patterns: tuple[str, ...], text: str) -> None:
    assert any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_parameters_come_by_name_and_percent_signs_are_doubled(name: str) -> None:
    assert re.findall(r"%(?!\(\w+\)s|%)", re.sub(r"%%", "", STATEMENTS[name].text)) == []


def test_tables_are_named_with_their_schema() -> None:
    tables = "runs|steps|step_edges|history|nodes|workers|pacer|asset_values|asset_current|lineage|audit|schema_version"
    for name, text in PAGES.items():
        bare = re.findall(rf"\b(?:FROM|JOIN|INTO|UPDATE|TABLE|ON)\s+({tables})\b", text)
        assert bare == [], name


# --- the parser -------------------------------------------------------------------------------------------------------------------


def test_arrows_read_several_sources_and_targets() -> None:
    assert parse_arrows("step: ready | blocked -> running; run: -> pending") == {
        ("step", "ready", "running"),
        ("step", "blocked", "running"),
        ("run", "", "pending"),
    }


def test_fragments_are_put_in_and_comments_left_out() -> None:
    page = "-- fragment: due\ns.due_at <= 1\n\n-- name: find (step: a -> b)\n-- why\nSELECT 1 WHERE\n  -- use: due\n;\n"
    found = parse("room", page)["find"]
    assert found.text.split() == ["SELECT", "1", "WHERE", "s.due_at", "<=", "1"]
    assert found.arrows == {("step", "a", "b")}


def test_a_name_that_occurs_twice_and_a_fragment_that_is_missing_are_refused() -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        parse("room", "-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;")
    with pytest.raises(ValueError, match="no fragment 'x'"):
        parse("room", "-- name: a\n-- use: x\n")


def test_another_schema_is_quoted_and_reaches_every_table() -> None:
    text = SQL["retry"].sql("team_a")
    assert "flowstone." not in text
    assert '"team_a".steps' in text
    assert SQL["claim"].sql("team_a").startswith('SELECT * FROM "team_a".claim(')


def test_a_function_is_called_like_a_statement_of_its_name() -> None:
    page = (
        "-- fragment: mine\nid = %(step)s\n\n-- function: finish (step: a -> b)\n-- takes: step bigint, by text\n-- takes: at float8\n"
        "-- answers: id bigint\n-- why\nBEGIN\n    -- how\n    UPDATE flowstone.t SET who = %(by)s WHERE\n    -- use: mine\n    ;\nEND\n"
    )
    found = parse("room", page)["finish"]
    assert found.text == "SELECT * FROM flowstone.finish(%(step)s::bigint, %(by)s::text, %(at)s::float8)"
    assert found.arrows == {("step", "a", "b")}
    head, _, body = found.definition.partition("$$")
    assert (
        head.split("(", 1)[1]
        == "_step bigint, _by text, _at float8) RETURNS TABLE (id bigint) LANGUAGE plpgsql ROWS 1 AS "
    )
    assert (
        " ".join(body.split())
        == "#variable_conflict use_column BEGIN UPDATE flowstone.t SET who = _by WHERE id = _step ; END $$"
    )


@pytest.mark.parametrize("name", sorted(name for name, each in STATEMENTS.items() if each.definition))
def test_the_function_in_the_database_is_the_one_on_the_page(lab: Lab, name: str) -> None:
    """No change of a page without a revision that makes it."""
    body = STATEMENTS[name].definition.partition("$$")[2].removesuffix("$$")
    kept = lab.scalar(
        "SELECT prosrc FROM pg_proc WHERE proname = %(name)s AND pronamespace = 'flowstone'::regnamespace",
        name=name.partition(".")[2],
    )
    assert kept.replace('"flowstone".', "flowstone.") == body


# --- plans ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded(flowstone_databases: Any) -> Iterator[Lab]:
    """20,000 steps of 20,000 runs in every condition, with statistics."""
    with laboratory(flowstone_databases) as lab:
        for text in _CROWD.split(";\n\n"):
            lab.sql(text, task=TASK, queue=QUEUE)
        yield lab


_CROWD = """
INSERT INTO flowstone.workers (node_key, node_name, place, pid, pid_started, status, alive_until)
SELECT gen_random_uuid(), 'n', CASE WHEN n %% 50 = 0 THEN 'here' ELSE 'far' END, n, 1, CASE WHEN n %% 40 = 0 THEN 'live' ELSE 'dead' END,
       flowstone.now() + interval '1 minute'
  FROM generate_series(1, 2000) n;

INSERT INTO flowstone.runs (id, kind, name, status, total_steps, remaining_steps, started_at, cancelled_at, finished_at)
SELECT gen_random_uuid(), 'plain', 'r', s, 1, CASE WHEN s = 'succeeded' THEN 0 ELSE 1 END, flowstone.now(),
       CASE WHEN s = 'cancelling' THEN flowstone.now() END, CASE WHEN s = 'succeeded' THEN flowstone.now() END
  FROM (SELECT CASE WHEN n <= 9000 THEN 'succeeded' WHEN n <= 9005 THEN 'cancelling' ELSE 'running' END AS s
          FROM generate_series(1, 20000) n) q;

INSERT INTO flowstone.steps (run_id, ordinal, kind, name, task, queue, status, remaining, priority, fence, worker_id, due_at, sent_at,
                             started_at, finished_at)
SELECT id, 1, 'plain', 'a', %(task)s, CASE WHEN n %% 3 = 0 THEN %(queue)s ELSE 'other' END, status, CASE WHEN status = 'blocked' THEN 1 ELSE 0 END,
       n %% 5, 1, CASE WHEN status = 'running' THEN n %% 2000 + 1 END, CASE WHEN status = 'ready' THEN flowstone.now() - interval '1 minute' END,
       CASE WHEN n BETWEEN 15000 AND 15010 THEN flowstone.now() END, flowstone.now(), CASE WHEN status = 'succeeded' THEN flowstone.now() END
  FROM (SELECT id, n, CASE WHEN run = 'succeeded' THEN 'succeeded' WHEN n < 9100 THEN 'running' WHEN n > 19000 THEN 'blocked' ELSE 'ready' END AS status
          FROM (SELECT id, status AS run, row_number() OVER (ORDER BY status DESC, id) AS n FROM flowstone.runs) numbered) q;

INSERT INTO flowstone.step_edges
SELECT c.id, p.id, false FROM flowstone.steps c JOIN flowstone.steps p ON p.id IN (c.id - 1, c.id - 2);

UPDATE flowstone.steps SET parked = CASE id %% 4 WHEN 0 THEN 'due' WHEN 1 THEN 'maker' WHEN 2 THEN 'paused' ELSE 'lane' END
 WHERE status = 'ready' AND sent_at IS NULL AND id > 14000;

UPDATE flowstone.runs r SET lane = 'l' || s.id %% 50, admitted = s.parked IS DISTINCT FROM 'lane', paused = s.parked IS NOT DISTINCT FROM 'paused',
       deadline_at = CASE WHEN s.id %% 9 = 0 THEN flowstone.now() + s.id * interval '1 second' END
  FROM flowstone.steps s WHERE s.run_id = r.id AND s.id %% 2 = 0;

INSERT INTO flowstone.barriers (step_id, run_id, name, kind, task, queue, status, sealed, total, policy, closed_at)
SELECT s.id, s.run_id, 'a', 'plain', %(task)s, %(queue)s, CASE WHEN n %% 40 = 0 THEN 'open' ELSE 'completed' END, true, 500, '{}',
       CASE WHEN n %% 40 = 0 THEN NULL ELSE flowstone.now() END
  FROM (SELECT id, run_id, row_number() OVER (ORDER BY id) AS n FROM flowstone.steps ORDER BY id LIMIT 2000) s;

INSERT INTO flowstone.barrier_pages (barrier_id, number, first, size, next, keys)
SELECT b.id, n, (n - 1) * 50, 50, CASE WHEN n < 8 THEN 50 ELSE 10 END, 'k' FROM flowstone.barriers b CROSS JOIN generate_series(1, 10) n;

INSERT INTO flowstone.items (barrier_id, index, status, attempt, failures, crashes, losses, alone, round, seconds, due_at, ended_at)
SELECT b.id, n, CASE WHEN n %% 100 = 0 THEN 'retry' ELSE 'succeeded' END, 1, 0, 0, 0, false, 1, 0,
       CASE WHEN n %% 100 = 0 THEN flowstone.now() END, CASE WHEN n %% 100 = 0 THEN NULL ELSE flowstone.now() END
  FROM flowstone.barriers b CROSS JOIN generate_series(0, 299) n WHERE b.id %% 20 = 0;

INSERT INTO flowstone.item_claims (hand_id, barrier_id, kind, first, size, left_open, fence, worker_id, status)
SELECT s.id, 1 + s.id %% 2000, 'range', 0, 5, 5, 1, 40, CASE WHEN s.id %% 9 = 0 THEN 'held' ELSE 'settled' END FROM flowstone.steps s;

UPDATE flowstone.item_claims SET first = 400, page = 9, left_open = 5, status = 'held' WHERE hand_id = 12039;

UPDATE flowstone.item_claims SET size = 0, items = '{410, 411}', left_open = 2, status = 'held' WHERE hand_id = 10039;

UPDATE flowstone.steps s SET barrier_id = 1 + s.id %% 2000, phase = 'item' WHERE s.id %% 5 = 0;

VACUUM ANALYZE flowstone.runs, flowstone.steps, flowstone.step_edges, flowstone.workers, flowstone.barriers, flowstone.barrier_pages,
       flowstone.items, flowstone.item_claims
"""
_LARGE = {
    "steps", "runs", "step_edges", "history", "asset_values", "barriers", "barrier_pages", "items", "item_claims", "barrier_keys",
}  # fmt: skip
_HERE: dict[str, Any] = {
    "step": 12_000, "worker": 40, "fence": 1, "queue": QUEUE, "knows": [TASK], "protocol": 1, "only_run": None, "relaxed": True,
    "min_wakeups": 8, "lease": 2.0, "loss_limit": 20, "limit": 100, "place": "here", "node": "00000000-0000-0000-0000-000000000001",
    "workers": [40, 80], "crash": 1, "loss": 0, "crash_limit": 3, "reason": "r", "output": None, "status": "failed", "error": "{}",
    "dependents": "failed", "dependents_error": "{}", "failed_attempts": 1, "crashed": 0, "delay": 1.0, "pause": 2.0,
    "places": 2, "run": "00000000-0000-0000-0000-000000000001", "actor": "a", "actor_type": "user", "hold": 3.0, "gap": 1.0,
    "alive": [40, 80], "after": 0, "lost": 0, "note": "n", "key": "k", "tenant": "", "lane": "l7", "begin_at": ["a"], "everything": False,
    "backfill": "00000000-0000-0000-0000-000000000001", "before": None, "before_id": None,
    "deadline_in": None, "beside": False, "name": "a", "partition": "", "low": "01a00000-0000-0000-0000-000000000000",
    "high": "01afffff-ffff-ffff-ffff-ffffffffffff", "runs": ["00000000-0000-0000-0000-000000000001"], "hands": False,
    "barrier": 40, "round": 1, "wanted": 100, "width": 1, "whole": False, "indexes": [1, 2], "statuses": None, "attempts": None, "failures": None,
    "crashes": None, "losses": None, "alone": None, "seconds": None, "results": None, "errors": None, "delays": None, "number": 1,
    "index": 70, "first": 0, "end": 50, "size": 50, "uncounted": 0, "keep": False, "items": [1], "digests": "{}",
    "least": 8, "yields": True, "packed": 120,
}  # fmt: skip
HOT = (
    "agenda", "promise", "promise_again", "release_lost", "release_dead", "at_limit", "capacity",
    "workers_of_place", "watch", "cancelling", "cancel", "cancel_steps", "end_without_value", "retry", "give_back",
    "next_due_of_run", "progress", "events", "by_key", "settled_under", "unpark_due", "unpark_awaiting", "free_awaiting", "expire",
    "reopen", "pause", "resume", "park_paused", "unpark_run", "admit", "lanes_with_room", "unadmitted_parts", "half_paused",
    "by_prefix", "neighbors", "anyone_aside", "lock_barrier", "claim_page", "grow_claim", "claim_retries", "unfinished", "open_of_claim", "take_over",
    "widths_beside", "free_held", "close_barrier", "skip_hands", "gather", "end_waiting", "stand_aside", "go_back",
    "finish_hand", "call_hands", "add_hands", "reopen_items", "reopen_pages", "reopen_barrier", "barrier_progress", "keys_of_page",
    "pages_from", "items_between", "items_failed", "results", "contents", "barriers_in_need", "drop_keys", "bury_barriers", "lose_claims",
    "open_barriers_of_run", "run", "backfill_progress", "backfill_runs", "lane_pause", "lane_resume",
)  # fmt: skip


def _plan(lab: Lab, statement: Statement, mode: str = "force_custom_plan") -> dict[str, Any]:
    """The plan as the server makes it for a prepared statement, for these values or for any."""
    text, names = _numbered(statement)
    with lab.database.connection() as connection:
        odd = {"at_limit": {"lost": False}, "lose_claims": {"hands": [5]}, "settle_part": {"alone": None}}
        given = {**_HERE, **odd.get(statement.name, {})}
        values = ", ".join(psycopg.ClientCursor(connection).mogrify("%s", (given[name],)) for name in names)
        connection.execute(f"SET LOCAL plan_cache_mode = {mode}", prepare=False)
        connection.execute(f"PREPARE planned AS {text}", prepare=False)
        execute = f"EXECUTE planned({values})" if names else "EXECUTE planned"
        row = connection.execute(f"EXPLAIN (FORMAT JSON) {execute}", prepare=False).fetchone()
        connection.execute("DEALLOCATE planned", prepare=False)
        connection.rollback()
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from _nodes(each)


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", HOT)
def test_hot_statements_read_no_large_table_from_end_to_end(crowded: Lab, name: str, mode: str) -> None:
    nodes = list(_nodes(_plan(crowded, SQL[name], mode)))
    assert not {each["Relation Name"] for each in nodes if each["Node Type"] == "Seq Scan"} & _LARGE


@pytest.mark.parametrize(
    ("name", "indexes"),
    [
        ("agenda", {"steps_due", "runs_cancelling", "steps_running"}),
        ("promise", {"steps_unsent", "steps_promised"}),
        ("release_lost", {"steps_running"}),
        ("release_dead", {"steps_running"}),
        ("watch", {"steps_running"}),
        ("cancelling", {"runs_cancelling"}),
        ("capacity", {"steps_promised", "steps_running"}),
        ("unpark_due", {"steps_due"}),
        ("unpark_awaiting", {"steps_awaiting"}),
        ("expire", {"runs_deadline"}),
        ("admit", {"runs_of_lane"}),
        ("lanes_with_room", {"runs_outside", "runs_of_lane"}),
        ("backfill_progress", {"runs_in_lane"}),
        ("backfill_runs", {"runs_in_lane"}),
        ("unadmitted_parts", {"steps_aside"}),
        ("half_paused", {"runs_paused", "steps_of_run"}),
        ("anyone_aside", {"runs_outside", "runs_paused", "steps_aside"}),
        ("park_paused", {"steps_of_run"}),
        ("unpark_run", {"steps_of_run"}),
        ("cancel_steps", {"steps_of_run"}),
        ("claim_page", {"barrier_pages_open", "items_retry"}),
        ("claim_retries", {"items_retry"}),
        ("call_hands", {"steps_of_barrier"}),
        ("barriers_in_need", {"barriers_open", "barrier_pages_open", "items_retry", "steps_of_barrier"}),
        ("drop_keys", {"barriers_keyed"}),
        ("bury_barriers", {"barriers_abandoned"}),
        ("items_failed", {"items_failed"}),
    ],
)
def test_sweeps_hold_to_their_partial_indexes(crowded: Lab, name: str, indexes: set[str]) -> None:
    used = {each["Index Name"] for each in _nodes(_plan(crowded, SQL[name])) if "Index Name" in each}
    assert indexes <= used


@pytest.mark.parametrize("name", ["agenda", "promise"])
def test_sweeps_touch_few_pages_however_many_rows_are_ready(crowded: Lab, name: str) -> None:
    with crowded.database.connection() as connection:
        text = psycopg.ClientCursor(connection).mogrify(SQL[name].sql(SCHEMA), _HERE)
        explained = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}".replace("%", "%%")
        connection.execute(explained, prepare=False)  # the first look may warm hint bits
        connection.rollback()
        row = connection.execute(explained, prepare=False).fetchone()
        connection.rollback()
    assert row is not None
    plan = row[0][0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 500


_READS = """
SELECT (SELECT coalesce(sum(seq_scan), 0) FROM pg_stat_xact_user_tables WHERE schemaname = 'flowstone')::int AS tables,
       (SELECT coalesce(sum(pg_stat_get_xact_tuples_returned(indexrelid)), 0) FROM pg_stat_user_indexes WHERE schemaname = 'flowstone')::int AS entries
"""


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("claim", {"queue": None}),
        ("claim", {"step": None}),
        ("claim", {"step": None, "queue": "no such queue"}),
        ("succeed", {}),
        ("settle_part", {"step": 12_039, "worker": 40, "fence": 1, "indexes": [400, 401]}),
        ("settle_part", {"step": 10_039, "worker": 40, "fence": 1, "indexes": [410, 411]}),
    ],
)
def test_a_function_reads_no_table_from_end_to_end_and_few_entries_of_indexes(
    crowded: Lab, name: str, given: dict[str, Any], mode: str
) -> None:
    """Counted by the server, in the transaction: a plan inside of a function cannot be explained."""
    step = crowded.sql(
        "SELECT id, worker_id AS worker, fence FROM flowstone.steps WHERE status = %(status)s ORDER BY id LIMIT 1",
        status="running" if name == "succeed" else "ready",
    )[0]
    asked = {"step": step["id"], "worker": step["worker"] or 40, "fence": step["fence"], **given}
    with crowded.database.connection() as connection:
        connection.execute(f"SET LOCAL plan_cache_mode = {mode}", prepare=False)
        before = connection.execute(_READS, prepare=False).fetchone()
        rows = connection.execute(SQL[name].sql(SCHEMA), {**_HERE, **asked}, prepare=False).fetchall()
        after = connection.execute(_READS, prepare=False).fetchone()
        connection.rollback()
    assert before is not None
    assert after is not None
    assert bool(rows) == (given.get("queue") != "no such queue"), "it does something here"
    assert after[0] == before[0]
    assert after[1] - before[1] < 500


def test_the_page_of_the_schema_knows_its_version(crowded: Lab) -> None:
    assert crowded.scalar("SELECT version FROM flowstone.schema_version") == VERSION
