"""DBOS: the same work as workflows on a queue, its executors and its client on the PostgreSQL that both sides share.

`python -m benchmarks.peers.dbos_peer CHILDREN` is the worker: so many executor processes, all on one queue. Everything is at its
default but the polling, of the queue and for results: twenty times as often, which favours it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from dbos import DBOS, DBOSClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbos import DBOSConfig

TIMEOUT = 120.0
QUEUE = "benchmark"
POLL_SECONDS = 0.05
"""Between two looks of an executor at its queue, and of a client at a result; the default is 1."""
ITEM_SECONDS = float(os.environ.get("BENCHMARK_ITEM_MS", "0")) / 1000
_NAME, _VERSION = "benchmark", "1"


def _url() -> str:
    """A database of its own on the server of this benchmark."""
    found = urlsplit(os.environ["FLOWSTONE_DATABASE_URL"])
    return urlunsplit(found._replace(scheme="postgresql", path="/dbos_benchmark"))


@DBOS.workflow()  # type: ignore[untyped-decorator, unused-ignore] # checked where dbos is not installed
def item(value: int) -> int:
    """Wait for as long as an item of this benchmark lasts."""
    if ITEM_SECONDS:
        time.sleep(ITEM_SECONDS)
    return value


@DBOS.workflow()  # type: ignore[untyped-decorator, unused-ignore] # checked where dbos is not installed
def fan(width: int) -> int:
    """One workflow, as many as this on the queue, and one of all their results."""
    first = DBOS.enqueue_workflow(QUEUE, item, 0).get_result(polling_interval_sec=POLL_SECONDS)
    handles = [DBOS.enqueue_workflow(QUEUE, item, first + number) for number in range(width)]
    found = [handle.get_result(polling_interval_sec=POLL_SECONDS) for handle in handles]
    last = DBOS.enqueue_workflow(QUEUE, gather, found)
    return int(last.get_result(polling_interval_sec=POLL_SECONDS))


@DBOS.workflow()  # type: ignore[untyped-decorator, unused-ignore] # checked where dbos is not installed
def fan_out(items: int) -> int:
    """So many workflows on the queue, and all of their results: the way that its documentation shows."""
    handles = [DBOS.enqueue_workflow(QUEUE, item, number) for number in range(items)]
    return len([handle.get_result(polling_interval_sec=POLL_SECONDS) for handle in handles])


@DBOS.workflow()  # type: ignore[untyped-decorator, unused-ignore] # checked where dbos is not installed
def gather(values: list[int]) -> int:
    """Count them."""
    return len(values)


# --- the worker -----------------------------------------------------------------------------------------------------------------


def _execute(number: int) -> None:
    """An executor, until it is killed."""
    config: DBOSConfig = {
        "name": _NAME,
        "system_database_url": _url(),
        "application_version": _VERSION,
        "executor_id": f"executor-{number}",
        "log_level": "WARNING",
    }
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(QUEUE, polling_interval_sec=POLL_SECONDS)
    signal.pause()


def work(children: int) -> None:
    """So many executors; the first makes the tables before the others come."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for number in range(children):
        multiprocessing.get_context("spawn").Process(target=_execute, args=(number,), daemon=True).start()
        _wait_for_tables()
    signal.pause()


def _wait_for_tables() -> None:
    """Return when a client can enqueue."""
    ends = time.monotonic() + TIMEOUT
    while not ping():
        if time.monotonic() > ends:
            raise TimeoutError("no executor came up")
        time.sleep(0.1)


# --- the client -----------------------------------------------------------------------------------------------------------------

_clients: list[DBOSClient] = []


def _client() -> DBOSClient:
    if not _clients:
        _clients.append(DBOSClient(system_database_url=_url(), application_name=_NAME))
    return _clients[0]


def _enqueue(workflow: Callable[..., Any], *given: Any) -> Any:
    return _client().enqueue(
        {"queue_name": QUEUE, "workflow_name": workflow.__name__, "app_version": _VERSION}, *given
    )


def ping() -> int:
    """Whether there is a queue, which the first executor makes when its tables stand. DBOS itself is not asked before: it complains."""
    try:
        with psycopg.connect(_url()) as connection:
            row = connection.execute("SELECT count(*) FROM dbos.queues WHERE name = %s", (QUEUE,)).fetchone()
            return int(row[0]) if row else 0
    except psycopg.Error:
        return 0


def about() -> dict[str, str]:
    """The peer's version."""
    return {"dbos": version("dbos")}


def warm() -> None:
    """All executors have run something."""
    scatter(200)


def scatter_by_client(items: int) -> float:
    """Seconds from the first call to the last of the results of so many workflows, with a client that may not end meanwhile."""
    begun = time.perf_counter()
    handles = [_enqueue(item, number) for number in range(items)]
    found = [handle.get_result(polling_interval_sec=POLL_SECONDS) for handle in handles]
    seconds = time.perf_counter() - begun
    assert len(found) == items, f"{len(found)} of {items} items"
    return seconds


def scatter(items: int) -> float:
    """Seconds from the call to the result of a workflow that waits for so many on the queue, and survives whoever called it."""
    begun = time.perf_counter()
    found = _enqueue(fan_out, items).get_result(polling_interval_sec=POLL_SECONDS)
    seconds = time.perf_counter() - begun
    assert found == items, f"{found} of {items} items"
    return seconds


def dag(width: int) -> float:
    """Seconds from the call to the last value of a workflow that waits for one, then for many beside each other, then for one."""
    begun = time.perf_counter()
    gathered = _enqueue(fan, width).get_result(polling_interval_sec=POLL_SECONDS)
    seconds = time.perf_counter() - begun
    assert gathered == width, f"{gathered} of {width} workflows"
    return seconds


DEEDS = {
    "ping": ping,
    "about": about,
    "warm": warm,
    "scatter": scatter,
    "scatter_by_client": scatter_by_client,
    "dag": dag,
}

if __name__ == "__main__":
    work(int(sys.argv[1]))
