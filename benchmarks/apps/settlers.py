"""Many hands of one barrier, each with a connection of its own, that settle one item at a time. No worker: the rows alone."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from flowstone_celery.config import Settings
from flowstone_celery.core import barriers, runs, steps
from flowstone_celery.core.barrier_model import Ended, NewBarrier, Policy, Scattered
from flowstone_celery.core.model import Claim, NewRun, NewStep, NoCarrier, Place
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.workers import Node, report_node
from flowstone_celery.db.database import Database
from flowstone_celery.db.statements import Statement

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier as Start

TIMEOUT = 120.0
TASK, HAND = "settlers.work", "settlers.work[item]"
_LEASE = 86_400.0
_LOOK_AGAIN = 0.002
"""Seconds; a hand would stand aside, and cost those that settle nothing."""
_URL = os.environ["FLOWSTONE_DATABASE_URL"]
_TABLE = Statement(
    "settlers", "table", frozenset(), "CREATE TABLE IF NOT EXISTS bare (id bigserial PRIMARY KEY, told text)"
)
_INSERT = Statement("settlers", "insert", frozenset(), "INSERT INTO bare (told) VALUES ('1')")

database = Database(_URL)

Act = Callable[[Database], "list[float]"]
"""What one thread does; answers the seconds of each arrival."""


@dataclass(frozen=True, slots=True)
class _Settler:
    """Claims ranges of its barrier until there is nothing left, and settles them item by item, or each as one part."""

    hand: Claim
    ranged: int
    parts: bool

    def __call__(self, own: Database) -> list[float]:
        times: list[float] = []
        while True:
            held = own.attempt(lambda tx: barriers.claim_range(tx, self.hand, wanted=self.ranged, width=1))
            if held is None:
                found = barriers.progress(own, self.hand.barrier_id or 0)
                if found is None or found.pending <= found.running:
                    return times
                time.sleep(_LOOK_AGAIN)  # whoever settles just now holds the pages that have something left
                continue
            all_ended = [Ended(item.index, "succeeded", 1, b"1") for item in held.items]
            for ended in [all_ended] if self.parts else [[each] for each in all_ended]:
                begun = time.perf_counter()
                part = own.attempt(lambda tx: barriers.settle_part(tx, self.hand, held, ended))  # noqa: B023 - called at once
                times.append(time.perf_counter() - begun)
                assert part is not None, "another holds the hand"


@dataclass(frozen=True, slots=True)
class _Inserter:
    """Inserts so many rows, each with a commit of its own."""

    rows: int

    def __call__(self, own: Database) -> list[float]:
        times = []
        for _ in range(self.rows):
            begun = time.perf_counter()
            own.attempt(lambda tx: tx.run(_INSERT))
            times.append(time.perf_counter() - begun)
        return times


# --- deeds ----------------------------------------------------------------------------------------------------------------------


def settled(settlers: int, items: int, ranged: int, processes: int, *, parts: bool = False) -> dict[str, Any]:
    """The seconds of each arrival, and those from the first to the last, of so many items for each settler of one barrier.

    `parts`: what is claimed at once arrives at once, as hands do it.
    """
    hands = _scattered(settlers, settlers * items)
    answer = _together([_Settler(hand, ranged, parts) for hand in hands], processes)
    found = barriers.barrier(database, hands[0].barrier_id or 0)
    assert found is not None
    assert (found.status, found.done) == ("completed", settlers * items), found
    return answer


def inserted(settlers: int, items: int, processes: int) -> dict[str, Any]:
    """The same of bare rows."""
    database.attempt(lambda tx: tx.run(_TABLE))
    return _together([_Inserter(items)] * settlers, processes)


def about() -> dict[str, str]:
    """The version of Celery that is installed beside us."""
    return {"celery": version("celery")}


DEEDS = {"about": about, "settled": settled, "inserted": inserted}


# --- the barrier ----------------------------------------------------------------------------------------------------------------


def _scattered(settlers: int, items: int) -> list[Claim]:
    """So many hands of a barrier with so many items, all of them claimed."""
    queue = str(uuid4())  # what an earlier round left is in no one's way
    worker = _worker(queue, slots=settlers)
    step = NewStep(kind="plain", name="items", task=TASK, queue=queue, needs={})
    run = NewRun("plain", "settlers", (step,))
    runs.begin(database, NoCarrier(), run, settings=Settings(database_url=_URL), promise=False)
    claim = _claimed(worker, queue)
    new = NewBarrier("items", HAND, queue, 0, Policy())
    keys = [str(number).encode() for number in range(items)]
    moved = database.attempt(lambda tx: barriers.scatter_later(tx, claim, Scattered(new, keys))())
    assert moved is not None
    return [_claimed(worker, queue) for _ in range(settlers)]


def _worker(queue: str, slots: int) -> int:
    """A worker with so many slots for this queue, which is this process: a barrier has hands for as many."""
    here = Place.here()
    node = Node(uuid4(), "settlers@here", here.pid, "threads", (queue,), (TASK, HAND), slots)
    report_node(database, node, keeper_pid=here.pid, lease=_LEASE)
    about = {"place": here.place, "pid": here.pid, "pid_started": here.pid_started}
    row = database.first(SQL["register_worker"], node=node.key, name=node.name, lease=_LEASE, **about)
    assert row is not None
    return int(row["id"])


def _claimed(worker: int, queue: str) -> Claim:
    found = database.attempt(lambda tx: steps.claim_next(tx, queue, worker=worker, knows=(TASK, HAND)))
    assert found is not None, "the queue has nothing"
    return found


# --- at once --------------------------------------------------------------------------------------------------------------------


def _together(acts: list[Any], processes: int) -> dict[str, Any]:
    """All acts at once, each in a thread of one of so many processes."""
    context = multiprocessing.get_context("spawn")
    shares = [acts[first::processes] for first in range(processes)]
    start, answers = context.Barrier(len(acts) + 1), context.Queue()
    children = [context.Process(target=_share, args=(share, start, answers), daemon=True) for share in shares]
    for child in children:
        child.start()
    start.wait(TIMEOUT)
    begun = time.perf_counter()
    found = [answers.get(timeout=TIMEOUT) for _ in acts]
    seconds = time.perf_counter() - begun
    for child in children:
        child.join(TIMEOUT)
    return {"times": [each for times in found for each in times], "seconds": seconds}


def _share(acts: list[Act], start: Start, answers: Queue[list[float]]) -> None:
    """One process's threads; each is connected before any begins."""
    own = Database(_URL, pool_size=len(acts))

    def run(act: Act) -> None:
        with own.connection() as connection:
            connection.execute("SELECT 1")
            start.wait(TIMEOUT)
        answers.put(act(own))

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own.dispose()
