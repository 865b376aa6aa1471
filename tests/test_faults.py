"""Crash points: where they are, what they do, and that they are nothing unless armed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import timeit
from pathlib import Path

import pytest

from flowstone_celery import faults
from flowstone_celery.errors import ConfigError
from flowstone_celery.faults import POINTS, FaultInjectedError, arm, armed, disarm, parse, point

PACKAGE = Path(faults.__file__).parent


@pytest.fixture(autouse=True)
def _disarmed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FLOWSTONE_ENV", raising=False)
    monkeypatch.setattr(faults, "_cut", None)
    disarm()
    yield
    disarm()


def _run(code: str, fault: str, **env: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "FLOWSTONE_FAULT": fault, **env}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=False
    )


HIT_THREE_TIMES = (
    "from flowstone_celery.faults import point\n"
    "for n in range(3): point('settle.after_commit'); print(n, flush=True)"
)


def test_kill9_ends_a_real_process_at_the_hit_that_was_named() -> None:
    ended = _run(HIT_THREE_TIMES, "claim.after_commit:1:raise, settle.after_commit:2:kill9")
    assert (ended.returncode, ended.stdout) == (-9, "0\n")


def test_once_file_lets_only_one_process_die(tmp_path: Path) -> None:
    fault = f"settle.after_commit:1:kill9:{tmp_path}/once: upon a time"
    assert [_run(HIT_THREE_TIMES, fault).returncode for _ in range(3)] == [-9, 0, 0]


def test_production_refuses_at_the_first_point() -> None:
    ended = _run(HIT_THREE_TIMES, "settle.after_commit:2:kill9", FLOWSTONE_ENV="production")
    assert ended.returncode == 1
    assert "cannot be armed in production" in ended.stderr


def test_production_without_a_fault_runs_on() -> None:
    assert _run(HIT_THREE_TIMES, "", FLOWSTONE_ENV="production").returncode == 0


def test_hits_are_counted_in_each_forked_process_anew() -> None:
    code = (
        "import os\nfrom flowstone_celery.faults import point\npoint('user.start')\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    point('user.start'); os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)\n"
        "point('user.start')"
    )
    ended = _run(code, "user.start:2:kill9")
    assert (ended.stdout, ended.returncode) == ("0\n", -9)


def test_arming_lasts_for_the_block_and_fires_at_the_nth_hit_only() -> None:
    with arm("user.end", nth=2) as fault:
        point("user.end")
        point("user.start")
        with pytest.raises(FaultInjectedError, match=r"user\.end"):
            point("user.end")
        point("user.end")
        assert fault.hits == 3
        assert armed() == (fault,)
    assert armed() == ()
    point("user.end")


def test_blocks_nest() -> None:
    with arm("user.start") as outer, arm("user.start", nth=2) as inner:
        with pytest.raises(FaultInjectedError):
            point("user.start")
        assert armed() == (outer, inner)
    assert armed() == ()


def test_sleep_waits_for_its_seconds() -> None:
    with arm("keeper.beat", "sleep=0.05"):
        begun = time.monotonic()
        point("keeper.beat")
        assert time.monotonic() - begun >= 0.05


def test_drop_conn_calls_what_the_database_room_registered() -> None:
    cuts = []
    with arm("settle.before_commit", "drop_conn"):
        faults.on_drop_connection(lambda: cuts.append(1))
        point("settle.before_commit")
    assert cuts == [1]


def test_drop_conn_without_a_database_says_so() -> None:
    with arm("settle.before_commit", "drop_conn"), pytest.raises(ConfigError, match="no database"):
        point("settle.before_commit")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("settle.after_comit:1:raise", "Did you mean 'settle.after_commit'"),
        ("user.start", "point:nth:action"),
        ("user.start:x:raise", "point:nth:action"),
        ("user.start:0:raise", "counted from 1"),
        ("user.start:1:explode", "cannot do 'explode'"),
        ("user.start:1:sleep", "cannot do 'sleep'"),
        ("user.start:1:sleep=long", "cannot do 'sleep=long'"),
    ],
)
def test_what_cannot_be_armed_is_refused_with_how(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse(text)


def test_arm_refuses_unknown_points_and_production(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'user\.start'"), arm("user.strat"):
        pass
    monkeypatch.setenv("FLOWSTONE_ENV", "Production")
    with pytest.raises(ConfigError, match="production"), arm("user.start"):
        pass


def test_every_point_in_the_code_has_its_sentence() -> None:
    named = {
        name
        for path in PACKAGE.rglob("*.py")
        for call in re.findall(r"\bpoint\(([^)]*)\)", path.read_text())
        for name in re.findall(r'"([a-z_]+(?:\.[a-z_]+)+)"', call)
    }
    assert named <= set(POINTS)
    assert all(sentence.endswith(".") for sentence in POINTS.values())


def test_an_unarmed_point_costs_less_than_100_nanoseconds() -> None:
    point("user.start")
    best = (
        min(timeit.repeat('point("user.start")', globals={"point": point}, number=100_000, repeat=7))
        / 100_000
    )
    assert best < 100e-9
