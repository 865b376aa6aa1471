"""Hands whose process dies: what they held is done by others, and an item that kills every time ends as failed, alone."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from corelab import Lab
from handlab import KNOWS, HandLab, Scatters

from flowstone_celery.core.interrupts import Board
from flowstone_celery.core.wake import back_in_line
from flowstone_celery.states import RUN_TERMINAL

if TYPE_CHECKING:
    from uuid import UUID

    from flowstone_celery.core.keeper import Keeper
    from flowstone_celery.core.workers import Node

TESTS = Path(__file__).parent.parent


class Crew:
    """A node whose processes die, and its keeper."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.hands = HandLab(lab)
        self.folder = folder
        self.node: Node = lab.node(knows=KNOWS, slots=1)
        (folder / "board").mkdir()
        (folder / "items").mkdir()
        self.keeper: Keeper = lab.keeper(Board(folder / "board"), self.node, may_kill=True)
        self.deaths = 0

    def work(self, run: UUID, code: str) -> str:
        """Processes one after the other, until the run has ended."""
        for _ in range(20):
            if self.hands.status(run) in RUN_TERMINAL:
                break
            self._one(code)
            self.keeper._look_again = 0.0
            self.keeper.step()
            back_in_line(self.lab.database)
        return self.hands.status(run)

    def _one(self, code: str) -> None:
        url = self.lab.settings.database_url
        assert url is not None
        command = [
            sys.executable,
            "-m",
            "handprocess",
            url,
            str(self.node.key),
            code,
            str(self.folder / "items"),
        ]
        process = subprocess.Popen(command, cwd=TESTS, env={**os.environ, "PYTHONPATH": str(TESTS)})
        try:
            self.lab.wait_until(partial(self._has_ended, process), within=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode in (0, -9)
        self.deaths += process.returncode == -9

    def _has_ended(self, process: subprocess.Popen[bytes]) -> bool:
        self.keeper.step()
        return process.poll() is not None

    def times(self, index: int) -> int:
        return len((self.folder / "items" / str(index)).read_text().split())


@pytest.fixture
def crew(lab: Lab, tmp_path: Path) -> Crew:
    return Crew(lab, tmp_path)


def test_a_hand_that_is_killed_is_taken_over_and_its_items_are_done_one_by_one(crew: Crew) -> None:
    run = crew.hands.scatter(Scatters(list(range(60))))
    assert crew.work(run, "once") == "succeeded"
    assert crew.deaths == 1
    assert crew.hands.progress(run).succeeded == 60
    assert crew.times(5) == 2
    # Of what was not settled with it, nothing is lost; what its range had not begun is done once.
    assert all(crew.times(index) <= 2 for index in range(8))
    assert all(crew.times(index) == 1 for index in range(8, 60))


def test_an_item_that_kills_its_process_every_time_ends_as_failed_and_no_other_is_touched(crew: Crew) -> None:
    kind = Scatters(
        list(range(60)), policy={"failure_mode": "partial", "failure_threshold": 0.5, "crash_limit": 3}
    )
    run = crew.hands.scatter(kind)
    assert crew.work(run, "poison") == "succeeded"
    items = crew.hands.items(run)
    assert {index for index, each in items.items() if each.status == "failed"} == {5}
    assert items[5].error is not None
    assert items[5].error["type"] == "TooManyCrashes"
    # Once among its neighbours, which counts for nobody, then alone until the limit.
    assert crew.times(5) == crew.deaths == 4
    assert all(crew.times(index) <= 2 for index in range(60) if index != 5)
    hands = [row for row in crew.hands.rows(run) if row["phase"] == "item"]
    assert {row["status"] for row in hands} <= {"succeeded", "skipped"}
    assert sum(row["crashes"] for row in hands) == 0


@pytest.mark.parametrize("point", ["range.after_commit", "part.before_commit", "part.after_commit"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_hand_that_dies_between_two_items_costs_nobody_anything(
    crew: Crew, monkeypatch: pytest.MonkeyPatch, point: str, nth: int
) -> None:
    run = crew.hands.scatter(Scatters(list(range(60))))
    monkeypatch.setenv("FLOWSTONE_FAULT", f"{point}:{nth}:kill9:{crew.folder / 'fault'}")
    assert crew.work(run, "never") == "succeeded"
    assert crew.deaths == 1
    assert crew.hands.progress(run).succeeded == 60
    assert {each.attempt for each in crew.hands.items(run).values()} == {1}
    again = [index for index in range(60) if crew.times(index) > 1]
    assert bool(again) == (point == "part.before_commit")


def test_an_item_that_can_be_told_nothing_loses_its_process_when_its_time_is_over(crew: Crew) -> None:
    policy = {"timeout": 0.3, "crash_limit": 1, "failure_mode": "partial", "failure_threshold": 0.5}
    run = crew.hands.scatter(Scatters(list(range(20)), policy=policy))
    assert crew.work(run, "deaf") == "succeeded"
    items = crew.hands.items(run)
    assert {index for index, each in items.items() if each.status == "failed"} == {5}
    assert crew.times(5) == crew.deaths == 2
    assert all(crew.times(index) <= 2 for index in range(20))
