"""Which Python files of a folder have changed since the last look; by their times, so that it works on any file system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Watcher:
    """Looks at a folder's *.py files when it is asked."""

    def __init__(self, folder: Path) -> None:
        """Remember how the files are now."""
        self._folder = folder
        self._seen = self._times()

    def changed(self) -> list[Path]:
        """The files that were written, added or removed since the last look, by name."""
        before, self._seen = self._seen, self._times()
        return sorted(
            path for path in before.keys() | self._seen.keys() if before.get(path) != self._seen.get(path)
        )

    def _times(self) -> dict[Path, int]:
        return {path: time for path in _sources(self._folder) if (time := _written(path)) is not None}


def _sources(folder: Path) -> Iterator[Path]:
    """All *.py files below, except in hidden folders, caches and virtual environments."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if _is_source(Path(place, name))]
        yield from (Path(place, name) for name in files if name.endswith(".py"))


def _is_source(folder: Path) -> bool:
    hidden = folder.name.startswith((".", "__pycache__", "node_modules"))
    return not hidden and not (folder / "pyvenv.cfg").exists()


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # removed between the listing and the look
        return None
