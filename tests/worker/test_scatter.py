"""Assets that scatter, on real workers."""

from __future__ import annotations

import pytest

from worker.conftest import Site
from worker.scattershop import LINKS, TOLD

pytestmark = pytest.mark.worker


@pytest.fixture(autouse=True)
def clean_notes(site: Site) -> None:
    """Nothing is noted yet."""
    for note in (*site.scratch.glob("told*"), *site.scratch.glob("parsed*")):
        note.unlink()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_items_are_made_by_workers_and_gathered_though_some_failed(site: Site, pool: str) -> None:
    site.start(pool=pool, slots=2)
    run = site.fs.materialize_all("parsed_well")
    run.wait(timeout=40)
    assert run.get() == [len(LINKS) - 2, [LINKS[3], LINKS[7]]]
    [scatter] = run.scatters()
    assert scatter.status == "partial_failure"
    assert (scatter.progress().succeeded, scatter.progress().failed) == (len(LINKS) - 2, 2)
    assert len(site.notes("parsed")) == len(LINKS) + 2 * 2  # three attempts of those that failed


def test_items_are_awaited_by_workers(site: Site) -> None:
    site.start()
    assert site.fs.run("awaited").get(timeout=40) == len(LINKS)


def test_items_begin_while_there_is_still_something_to_read(site: Site) -> None:
    site.start(slots=2)
    run = site.fs.run("told")
    assert run.get(timeout=60) is True
    assert run.scatters()[0].row.total == TOLD


def test_a_reader_whose_worker_is_killed_is_gone_on_with(site: Site) -> None:
    site.start(slots=2)
    run = site.fs.run("told_by_the_dead")
    assert run.get(timeout=60) is True
    assert site.notes("told_by_the_dead-restored") == ["800"]
    [scatter] = run.scatters()
    assert (scatter.row.total, scatter.row.collapsed) == (TOLD, 0)


def test_items_go_where_the_routes_of_the_application_send_their_task(site: Site) -> None:
    site.start("-Q", "celery,items", SHOP_ITEM_QUEUE="items")
    run = site.fs.materialize_all("parsed_well")
    assert run.wait(timeout=40).state == "succeeded"
    rows = site.rows(
        "SELECT name, phase, queue FROM flowstone.steps WHERE run_id = %(run)s GROUP BY 1, 2, 3 ORDER BY 2, 1",
        run=run.uuid,
    )
    assert {(row["name"], row["queue"]) for row in rows if row["phase"] == "item"} == {
        ("shop.parsed", "items")
    }
    assert {row["queue"] for row in rows if row["phase"] != "item"} == {"celery"}
