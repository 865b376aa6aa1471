"""`flowstone demo`, as a newcomer starts it: by itself, with a kill in the middle, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4
from xml.etree import ElementTree as ET

import psutil
import pytest

from flowstone_celery.embedded import servers

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.worker

_LONGEST = 60.0
_MARK = "DEMO_UNDER_TEST"


class Demo:
    """One demo in a folder of its own; every process that descends from it carries its mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid4().hex
        self.process: subprocess.Popen[str] | None = None

    def start(self, **more: str) -> subprocess.Popen[str]:
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLOWSTONE_", "CELERY_"))
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flowstone_celery.cli.main", "demo"],
            cwd=self.folder,
            env={**ours, _MARK: self.mark, "PYTHONUNBUFFERED": "1", **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self.process

    def left(self) -> list[str]:
        """The processes that still run: by the mark, and servers by the folder of their data."""
        return [" ".join(_command(each)) for each in psutil.process_iter() if self._is_ours(each)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            marked = process.environ().get(_MARK) == self.mark
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        return marked or any(str(self.folder) in word for word in _command(process))


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    found = Demo(tmp_path)
    yield found
    if found.process and found.process.poll() is None:
        found.process.kill()
        found.process.wait()
    servers.down(tmp_path / ".flowstone")


def test_the_demo_survives_its_kill_and_leaves_nothing(demo: Demo) -> None:
    begun = time.monotonic()
    said, _ = demo.start().communicate(timeout=110)
    took = time.monotonic() - begun
    assert demo.process
    assert demo.process.returncode == 0, said
    assert took < _LONGEST, said
    assert demo.left() == []
    lost = re.findall(
        r"^! lease lost: hand (\d+) of stdlib\.files was held by (worker-\d)", said, re.MULTILINE
    )
    taken = re.findall(r"^! taken over: hand (\d+) of stdlib\.files by (worker-\d)", said, re.MULTILINE)
    assert lost
    assert {step for step, _ in lost} == {step for step, _ in taken}
    assert not {worker for _, worker in lost} & {worker for _, worker in taken}
    items = re.search(r"^\S stdlib\.files scatter completed: ([\d,]+)/([\d,]+) items$", said, re.MULTILINE)
    assert items
    assert items[1] == items[2]
    assert "The doctor finds every invariant to hold" in said
    assert len(re.findall(r"^  .*flowstone\S* .*\(", said, re.MULTILINE)) == 3
    _check_page((demo.folder / ".flowstone/demo/report.html").read_text(encoding="utf-8"))


def _check_page(page: str) -> None:
    """Over a thousand files, four charts that are well-formed, nothing from elsewhere, the lost attempts in the timeline."""
    files = re.search(r"([\d,]+) files, ", page)
    assert files
    assert int(files[1].replace(",", "")) > 1000
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 4
    assert 'class="lost"' in charts[0]
    assert all(len(list(ET.fromstring(chart))) > 3 for chart in charts)
    assert not re.search(r"<script|<link|<img|src=|url\(|@import", page)


def test_ctrl_c_leaves_nothing(demo: Demo) -> None:
    process = demo.start()
    assert process.stdout
    for line in process.stdout:
        if "stdlib.files waiting" in line:
            break
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert demo.left() == []


def test_a_run_that_fails_is_told_with_the_logs_and_servers_that_were_up_stay_up(demo: Demo) -> None:
    home = demo.folder / ".flowstone"
    servers.up(home, durable=False)
    said, _ = demo.start(FLOWSTONE_FAULT="user.start:1:kill9", FLOWSTONE_CRASH_LIMIT="1").communicate(
        timeout=110
    )
    assert demo.process
    assert demo.process.returncode == 1, said
    assert "FS-2090 the run failed" in said
    assert "The end of " in said
    assert "Traceback" not in said.partition("FS-2090")[0]
    assert servers.find(home)
    servers.down(home)
    assert demo.left() == []
