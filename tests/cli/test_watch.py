"""Which sources have changed since the last look."""

from __future__ import annotations

import os
from pathlib import Path

from flowstone_celery.cli.watch import Watcher


def test_written_added_and_removed_files_are_told_once(tmp_path: Path) -> None:
    for name in ("a.py", "b.py", "c.txt"):
        (tmp_path / name).write_text("1")
    watcher = Watcher(tmp_path)
    assert watcher.changed() == []
    os.utime(tmp_path / "a.py", ns=(1, 1))
    (tmp_path / "b.py").unlink()
    (tmp_path / "c.txt").write_text("2")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.py").write_text("1")
    assert [path.name for path in watcher.changed()] == ["a.py", "b.py", "d.py"]
    assert watcher.changed() == []


def test_hidden_folders_caches_and_environments_are_passed_over(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    for name in (".git", "__pycache__", "node_modules", "env"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.py").write_text("1")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    assert watcher.changed() == []
