"""A scatter while its workers are killed, and what must hold behind it: every item has ended once, and what was gathered are its results."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from faults import itemshop
from faults.cluster import Cluster, Worker

from flowstone_celery import Run
from flowstone_celery.assets.partition import decode
from flowstone_celery.core import barriers

LIMITS = {"FLOWSTONE_CRASH_LIMIT": 100}
"""Whoever is killed at random is not to blame."""
MIXED = {"pauses": [0, 0, 0.001, 0.002, 0.005, 0.01, 0.03], "slow": [700, 1.3]}
"""Items of mixed length: some 7 ms on average, and some that are slow enough to give their neighbours back."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of one item's code."""

    run: str
    token: str
    attempt: int
    pid: int
    at: float

    @property
    def item(self) -> tuple[str, str]:
        """Run, and partition with index."""
        return self.run, self.token.rpartition("/")[0]


@dataclass
class Ledger:
    """What the code of items and folds wrote down by itself."""

    fleet: Cluster

    def starts(self, run: Run) -> list[Start]:
        """Of this run's items, in their order."""
        found = (line.split(" ") for line in self._lines(itemshop.STARTS))
        return [
            Start(of, token, int(attempt), int(pid), float(at))
            for of, token, attempt, pid, at in found
            if of == run.id
        ]

    def gathers(self, run: Run) -> list[dict[str, Any]]:
        """Of this run's folds: what each was given."""
        return [line for line in map(json.loads, self._lines(itemshop.GATHERS)) if line["run"] == run.id]

    def _lines(self, ledger: str) -> Iterator[str]:
        path = self.fleet.folder / f"sink{ledger}"
        # The last line may be under way still.
        return iter(path.read_text().rpartition("\n")[0].splitlines() if path.exists() else ())


@dataclass
class Storm:
    """Kills that come as the work goes on, spread over it evenly; the last of them before its end."""

    fleet: Cluster
    kills: int
    nodes: int = 0
    """Every how many kills a whole node falls: parent, children and keeper at once. Another is started then. 0: none."""
    module: str = "itemshop"
    meanwhile: Sequence[Callable[[], None]] = ()
    """What else is done, spread over the work in the same way."""
    killed: int = 0
    fallen: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(20))

    def __post_init__(self) -> None:
        """Two nodes of two processes each are up."""
        self._workers = [self._worker() for _ in range(2)]
        self._others = list(self.meanwhile)

    def _worker(self, *, ready: bool = True) -> Worker:
        return self.fleet.worker(module=self.module, ready=ready, **LIMITS)

    def rage(self, run: Run, items: int, *, within: float) -> float:
        """The run has ended by itself, whatever was killed; answers after how many seconds."""
        begun = time.monotonic()
        while not run.ready():
            assert time.monotonic() - begun < within, self._stuck(run)
            self._go_on(self._ended(run) / items)
            time.sleep(0.05)
        assert run.state == "succeeded", run.row["error"]
        assert self.killed >= self.kills / 2, (
            f"the run was over too soon: {self.killed} of {self.kills} kills"
        )
        assert not self._others, "the run was over before everything was done to it"
        return time.monotonic() - begun

    def _go_on(self, done: float) -> None:
        if self.killed < self.kills and done > (self.killed + 1) / (self.kills + 2):
            self._kill()
        if self._others:
            others = len(self.meanwhile)
            if done > (others - len(self._others) + 1) / (others + 1.5):
                self._others.pop(0)()

    def _kill(self) -> None:
        victim = self.chance.choice(self._workers)
        if self.nodes and self.killed % self.nodes == self.nodes - 1:
            victim.fall()
            self._workers.remove(victim)
            self._workers.append(self._worker(ready=False))
            self.fallen += 1
            self.killed += 1
            return
        with suppress(ProcessLookupError, IndexError):
            os.kill(self.chance.choice(victim.children), signal.SIGKILL)
            self.killed += 1

    def _ended(self, run: Run) -> int:
        return int(self.fleet.sql(_ENDED, run=run.uuid)[0]["ended"])

    def _stuck(self, run: Run) -> str:
        why = [f"  {row['name']}: {row['reason']}" for row in run.why()]
        return "\n".join([f"not ended, with {self._ended(run)} items done", *why])


_ENDED = """
SELECT coalesce(sum(p.done + p.failed), 0) AS ended FROM flowstone.barriers b JOIN flowstone.barrier_pages p ON p.barrier_id = b.id
 WHERE b.run_id = %(run)s
"""


@dataclass(frozen=True, slots=True)
class Told:
    """What rows and ledgers say of a run all of whose items are to succeed."""

    lost: int
    """Items that have no result."""
    strange: int
    """Results that no start of their item wrote down."""
    starts: int
    """Of items' code, those that a death cut short and those that came after it included."""
    gathers: int
    """Of folds."""


def told(fleet: Cluster, run: Run, items: int) -> Told:
    """Rows and ledgers beside each other. Every fold was given exactly the results that the rows hold."""
    ledger, results = Ledger(fleet), _results(fleet, run)
    starts = ledger.starts(run)
    tokens = {start.token for start in starts}
    ended = sum(len(found) for found in results.values())
    strange = sum(
        result not in tokens or result.rpartition("/")[0] != f"{partition}/{key}"
        for partition, found in results.items()
        for key, result in found
    )
    gathers = ledger.gathers(run)
    for each in gathers:
        held = [result for _, result in results[each["partition"]]]
        assert each["tokens"] == held, "a fold was given other results than the rows hold"
    return Told(items - ended, strange, len(starts), len(gathers))


def _results(fleet: Cluster, run: Run) -> dict[Any, list[tuple[int, str]]]:
    """Of each partition that was scattered, in index order: what an item is about, and what it came to."""
    found: dict[Any, list[tuple[int, str]]] = {}
    for row in fleet.sql(_BARRIERS, run=run.uuid):
        results = found.setdefault(decode(row["partition"]), [])
        after = -1
        while page := barriers.results(fleet.fs.database, row["id"], after=after):
            assert {each["status"] for each in page} == {"succeeded"}
            results += [(orjson.loads(each["key"]), orjson.loads(each["result"])) for each in page]
            after = page[-1]["index"]
    return found


_BARRIERS = "SELECT id, partition FROM flowstone.barriers WHERE run_id = %(run)s ORDER BY id"
