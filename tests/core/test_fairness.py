"""Turns: runs of one priority share a queue, however many rows each has; priority rules before turns.

A row whose wake-up is under way waits for its message, behind the few in front of it: each of these goes on for a slice first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from actlab import doer
from corelab import AT_ONCE, Lab, step

from flowstone_celery.core import acts
from flowstone_celery.core.model import Done

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.core.model import WakeUp


def order(lab: Lab) -> list[UUID]:
    """The runs, in the order in which their steps were started."""
    rows = lab.sql("SELECT run_id FROM flowstone.history WHERE event = 'step.running' ORDER BY id")
    return [row["run_id"] for row in rows]


SLICE = 5


def fair(lab: Lab, own: int, others: int = 1) -> int:
    """The starts after which a run of so many steps ends beside so many others: its share, and the slices of messages before its last."""
    return own * (1 + others) + SLICE * (lab.settings.min_wakeups + 1)


class Worker:
    """One worker process: it takes its queue's messages in their order, and goes on after each for a slice of some starts."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._messages: list[WakeUp] = []

    def work(self, starts: int) -> None:
        """Start so many steps, in one slice."""
        self._messages += self._lab.postbox.take()
        hint = self._messages.pop(0).step if self._messages else None
        settings = replace(self._lab.settings, slice_starts=starts, slice_seconds=60.0)
        self._lab.executor(settings=settings).work(hint, "lab")

    def ends_after(self, run: UUID, most: int) -> int:
        """After how many starts the run's last step was started, `most` at the utmost."""
        before = len(order(self._lab))
        while self._lab.run(run)["finished_at"] is None and len(order(self._lab)) - before < most:
            self.work(SLICE)
        assert self._lab.run(run)["finished_at"] is not None
        since = order(self._lab)[before:]
        return len(since) - since[::-1].index(run)


@pytest.fixture
def worker(lab: Lab) -> Worker:
    return Worker(lab)


def test_a_small_run_is_not_behind_all_of_a_large_one(lab: Lab, worker: Worker) -> None:
    large = lab.start(*[step(f"s{n}") for n in range(5_000)])
    worker.work(20)
    small = lab.start(*[step(f"s{n}") for n in range(10)])
    assert worker.ends_after(small, 200) <= fair(lab, 10)
    assert lab.run(large)["status"] == "running"


def test_so_it_is_for_several_small_ones(lab: Lab, worker: Worker) -> None:
    lab.start(*[step(f"s{n}") for n in range(1_000)])
    small = [lab.start(*[step(f"s{n}") for n in range(5)]) for _ in range(4)]
    assert max(worker.ends_after(run, 500) for run in small if lab.run(run)["finished_at"] is None) <= fair(
        lab, 5, len(small)
    )


def test_a_chain_neither_starves_nor_starves_others(lab: Lab, worker: Worker) -> None:
    wide = lab.start(*[step(f"s{n}") for n in range(2_000)])
    chain = lab.start(step("c0"), *[step(f"c{n}", n - 1) for n in range(1, 30)])
    assert worker.ends_after(chain, 1_000) <= 30 * (lab.settings.min_wakeups + 2)
    done = order(lab)
    assert done.count(wide) >= 10


def test_a_failed_attempt_that_is_due_again_has_its_turn(lab: Lab, worker: Worker) -> None:
    lab.answers["shaky"] = lambda claim: (
        Done() if claim.failures else (_ for _ in ()).throw(ValueError("again"))
    )
    run = lab.start(step("shaky", max_failures=2, retry=AT_ONCE))
    lab.start(*[step(f"s{n}") for n in range(500)])
    assert worker.ends_after(run, 200) <= fair(lab, 2)


def test_priority_rules_before_turns(lab: Lab, worker: Worker) -> None:
    low = lab.start(*[step(f"s{n}") for n in range(200)])
    worker.work(10)
    high = lab.start(*[step(f"s{n}", priority=5) for n in range(50)])
    worker.work(50)
    under_way = lab.settings.min_wakeups
    assert order(lab)[10:60].count(low) <= under_way
    worker.work(10)
    assert lab.run(high)["status"] == "succeeded"
    assert order(lab)[-5:] == [low] * 5


def test_the_next_round_of_a_large_run_stands_in_line_like_a_new_one(lab: Lab, worker: Worker) -> None:
    large = lab.start(*[step(f"s{n}") for n in range(300)])
    lab.cancel(large)
    other = lab.start(*[step(f"s{n}") for n in range(20)])
    acts.retry(doer(lab), large, actor="tester")
    assert worker.ends_after(other, 200) <= fair(lab, 20)
