"""Benchmarks keep the contract of their one JSON line. No figure is judged here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from benchmarks.report import Result
from benchmarks.rounds import interleaved, medians, percentiles, spread

ROOT = Path(__file__).parents[1]
MACHINE = {"cpus", "python", "celery", "load"}
SERVERS = {"postgres", "redis"}
MARK = "BENCHMARK_TEST_MARK"


def run(*words: str, mark: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def marked(mark: str) -> list[psutil.Process]:
    """The processes that inherited the mark."""
    return [each for each in psutil.process_iter() if _environment(each).get(MARK) == mark]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return {}


def line_of(*words: str, mark: str = "") -> dict[str, Any]:
    """The one line that the benchmark printed, which holds all parts of the contract."""
    done = run(*words, "--json", mark=mark)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, lines
    said: dict[str, Any] = json.loads(lines[0])
    assert said.keys() == {"name", "ratio", "ratios", "ours", "peers", "spread", "machine", "notes"}
    assert said["name"] == words[0]
    assert all(math.isfinite(figure) and figure > 0 for figure in said["ours"].values())
    assert said["machine"].keys() >= MACHINE
    return said


def test_import_tells_what_ours_adds_and_compares_nothing() -> None:
    said = line_of("import", "--rounds", "1")
    assert said["ours"].keys() == {"extra_ms", "attach_ms"}
    assert said["peers"]["celery"]["import_ms"] > 0
    assert (said["ratio"], said["ratios"]) == (None, {})


@pytest.mark.worker
def test_chain_compares_a_step_with_a_step_of_celery_and_leaves_no_process() -> None:
    mark = uuid4().hex
    # The peer is Celery alone, which this very interpreter has: the test needs no environment of its own.
    said = line_of("chain", "--steps", "3", "--rounds", "1", "--peer-python", sys.executable, mark=mark)
    assert marked(mark) == []
    ours, theirs = said["ours"]["ms_per_step"], said["peers"]["celery"]["ms_per_step"]
    assert said["ratio"] == said["ratios"]["celery"] == pytest.approx(theirs / ours, rel=0.01)
    assert said["machine"].keys() >= SERVERS


def test_plan_tells_seconds_and_memory_of_a_graph_of_any_size_without_a_peer() -> None:
    said = line_of("plan", "--assets", "120", "--partitions", "7", "--steps", "40", "--rounds", "1")
    assert said["ours"].keys() == {
        "declare_s",
        "plan_s",
        "fresh_all_s",
        "fresh_partitions_s",
        "start_all_s",
        "start_many_s",
        "start_many_peak_mb",
    }
    assert (said["ratio"], said["ratios"], said["peers"]) == (None, {}, {})


@pytest.mark.worker
def test_idle_tells_what_a_worker_and_its_keeper_cost_and_leaves_no_process() -> None:
    mark = uuid4().hex
    said = line_of("idle", "--waiting", "40", "--seconds", "4", mark=mark)
    assert marked(mark) == []
    parts = [said["ours"][f"{part}_cpu_percent"] for part in ("worker", "keeper", "postgres")]
    assert said["ours"]["cpu_percent"] == pytest.approx(sum(parts), abs=0.01)
    assert (said["ratio"], said["peers"]) == (None, {})


@pytest.mark.worker
def test_async_tells_how_near_waiting_steps_come_to_the_ideal() -> None:
    mark = uuid4().hex
    said = line_of("async", "--steps", "40", "--wait", "0.5", "--rounds", "1", mark=mark)
    assert marked(mark) == []
    assert said["ours"]["ideal_percent"] == pytest.approx(50 / said["ours"]["seconds"], rel=0.01)
    assert said["ours"]["seconds"] < 40 * 0.5 / 2
    assert (said["ratio"], said["peers"]) == (None, {})


@pytest.mark.worker
def test_scatter_compares_items_with_a_chord_and_tells_which_peer_is_not_installed() -> None:
    mark = uuid4().hex
    words = ["--items", "60", "--peer-items", "20", "--item-ms", "1", "--async", "--max-concurrent", "10"]
    # This very interpreter has Celery, and no DBOS.
    peers = ["--against", "dbos,celery", "--peer-python", sys.executable]
    said = line_of("scatter", *words, *peers, "--rounds", "1", mark=mark)
    assert marked(mark) == []
    ours, theirs = said["ours"], said["peers"]["celery"]["items_per_s"]
    assert ours["items_per_s"] == pytest.approx(60 / ours["seconds"], rel=0.01)
    assert ours["of_ideal"] == pytest.approx(0.006 / ours["seconds"], rel=0.2)
    assert ours.keys() >= {"coordinator_mb", "worker_mb", "bytes_per_item"}
    assert said["ratios"] == {"dbos": None, "celery": pytest.approx(ours["items_per_s"] / theirs, rel=0.01)}
    assert said["ratio"] is None  # that of the first peer that was named
    missing, fewer = said["notes"]
    assert "pip install dbos" in missing
    assert fewer == "peers ran 20 items in each round, ours 60"


@pytest.mark.worker
def test_dag_compares_a_graph_with_a_canvas() -> None:
    mark = uuid4().hex
    said = line_of("dag", "--width", "4", "--rounds", "1", "--peer-python", sys.executable, mark=mark)
    assert marked(mark) == []
    assert said["ratio"] == pytest.approx(said["peers"]["celery"]["ms"] / said["ours"]["ms"], rel=0.01)
    assert said["notes"] == []


def test_barrier_tells_arrivals_from_many_connections_beside_bare_rows() -> None:
    mark = uuid4().hex
    said = line_of("barrier", "--settlers", "4", "--items", "10", "--range", "3", "--rounds", "1", mark=mark)
    assert marked(mark) == []
    ours = said["ours"]
    assert ours.keys() == {"per_s", "p50_ms", "p99_ms", "one_settler_per_s", "bare_per_s", "of_bare"}
    assert ours["of_bare"] == pytest.approx(ours["per_s"] / ours["bare_per_s"], abs=0.01)
    assert (said["ratio"], said["peers"]) == (None, {})


def test_peer_that_there_is_not_is_refused_by_name() -> None:
    done = run("scatter", "--against", "celery,airflow")
    assert done.returncode == 2
    assert "airflow" in done.stderr


def test_missing_environment_of_the_peers_names_the_way_out(tmp_path: Path) -> None:
    done = run("latency", "--peer-python", str(tmp_path / "python"))
    assert done.returncode == 1
    assert "make bench-venv" in done.stderr
    assert "Traceback" not in done.stderr


def test_sides_take_turns() -> None:
    seen: list[str] = []

    def turn(side: str, value: float) -> dict[str, float]:
        seen.append(side)
        return {"ms": value}

    found = interleaved(2, {"ours": lambda: turn("ours", 1), "celery": lambda: turn("celery", 2)})
    assert seen == ["ours", "celery", "ours", "celery"]
    assert found == {"ours": [{"ms": 1}, {"ms": 1}], "celery": [{"ms": 2}, {"ms": 2}]}


def test_ratio_above_one_is_better_than_the_peer() -> None:
    result = Result("chain", {"ours": [{"ms": 1.0}], "celery": [{"ms": 3.0}]}, "ms")
    assert result.ratios == {"celery": 3.0}


def test_ratio_of_a_rate_is_above_one_where_ours_is_greater() -> None:
    rounds = {"ours": [{"items_per_s": 300.0}], "celery": [{"items_per_s": 100.0}]}
    assert Result("scatter", rounds, "items_per_s", more_is_better=True).ratios == {"celery": 3.0}


def test_peer_without_rounds_has_no_ratio_and_no_figures() -> None:
    said = Result("scatter", {"ours": [{"ms": 1.0}], "dbos": []}, "ms").to_dict()
    assert (said["ratio"], said["ratios"], said["peers"]) == (None, {"dbos": None}, {})


def test_figures_are_medians_with_their_spread() -> None:
    rounds = [{"ms": 5.0}, {"ms": 1.0}, {"ms": 2.0}]
    assert medians(rounds) == {"ms": 2.0}
    assert spread(rounds) == {"ms": [1.0, 5.0]}


def test_percentiles_are_of_times_that_were_measured() -> None:
    seconds = [number / 1000 for number in range(100, 0, -1)]
    assert percentiles(seconds) == pytest.approx({"p50_ms": 50.0, "p99_ms": 99.0})
    assert percentiles([0.004]) == pytest.approx({"p50_ms": 4.0, "p99_ms": 4.0})
