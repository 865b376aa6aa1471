"""The tests have teeth: each seeded fault makes the tests that name its rule fail, and without a fault they pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from guard.seeded import FAULTS, Seeded

from flowstone_celery.testing.databases import Databases

ROOT = Path(__file__).parents[2]
SIDE_BY_SIDE = 2
PARAMETERS = [
    pytest.param(each, id=each.name, marks=[pytest.mark.faults] if each.long else []) for each in FAULTS
]
pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Verdict:
    """How a session of these tests came out."""

    code: int
    failed: dict[str, list[str]]
    """The tests that failed, each with the kinds of its errors."""
    story: str


@dataclass(frozen=True)
class Bench:
    """Where the sessions run: on the servers of this session."""

    databases: Databases
    folder: Path

    def run(self, tests: list[str], fault: Seeded | None = None) -> Verdict:
        """The tests in a process of their own, with this fault in it."""
        report = self.folder / f"{uuid4().hex}.json"
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "guard.plugin", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "60",
             "--tb", "short", *tests],
            cwd=ROOT,
            env={
                **ours,
                "PYTHONPATH": str(ROOT / "tests"),
                "FLOWSTONE_TEST_DATABASE_URL": self.databases.admin_url,
                "FLOWSTONE_TEST_BROKER_URL": self.databases.broker_url,
                "SEEDED_FAULT": fault.name if fault else "",
                "SEEDED_REPORT": str(report),
                "SEEDED_TEMPLATE": self.databases.template,
            },
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )  # fmt: skip
        failed = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
        return Verdict(done.returncode, failed, done.stdout[-6_000:] + done.stderr[-2_000:])


@pytest.fixture(scope="module")
def bench(flowstone_databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(flowstone_databases, tmp_path_factory.mktemp("guard"))


@pytest.fixture(scope="module")
def verdicts(bench: Bench, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Verdict]]]:
    """Those that were asked for are on their way, a few side by side, one fault for each process."""
    asked = [
        each.callspec.params["fault"]
        for each in request.session.items
        if "verdicts" in getattr(each, "fixturenames", ())
    ]
    pool = ThreadPoolExecutor(SIDE_BY_SIDE)
    yield {each.name: pool.submit(bench.run, list(each.caught_by), each) for each in asked}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("fault", PARAMETERS)
def test_a_fault_is_seen_by_the_tests_that_name_its_rule(
    verdicts: dict[str, Future[Verdict]], fault: Seeded
) -> None:
    verdict = verdicts[fault.name].result()
    assert verdict.code == 1, (
        f"the tests did not fail, or did not run (pytest ended with {verdict.code}):\n{verdict.story}"
    )
    for test in fault.caught_by:
        kinds = [kind for name, each in verdict.failed.items() if name.startswith(test) for kind in each]
        assert kinds, f"{test} does not see it:\n{verdict.story}"
    wrong = {kind for kinds in verdict.failed.values() for kind in kinds} - set(fault.told_as)
    assert not wrong, f"they failed for another reason ({wrong}):\n{verdict.story}"


def _named(*, long: bool) -> list[str]:
    return sorted({test for fault in FAULTS if fault.long <= long for test in fault.caught_by})


def test_without_a_fault_the_same_tests_pass(bench: Bench) -> None:
    verdict = bench.run(_named(long=False))
    assert (verdict.code, verdict.failed) == (0, {}), verdict.story


@pytest.mark.faults
def test_without_a_fault_all_of_them_pass(bench: Bench) -> None:
    verdict = bench.run(_named(long=True))
    assert (verdict.code, verdict.failed) == (0, {}), verdict.story


def test_every_fault_has_a_name_of_its_own_and_changes_something() -> None:
    assert len({each.name for each in FAULTS}) == len(FAULTS)
    assert all(each.caught_by and bool(each.sql) != (each.code is not None) for each in FAULTS)
