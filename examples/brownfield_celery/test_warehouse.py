"""The warehouse's own tests, with a real worker. They know nothing of FlowStone and pass before and after.

cd examples/brownfield_celery
PYTHONPATH=before pytest test_warehouse.py
PYTHONPATH=after pytest test_warehouse.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import warehouse
from celery import group

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_QUEUES = ("-Q", "celery,scales")


@pytest.fixture(scope="module", autouse=True)
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A worker with an embedded beat, as the warehouse runs it."""
    folder: Path = tmp_path_factory.mktemp("worker")
    command = [sys.executable, "-m", "celery", "-A", "warehouse", "worker", "-c", "1", *_QUEUES, "-B"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--schedule", str(folder / "beat")], stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 30
        while not warehouse.app.control.ping(timeout=0.5):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
        yield
    finally:
        process.terminate()
        process.wait(30)


def test_a_result_comes_back() -> None:
    assert warehouse.weigh.delay({"kilograms": 2.5}).get(timeout=10) == 2.5


def test_a_chord_sums_all_parcels() -> None:
    assert warehouse.load([{"kilograms": each} for each in (1, 2, 3.5)]).get(timeout=10) == 6.5


def test_a_group_keeps_its_order() -> None:
    parcels = [{"kilograms": each} for each in (3, 1, 2)]
    assert group(warehouse.weigh.s(each) for each in parcels)().get(timeout=10) == [3, 1, 2]


def test_a_truck_is_booked_at_the_second_try() -> None:
    assert warehouse.book.delay("MAN-7").get(timeout=10) == "MAN-7 booked"


def test_the_schedule_counts_stock() -> None:
    client, deadline = warehouse.app.backend.client, time.monotonic() + 10
    client.delete("warehouse:counted")
    while int(client.get("warehouse:counted") or 0) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
