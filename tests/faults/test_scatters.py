"""Scatters while everything that they stand on dies: each item ends once, what was gathered is whole, and the run ends by itself."""

from __future__ import annotations

import pytest
from faults import itemshop
from faults.cluster import Cluster, Measured
from faults.storm import MIXED, Storm, Told, told

from flowstone_celery.embedded import servers

pytestmark = pytest.mark.worker


@pytest.mark.parametrize(
    ("items", "kills", "nodes"),
    [
        pytest.param(1_000, 5, 5, id="1000"),
        pytest.param(5_000, 20, 5, id="5000", marks=[pytest.mark.faults, pytest.mark.timeout(600)]),
    ],
)
def test_each_item_ends_once_while_processes_nodes_and_services_die(
    fleet: Cluster, items: int, kills: int, nodes: int, measured: Measured
) -> None:
    home = fleet.databases.home
    assert home is not None
    fleet.server_crashes = True
    storm = Storm(
        fleet, kills, nodes, meanwhile=[fleet.redis.flushall, lambda: servers.restart_postgres(home)]
    )
    run = fleet.start("items", metadata={**MIXED, "items": items})
    seconds = storm.rage(run, items, within=60 + items / 20)
    found = told(fleet, run, items)
    assert (found.lost, found.strange, found.gathers) == (0, 0, 1)
    [scatter] = run.scatters()
    assert (scatter.status, scatter.row.total, scatter.row.done) == ("completed", items, items)
    assert fleet.sql("SELECT count(*) AS ended FROM flowstone.items WHERE status = 'succeeded'") == [
        {"ended": items}
    ]
    measured("kills, nodes among them", (storm.killed, storm.fallen))
    measured("seconds", round(seconds, 1))
    measured("starts beyond one for each item", found.starts - items)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("asset", ["awaited", "singly", "few", "shaky", "together", "told", "read"])
def test_no_way_to_scatter_loses_an_item_to_a_death(fleet: Cluster, asset: str, measured: Measured) -> None:
    items = 1_500
    storm = Storm(fleet, kills=10, nodes=5)
    metadata = {**MIXED, "items": items, "shaky": 10 if asset in ("shaky", "together") else None}
    run = fleet.start(asset, metadata=metadata)
    seconds = storm.rage(run, items, within=120)
    found = told(fleet, run, items)
    assert (found.lost, found.strange, found.gathers) == (0, 0, 1)
    [scatter] = run.scatters()
    assert (scatter.status, scatter.row.total, scatter.row.done) == ("completed", items, items)
    measured("seconds", round(seconds, 1))
    measured("starts beyond one for each item", found.starts - items)


def test_an_item_that_was_lost_or_is_of_strange_origin_would_be_told(fleet: Cluster) -> None:
    fleet.worker(module="itemshop", slots=1)
    run = fleet.start("items", metadata={"items": 20})
    fleet.finish(run)
    assert told(fleet, run, 20) == Told(lost=0, strange=0, starts=20, gathers=1)
    fleet.sql("CREATE TABLE kept AS SELECT * FROM flowstone.items")
    fleet.sql("UPDATE flowstone.items SET result = (SELECT result FROM kept WHERE index = 3) WHERE index = 4")
    with pytest.raises(AssertionError, match="a fold was given"):
        told(fleet, run, 20)
    (fleet.folder / f"sink{itemshop.GATHERS}").write_text("")
    assert told(fleet, run, 20).strange == 1
    fleet.sql("DELETE FROM flowstone.items WHERE index = 5")
    assert told(fleet, run, 20).lost == 1
    fleet.sql("DELETE FROM flowstone.items")
    fleet.sql("INSERT INTO flowstone.items SELECT * FROM kept")
