"""The examples run, say what stands beside them, and stay small; a project that gains FlowStone stays as it was."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowstone_celery.config import Settings
    from flowstone_celery.testing.kit import TestKit

EXAMPLES = Path(__file__).parent.parent / "examples"
BROWNFIELD = EXAMPLES / "brownfield_celery"

_LONGEST = 120
_SETTINGS = """
import json, warehouse
app = warehouse.app
app.finalize()
print(json.dumps({
    "settings": dict(app.conf.table(with_defaults=True, censored=False)),
    "changes": dict(app.conf.changes),
    "task": {name: repr(getattr(app.Task, name)) for name in vars(app.Task) if name.islower() and name[0] != "_"},
    "tasks": sorted(app.tasks),
    "queues": sorted(app.amqp.queues),
    "routes": {name: app.amqp.router.route({}, name)["queue"].name for name in sorted(app.tasks)},
    "beat": app.conf.beat_schedule,
}, default=repr, sort_keys=True))
"""
_DURABLE = """
import warehouse
run = warehouse.manifest.delay("2026-11-20")
print(run.get(timeout=30), warehouse.fs.status("manifest", partition="2026-11-20").state)
"""


def run(*command: str, cwd: Path, env: dict[str, str], timeout: float = 60.0) -> str:
    """What the command wrote; it ended with 0."""
    done = subprocess.run(
        command, cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def plain_environment(**more: str) -> dict[str, str]:
    """Ours without any setting of FlowStone or Celery."""
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith(("FLOWSTONE_", "CELERY_"))
    }
    return {**ours, "PYTHONPATH": "", **more}


@pytest.mark.parametrize("page", sorted(EXAMPLES.rglob("*.py")), ids=lambda page: page.name)
def test_an_example_fits_on_a_few_screens(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= _LONGEST


@pytest.mark.parametrize("name", ["hello_assets", "daily_sales"])
def test_an_example_says_what_stands_beside_it(tmp_path: Path, name: str) -> None:
    said = run(sys.executable, str(EXAMPLES / f"{name}.py"), cwd=tmp_path, env=plain_environment())
    assert said == (EXAMPLES / f"{name}.txt").read_text(encoding="utf-8")
    assert not list(tmp_path.iterdir())


# --- the scraper ------------------------------------------------------------------------------------------------------------------


@pytest.mark.worker
def test_the_scraper_gathers_a_site_with_pages_that_are_busy_and_pages_that_are_gone(tmp_path: Path) -> None:
    env = plain_environment(SCRAPER_PAGES="150", TMPDIR=str(tmp_path))
    said = run(sys.executable, str(EXAMPLES / "scraper" / "main.py"), cwd=tmp_path, env=env, timeout=110)
    assert "scraper.pages waiting: 150 items" in said
    assert "scraper.pages scatter partial_failure: 150/150 items · 2 failed" in said
    gone = re.findall(r"^(\d+) +\S+/(\d+) +✘ failed +1 .* answered 410$", said, re.MULTILINE)
    assert gone == [("72", "73"), ("145", "146")]  # without another attempt
    table = said.partition("$ flowstone asset get report")[2]
    counts = re.findall(r"(news|people|prices|recipes) +(\d+) +\d+", table)
    assert counts == [("news", "37"), ("people", "37"), ("prices", "37"), ("recipes", "37")]
    assert "gone: 2" in table
    assert not list(tmp_path.iterdir())


# --- the shop ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's module, imported as its workers would."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "shop"))
    import shop as module

    yield module
    sys.modules.pop("shop")


@pytest.fixture
def flowstone_app(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("shop").fs


def test_the_shop_makes_a_day_with_all_that_it_needs(fs_test: TestKit, shop: Any) -> None:
    assert fs_test.run(shop.digest, partition="2026-11-20").get() == _digest(shop, "2026-11-20")
    assert fs_test.fs.get(shop.revenue, partition="2026-11-20") == {"cake": 56, "mug": 168, "tea": 48}


def test_the_shop_skips_what_is_no_day(fs_test: TestKit, shop: Any) -> None:
    done = fs_test.run(shop.digest)
    assert {step["status"] for step in done.steps()} == {"skipped"}


def _digest(shop: Any, day: str) -> str:
    class Day:
        partition = day

    orders = shop.orders(Day)
    return str(shop.digest(orders, shop.revenue(orders)))


# --- brownfield -------------------------------------------------------------------------------------------------------------------


def warehouse_environment(which: str, settings: Settings) -> dict[str, str]:
    """What the warehouse finds around it: its own broker and results, and FlowStone's database."""
    assert settings.database_url
    assert settings.redis_url
    broker = settings.redis_url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=", 1)
    return plain_environment(
        PYTHONPATH=str(BROWNFIELD / which),
        WAREHOUSE_BROKER=broker,
        WAREHOUSE_RESULTS=broker,
        FLOWSTONE_DATABASE_URL=settings.database_url,
        FLOWSTONE_LEASE_SECONDS="2",
    )


def test_the_project_gains_six_lines_and_loses_none() -> None:
    before, after = (
        (BROWNFIELD / which / "warehouse.py").read_text(encoding="utf-8").splitlines()
        for which in ("before", "after")
    )
    changes = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert all(line.startswith("+") for line in changes)
    assert len([line for line in changes if line[2:].strip()]) <= 6


def test_attaching_changes_nothing_app_wide(flowstone_settings: Settings, tmp_path: Path) -> None:
    before, after = (
        json.loads(
            run(
                sys.executable,
                "-c",
                _SETTINGS,
                cwd=tmp_path,
                env=warehouse_environment(which, flowstone_settings),
            )
        )
        for which in ("before", "after")
    )
    assert set(after["tasks"]) - set(before["tasks"]) == {"warehouse.manifest"}
    after["tasks"].remove("warehouse.manifest")
    assert after["routes"].pop("warehouse.manifest") == "celery"
    assert after == before


@pytest.mark.worker
@pytest.mark.parametrize("which", ["before", "after"])
def test_the_project_s_own_tests_pass(which: str, flowstone_settings: Settings) -> None:
    env = warehouse_environment(which, flowstone_settings)
    said = run(
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "test_warehouse.py",
        cwd=BROWNFIELD,
        env=env,
        timeout=100,
    )
    assert "5 passed" in said


@pytest.mark.worker
def test_the_new_asset_is_made_by_the_project_s_worker(flowstone_settings: Settings, tmp_path: Path) -> None:
    env, log = warehouse_environment("after", flowstone_settings), tmp_path / "log"
    command = [sys.executable, "-m", "celery", "-A", "warehouse", "worker", "-c", "1", "-Q", "celery,scales"]
    with log.open("wb") as output:
        worker = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        said = run(sys.executable, "-c", _DURABLE, cwd=tmp_path, env=env)
    finally:
        worker.terminate()
        worker.wait(30)
    assert said.strip() == "{'day': '2026-11-20', 'truck': 'MAN-7', 'kilograms': 12.5} success", (
        log.read_text()
    )
