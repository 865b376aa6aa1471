"""Goals G1, G3, G16 and G17 at the items of scatters: none is lost to kills, barriers close once, failed ones alone are done again, poison.

Rules are asserted; times are figures (`figures.py`), and fail a test only far beyond their bar.
"""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from faults.cluster import Cluster, Measured
from faults.figures import Noted
from faults.load import begin
from faults.storm import Ledger, Storm, told

pytestmark = [pytest.mark.worker, pytest.mark.goals]

FAR_BEYOND = 4
GOAL_ITEMS, GOAL_KILLS = 1_000_000, 1_000
LONG = pytest.mark.faults


# --- G1: nothing is lost ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "kills"),
    [
        pytest.param(3_000, 6, id="3000"),
        pytest.param(200_000, 200, id="200000", marks=[LONG, pytest.mark.timeout(3_600)]),
    ],
)
def test_no_item_is_lost_while_processes_are_killed(
    fleet: Cluster, items: int, kills: int, figure: Noted, measured: Measured
) -> None:
    storm = Storm(fleet, kills, nodes=10)
    run = fleet.start("items", metadata={"items": items, "pauses": [0, 0.001, 0.003, 0.004]})
    seconds = storm.rage(run, items, within=60 + items / 50)
    found = told(fleet, run, items)
    part = f"{100 * items / GOAL_ITEMS:g} % of the goal's items, {100 * storm.killed / GOAL_KILLS:g} % of its kills"
    figure("G1", f"items lost of {items:,} over {storm.killed} kills ({part})", found.lost, 0)
    figure("G1", "results that no start of their item explains", found.strange, 0)
    measured("seconds", round(seconds, 1))
    measured("starts beyond one for each item", found.starts - items)
    assert (found.lost, found.strange, found.gathers) == (0, 0, 1)


# --- G3: a barrier closes once ----------------------------------------------------------------------------------------------------------

EACH = 5
"""Items of a small barrier."""


@pytest.mark.parametrize(
    ("barriers", "kills"),
    [
        pytest.param(200, 4, id="200"),
        pytest.param(3_000, 60, id="3000", marks=[LONG, pytest.mark.timeout(1_800)]),
    ],
)
def test_barriers_close_once_though_messages_come_twice_and_processes_die(
    fleet: Cluster, barriers: int, kills: int, figure: Noted, measured: Measured
) -> None:
    for statement in _CLOSES:
        fleet.sql(statement)
    storm = Storm(fleet, kills, nodes=20, module="doubleitemshop")
    with fleet.traffic() as wakeups:
        run = begin(fleet, barriers, asset="items", metadata={"items": EACH, "pauses": [0, 0.002, 0.005, 0]})
        seconds = storm.rage(run, barriers * EACH, within=60 + barriers / 5)
    closes = Counter({row["barrier"]: row["closes"] for row in fleet.sql(_CLOSES_OF_EACH)})
    opened = Counter(row["opened"] for row in fleet.sql(_OPENED_TO_GATHER, run=run.uuid))
    found, deadlocks = told(fleet, run, barriers * EACH), fleet.sql(_DEADLOCKS)[0]["deadlocks"]
    doubled = sum(wakeups.values()) - len(wakeups)
    wrong = sum(count != 1 for count in closes.values()) + abs(barriers - len(closes))
    figure("G3", f"of {barriers:,} barriers over {storm.killed} kills, closed otherwise than once", wrong, 0)
    figure("G3", "deadlocks while barriers close", deadlocks, 0)
    measured("wake-ups, doubles among them", (sum(wakeups.values()), doubled))
    measured("seconds", round(seconds, 1))
    measured("folds begun", found.gathers)
    assert (wrong, deadlocks, opened) == (0, 0, {1: barriers})
    assert (found.lost, found.strange) == (0, 0)
    assert barriers <= found.gathers <= barriers + 2 * storm.killed, "a fold that no death explains"
    assert doubled > 0.2 * len(wakeups), "too few messages came twice"


_CLOSES = (
    "CREATE TABLE closes (barrier bigint, status text)",
    """CREATE FUNCTION note_close() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO closes VALUES (NEW.id, NEW.status); RETURN NULL; END $$""",
    """CREATE TRIGGER closes AFTER UPDATE ON flowstone.barriers FOR EACH ROW
    WHEN (OLD.status = 'open' AND NEW.status <> 'open') EXECUTE FUNCTION note_close()""",
)
_CLOSES_OF_EACH = "SELECT barrier, count(*) AS closes FROM closes GROUP BY barrier"
_OPENED_TO_GATHER = """
SELECT count(h.id) AS opened FROM flowstone.steps s LEFT JOIN flowstone.history h ON h.step_id = s.id AND h.event = 'step.ready'
 WHERE s.run_id = %(run)s AND s.barrier_id IS NULL GROUP BY s.id
"""
_DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


# --- G16: what failed, and nothing else ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [600, pytest.param(10_000, marks=[LONG, pytest.mark.timeout(600)])])
def test_a_retry_begins_exactly_the_items_that_failed(fleet: Cluster, items: int, figure: Noted) -> None:
    fleet.worker(module="itemshop", slots=2)
    bad, mended = random.Random(items).sample(range(items), 37), fleet.file("mended")
    run = fleet.start("items", metadata={"items": items, "bad": bad, "mended": str(mended)})
    fleet.finish(run, within=60 + items / 100)
    [scatter] = run.scatters()
    assert (scatter.status, scatter.progress().failed) == ("partial_failure", 37)
    first = Ledger(fleet).starts(run)
    assert len({start.item for start in first}) == len(first) == items
    mended.touch()
    scatter.retry(actor="tester")
    fleet.finish(run, within=60)
    again = Ledger(fleet).starts(run)[items:]
    assert {start.item for start in again} == {(run.id, f"None/{item}") for item in bad}
    assert (scatter.status, scatter.progress().succeeded) == ("completed", items)
    assert [len(line["tokens"]) for line in Ledger(fleet).gathers(run)] == [items - 37, items]
    figure("G16", f"starts in the second round of {items} items of which 37 failed", len(again), 37)


# --- G17: poison --------------------------------------------------------------------------------------------------------------------------


def test_an_item_that_kills_its_process_is_begun_a_few_times_and_no_other_fails(
    fleet: Cluster, figure: Noted
) -> None:
    fleet.worker(module="itemshop", slots=2)
    run = fleet.start("items", metadata={"items": 300, "pauses": [0, 0.002, 0.01], "poison": 150})
    fleet.finish(run, within=60)
    times = Counter(start.item[1] for start in Ledger(fleet).starts(run))
    poison, limit = times.pop("None/150"), fleet.settings.crash_limit
    [scatter] = run.scatters()
    assert [each.index for each in scatter.items("failed")] == [150]
    assert scatter.progress().succeeded == len(times) == 299
    figure("G17", f"starts of a poison item (limit {limit}), the first one among neighbours", poison, limit)
    # The first death is nobody's: which item of the range it was is not known. Then each goes alone.
    assert poison <= limit + 1
    assert max(times.values()) <= 2


@LONG
@pytest.mark.timeout(900)
def test_a_poison_item_slows_its_siblings_little(fleet: Cluster, figure: Noted, measured: Measured) -> None:
    for _ in range(2):
        fleet.worker(module="itemshop", slots=2)

    def seconds(**metadata: int) -> float:
        begun = time.monotonic()
        fleet.finish(
            fleet.start("items", metadata={"items": 2_000, "pauses": [0.05], **metadata}), within=300
        )
        return time.monotonic() - begun

    seconds()  # warm
    before, beside, after = seconds(), seconds(poison=1_000), seconds()
    measured(
        "seconds without, beside it, without again", [round(each, 1) for each in (before, beside, after)]
    )
    drop = 100 * (1 - (before + after) / 2 / beside)
    figure("G17", "throughput that siblings of a poison item lose, %", drop, 10)
    assert drop < 10 * FAR_BEYOND
