"""Many ready steps on one slow worker: a long queue is no lost message, and what is urgent goes first."""

from __future__ import annotations

import time

import pytest
from faults.cluster import Cluster, Measured
from faults.load import begin

pytestmark = pytest.mark.worker


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(3_000, id="3000"),
        pytest.param(50_000, id="50000", marks=[pytest.mark.faults, pytest.mark.timeout(1_800)]),
    ],
)
def test_a_long_line_sends_few_messages_twice_and_lets_the_urgent_pass(
    fleet: Cluster, steps: int, measured: Measured
) -> None:
    fleet.worker(slots=1)
    begun = time.monotonic()
    with fleet.traffic() as sent:
        long = begin(fleet, steps)
        fleet.until(lambda: long.progress().finished > steps // 10, within=steps / 50, run=long)
        urgent = begin(fleet, 1, priority=9)
        fleet.finish(urgent, within=60)
        overtaken = fleet.sql(_BETWEEN, long=long.uuid, urgent=urgent.uuid)[0]["started"]
        # A tenth of what one slot does when its statements stand on the right indexes, also before the tables were analyzed.
        fleet.finish(long, within=steps / 50)
    doubles = sum(count - 1 for count in sent.values())
    examined = time.monotonic()
    fleet.check()
    measured("seconds of the doctor", round(time.monotonic() - examined, 1))
    measured("seconds", round(time.monotonic() - begun, 1))
    measured("messages", sum(sent.values()))
    measured("doubled messages", doubles)
    measured("older steps that began before the urgent one", overtaken)
    assert doubles < steps / 100
    assert overtaken < steps / 100
    assert fleet.sql("SELECT count(*) AS n FROM flowstone.steps WHERE attempt <> 1") == [{"n": 0}]


_BETWEEN = """
SELECT count(*) AS started FROM flowstone.history h
 WHERE h.run_id = %(long)s AND h.event = 'step.running'
   AND h.id BETWEEN (SELECT min(id) FROM flowstone.history WHERE run_id = %(urgent)s)
                AND (SELECT max(id) FROM flowstone.history WHERE run_id = %(urgent)s AND event = 'step.running')
"""
