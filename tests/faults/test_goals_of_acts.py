"""Goals G15 and G16: a large run that is cancelled while workers are at it, and one that is begun again for the few steps that failed."""

from __future__ import annotations

import random
import time

import pytest
from faults.cluster import Cluster
from faults.figures import Noted
from faults.load import begin

from flowstone_celery.assets.partition import encode

pytestmark = [pytest.mark.worker, pytest.mark.goals]

FAR_BEYOND = 4
LONG = [pytest.mark.faults, pytest.mark.timeout(1_800)]


@pytest.mark.parametrize("steps", [2_000, pytest.param(10_000, marks=LONG)])
def test_a_large_run_that_is_cancelled_starts_nothing_more_and_keeps_no_late_value(
    fleet: Cluster, steps: int, figure: Noted
) -> None:
    for _ in range(2):
        fleet.worker(slots=2)
    run = begin(fleet, steps, metadata={"pause": 0.02})
    fleet.until(lambda: run.progress().finished > 20, run=run, what="work goes on")
    begun = time.monotonic()
    assert run.cancel(actor="tester")
    fleet.until(run.ready, run=run, within=60)
    seconds = time.monotonic() - begun
    after = fleet.sql(_AFTER, run=run.uuid)[0]
    assert run.state == "cancelled"
    assert fleet.sql(_LATE, run=run.uuid) == [], "a step that was cancelled left a value"
    assert run.progress().finished == steps
    figure("G15", "seconds from the cancel's commit to the last start", after["last_start"], 1)
    figure("G15", f"seconds until all {steps} steps have ended", seconds, 10)
    figure("G15", "values of steps that ended cancelled", 0, 0)
    assert after["last_start"] < FAR_BEYOND
    assert seconds < 10 * FAR_BEYOND


_AFTER = """
SELECT greatest(0, extract(epoch FROM max(h.at) FILTER (WHERE h.event = 'step.running') - r.cancelled_at))::float8 AS last_start
  FROM flowstone.runs r JOIN flowstone.history h ON h.run_id = r.id WHERE r.id = %(run)s GROUP BY r.cancelled_at
"""
_LATE = """
SELECT s.id FROM flowstone.steps s JOIN flowstone.asset_values v ON v.step_id = s.id AND v.settled_at IS NOT NULL
 WHERE s.run_id = %(run)s AND s.status = 'cancelled'
"""


@pytest.mark.parametrize("steps", [300, pytest.param(10_000, marks=LONG)])
def test_a_retry_starts_exactly_what_failed(fleet: Cluster, steps: int, figure: Noted) -> None:
    fleet.worker(slots=2)
    bad, mended = random.Random(steps).sample(range(steps), 37), fleet.file("mended")
    run = begin(fleet, steps, asset="brittle", metadata={"bad": bad, "mended": str(mended)})
    fleet.until(run.ready, run=run, within=steps / 20 + 30)
    assert (run.state, run.row["failed_steps"]) == ("failed", 37)
    mended.touch()
    run.retry(actor="tester")
    fleet.finish(run, within=60)
    rows = fleet.sql(_STARTS, run=run.uuid)
    assert {row["partition"] for row in rows} == set(map(encode, bad))
    assert len(rows) == 37
    figure("G16", f"starts in the second round of {steps} steps of which 37 failed", len(rows), 37)


_STARTS = """
SELECT s.partition FROM flowstone.history h JOIN flowstone.steps s ON s.id = h.step_id
 WHERE h.run_id = %(run)s AND h.event = 'step.running' AND h.round = 2
"""
