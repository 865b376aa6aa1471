"""Values: settled exactly once, by version, with exact lineage; what is damaged or not settled is never handed out."""

from __future__ import annotations

from typing import Any

import pytest
from corelab import Lab, in_threads, rolled_back

from flowstone_celery.errors import CorruptRow, RunFailed
from flowstone_celery.record import audit, lineage, values
from flowstone_celery.record.values import AssetValue, NewValue, Upstream
from flowstone_celery.testing.kit import TestKit

LARGE = 200_000


def _value(lab: Lab, asset: str = "shop.a", content: bytes = b"x", upstream: Any = ()) -> NewValue:
    claim = lab.running(lab.worker())
    return NewValue(
        asset,
        "p",
        claim.run_id,
        claim.id,
        claim.fence,
        "database",
        len(content),
        "digest",
        content,
        None,
        upstream=upstream,
    )


def _settle(lab: Lab, value: NewValue, prepared: int | None = None) -> int | None:
    """The value and its step, in one transaction."""
    from flowstone_celery.core import steps

    worker = lab.scalar("SELECT worker_id FROM flowstone.steps WHERE id = %(id)s", id=value.step_id)
    held = {"step": value.step_id, "worker": worker, "fence": value.fence}

    def work(tx: Any) -> int | None:
        version = values.settle(tx, value, prepared=prepared)
        steps.succeed(tx, held, {"value": version})
        return version

    return lab.database.attempt(work)


def _current(lab: Lab, asset: str = "shop.a") -> AssetValue:
    found = values.current(lab.database, asset, "p")
    assert found is not None
    return found


# --- versions ---------------------------------------------------------------------------------------------------------------------


def test_a_settled_value_is_current_and_keeps_its_former_versions(lab: Lab) -> None:
    versions = [_settle(lab, _value(lab, content=content)) for content in (b"one", b"two")]
    assert (_current(lab).id, _current(lab).content) == (versions[1], b"two")
    assert [row["id"] for row in values.versions(lab.database, "shop.a", "p")] == versions[::-1]
    assert values.by_ids(lab.database, [versions[0] or 0])[versions[0] or 0].content == b"one"


def test_a_value_of_a_transaction_that_is_rolled_back_never_was(lab: Lab) -> None:
    value = _value(lab)
    with rolled_back(lab.database) as tx:
        assert values.settle(tx, value) is not None
    assert values.current(lab.database, "shop.a", "p") is None
    assert lab.scalar("SELECT count(*) FROM flowstone.asset_values") == 0


def test_a_prepared_value_is_invisible_until_it_is_settled(lab: Lab) -> None:
    value = _value(lab)
    prepared = values.prepare(lab.database, value)
    assert values.current(lab.database, "shop.a", "p") is None
    assert values.by_ids(lab.database, [prepared]) == {}
    assert values.of_run(lab.database, "shop.a", "p", value.run_id) is None
    assert values.versions(lab.database, "shop.a", "p") == []
    assert values.prepare(lab.database, value) == prepared, "the same attempt finds its own"
    assert _settle(lab, value, prepared) == prepared
    assert _current(lab).id == prepared


def test_a_prepared_value_that_is_gone_is_not_settled(lab: Lab) -> None:
    value = _value(lab)
    prepared = values.prepare(lab.database, value)
    lab.sql("DELETE FROM flowstone.asset_values")
    with rolled_back(lab.database) as tx:
        assert values.settle(tx, value, prepared=prepared) is None
    assert values.current(lab.database, "shop.a", "p") is None


def test_two_runs_that_settle_one_asset_at_once_leave_one_current_version(lab: Lab) -> None:
    made = [_value(lab, content=bytes([n])) for n in range(6)]
    versions = in_threads(*[lambda v=value: _settle(lab, v) for value in made])
    assert len(set(versions)) == 6
    assert _current(lab).id in versions


def test_a_summary_counts_partitions_and_names_the_newest(lab: Lab) -> None:
    _settle(lab, _value(lab, "shop.a"))
    _settle(lab, _value(lab, "shop.b"))
    found = values.summary(lab.database)
    assert {name: row["partitions"] for name, row in found.items()} == {"shop.a": 1, "shop.b": 1}
    assert values.current_of_many(lab.database, ["shop.a", "shop.c"], "p").keys() == {"shop.a"}


# --- lineage ----------------------------------------------------------------------------------------------------------------------


def test_lineage_names_exact_versions_level_by_level(lab: Lab) -> None:
    first = _settle(lab, _value(lab, "shop.raw")) or 0
    _settle(lab, _value(lab, "shop.raw", b"newer"))
    clean = _settle(lab, _value(lab, "shop.clean", upstream=[Upstream("shop.raw", "p", first)])) or 0
    both = [Upstream("shop.clean", "p", clean), Upstream("shop.raw", "p", first)]
    _settle(lab, _value(lab, "shop.report", upstream=both))
    up = lineage.upstream(lab.database, _current(lab, "shop.report"))
    assert [(link.asset, link.value_id, link.depth) for link in up] == [
        ("shop.clean", clean, 1),
        ("shop.raw", first, 1),
    ]
    [old] = values.by_ids(lab.database, [first]).values()
    down = lineage.downstream(lab.database, old)
    assert [(link.asset, link.depth) for link in down] == [("shop.clean", 1), ("shop.report", 1)]
    assert lineage.downstream(lab.database, _current(lab, "shop.raw")) == [], (
        "nothing was made from the newer version"
    )
    assert lineage.upstream(lab.database, _current(lab, "shop.report"), depth=1) == up


# --- through assets ---------------------------------------------------------------------------------------------------------------


def test_a_run_records_the_versions_that_it_consumed(fs_test: TestKit) -> None:
    fs, number = fs_test.fs, iter(range(100))

    @fs.asset
    def raw() -> int:
        return next(number)

    @fs.asset
    def report(raw: int) -> int:
        return raw * 10

    fs_test.run(report)
    first = fs_test.assert_materialized(raw)["id"]
    fs_test.run(raw)
    second = fs_test.assert_materialized(raw)["id"]
    assert first != second
    made = values.current(fs_test.database, report.name, "")
    assert made is not None
    assert [link.value_id for link in lineage.upstream(fs_test.database, made)] == [first]
    fs_test.run(report, all_deps=False)
    made = values.current(fs_test.database, report.name, "")
    assert made is not None
    assert [link.value_id for link in lineage.upstream(fs_test.database, made)] == [second]
    assert fs.get(report) == 10


@pytest.mark.parametrize("size", [10, LARGE], ids=["in the row", "written ahead"])
def test_a_value_comes_back_as_it_was_stored(fs_test: TestKit, size: int) -> None:
    import random

    @fs_test.fs.asset
    def text() -> str:
        return "".join(random.Random(7).choices("abcdefghijklmnop ÄÖÜ€\n", k=size))

    @fs_test.fs.asset
    def length(text: str) -> int:
        return len(text)

    assert fs_test.run(length).get() == size
    stored = values.current(fs_test.database, text.name, "")
    assert stored is not None
    assert (len(stored.content or b"") > fs_test.settings.inline_value_bytes) == (size == LARGE)


@pytest.mark.parametrize(
    "content", ["'\\x00'::bytea", "set_byte(content, 12, 255 - get_byte(content, 12))", "''::bytea"]
)
def test_damaged_content_is_an_error_that_names_its_asset(fs_test: TestKit, content: str) -> None:
    from corelab import sql

    fs = fs_test.fs

    @fs.asset
    def numbers() -> list[int]:
        return list(range(500))

    @fs.asset
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    fs_test.run(numbers, partition="2024")
    fs_test.database.once(sql(f"UPDATE flowstone.asset_values SET content = {content}"))
    with pytest.raises(CorruptRow, match=r"test\.numbers.*2024") as caught:
        fs.get(numbers, partition="2024")
    assert caught.value.hint
    run = fs_test.run(total, partition="2024", all_deps=False)
    with pytest.raises(RunFailed):
        run.get()
    assert "FS-5007" in str([row["error"] for row in run.steps()])


def test_an_act_and_its_audit_row_commit_together(lab: Lab) -> None:
    with rolled_back(lab.database) as tx:
        audit.add(tx, actor="joe", action="a.b", resource_type="run", resource_id="1", details={"k": 1})
    assert audit.of_resource(lab.database, "run", "1") == []
    with lab.database.transaction() as tx:
        audit.add(tx, actor="joe", action="a.b", resource_type="run", resource_id="1", details={"k": 1})
    [row] = audit.of_resource(lab.database, "run", "1")
    assert (row["actor"], row["action"], row["details"], row["actor_type"]) == (
        "joe",
        "a.b",
        {"k": 1},
        "user",
    )
