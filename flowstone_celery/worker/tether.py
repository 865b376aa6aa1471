"""The parent's hold on its keeper process: started, spoken to, started again, let go. No thread, and no call that blocks.

Lines of JSON go to the keeper's standard input. Its end tells the keeper that the parent is gone, so no other process may hold the
pipe: children of a fork let go of it at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from celery.utils.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

_COMMAND: Final = (sys.executable, "-m", "flowstone_celery.worker.keeper_process")
_AGAIN: Final = 1.0
"""Seconds between two starts of a keeper that dies."""
_WAITING_LINES: Final = 1_000
"""Lines kept for a keeper that does not read; the oldest are forgotten, the rows know."""

log = get_logger("flowstone.worker")


class Tether:
    """One keeper process, as its parent holds it."""

    def __init__(self, greeting: Callable[[], dict[str, Any]]) -> None:
        """`greeting` is the first line that a keeper hears: everything it must know, as of now."""
        self._greeting = greeting
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: deque[bytes] = deque(maxlen=_WAITING_LINES)
        self._rest = b""
        self._turn = threading.Lock()
        self._started = 0.0
        self._let_go = False

    @property
    def pid(self) -> int | None:
        """The keeper's process id."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """A keeper runs and has been told everything."""
        self._started = time.monotonic()
        self._lines.clear()
        self._rest = b""
        # A session of its own: a terminal's Ctrl-C is for the worker, which lets its keeper go last.
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            _COMMAND, stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        _tethers.add(self)
        with suppress(BrokenPipeError):
            self._write_all(_line(self._greeting()))
        os.set_blocking(self._fd, False)

    def look(self) -> None:
        """A keeper that died is replaced; what waits is said."""
        if self._let_go or self._process is None:
            return
        code = self._process.poll()
        if code is None:
            self._flush()
        elif time.monotonic() - self._started >= _AGAIN:
            log.warning(
                "FlowStone's keeper process %s ended with %s; a new one starts", self._process.pid, code
            )
            self.drop()
            self.start()

    def say(self, **line: Any) -> None:
        """The keeper hears this line now or, if it is busy, soon. May be called from a signal handler."""
        self._lines.append(_line(line))
        self._flush()

    def let_go(self, timeout: float) -> bool:
        """The keeper has done its last and is gone; after the timeout, in seconds, it is killed. True if it left by itself."""
        self._let_go = True
        process = self._process
        if process is None:
            return True
        self.say(bye=True)
        self.drop()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        return True

    def drop(self) -> None:
        """This process no longer holds the pipe."""
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(OSError):
                self._process.stdin.close()

    @property
    def _fd(self) -> int:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def _write_all(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def _flush(self) -> None:
        """As much as the pipe takes. A turn that another holds is not waited for: that other, or the next look, says it."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            while self._rest or self._lines:
                self._rest = self._rest or self._lines.popleft()
                self._rest = self._rest[os.write(self._fd, self._rest) :]
        except (OSError, ValueError):
            # The pipe is full, or the keeper is gone: the next look knows which.
            return
        finally:
            self._turn.release()


def _line(data: dict[str, Any]) -> bytes:
    # What JSON cannot say (an ssl constant, a path) travels as its text.
    return json.dumps(data, default=str).encode() + b"\n"


_tethers: weakref.WeakSet[Tether] = weakref.WeakSet()


def _drop_all() -> None:
    for tether in list(_tethers):
        tether.drop()


os.register_at_fork(after_in_child=_drop_all)
