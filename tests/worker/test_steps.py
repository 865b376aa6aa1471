"""Steps on a prefork worker: by wake-up, once, inline, and as monitors see them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from worker.conftest import Site, Worker, until

pytestmark = pytest.mark.worker


@pytest.fixture
def worker(site: Site) -> Worker:
    return site.start()


def test_a_step_runs_by_its_wakeup(site: Site, worker: Worker) -> None:
    run = site.fs.run("quick", partition="one")
    assert run.get(timeout=10) == "one"
    assert len(site.notes("quick-one")) == 1
