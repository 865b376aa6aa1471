"""The keeper process of one worker: `python -m flowstone_celery.worker.keeper_process`, told what to do on standard input.

First line: everything it must know. Further lines: `node` (queues, tasks or slots changed), `note` (say on a row why it is not
running), `stop` (the stop is announced), `bye` (the pool is gone). The end of the input means that the parent is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flowstone_celery.config import Settings
from flowstone_celery.core.interrupts import Board
from flowstone_celery.core.keeper import Keeper
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.workers import Node
from flowstone_celery.db.database import Database
from flowstone_celery.db.listening import Listener
from flowstone_celery.errors import DatabaseUnavailable, FlowStoneError, SchemaMismatch
from flowstone_celery.telemetry import configure_logging, emit, set_strict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flowstone_celery.core.model import Carrier, WakeUp

_LONGEST_SLEEP: Final = 0.5
_HEED_EVERY: Final = 0.02
_ORPHAN_GRACE: Final = 5.0
"""Seconds from SIGTERM to SIGKILL for processes of the pool whose parent is gone."""
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main() -> int:
    """Keep the node until its parent says goodbye or is gone."""
    for number in _IGNORED:
        # A terminal, a supervisor or a container signals everybody; the parent decides when its keeper goes.
        signal.signal(number, signal.SIG_IGN)
    ears = Ears(sys.stdin.fileno())
    greeting = next(ears.wait_for_first(), None)
    if greeting is None:
        return 1
    KeeperProcess(greeting, ears).run()
    return 0


class Ears:
    """Lines of JSON from a pipe, without waiting for more than is there."""

    def __init__(self, fd: int) -> None:
        """Listen to this descriptor."""
        self._fd = fd
        self._rest = b""
        self.ended = False

    def wait_for_first(self) -> Iterator[dict[str, Any]]:
        """The first line, however long it takes; nothing if the input ends before."""
        while not self.ended:
            yield from self.hear(60.0)

    def hear(self, seconds: float, beside: Sequence[int] = ()) -> list[dict[str, Any]]:
        """The lines that came, as soon as there is one; none after so many seconds, or when one of the other sockets has news."""
        if self.ended:
            time.sleep(seconds)
            return []
        if self._fd not in select.select([self._fd, *beside], [], [], seconds)[0]:
            return []
        data = os.read(self._fd, 1 << 16)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]


class BrokerLater:
    """The Celery carrier, made when there is something to carry: a keeper starts without waiting for Celery's import."""

    def __init__(self, broker: Mapping[str, Any], settings: Settings) -> None:
        """Publish to this broker."""
        self._broker = broker
        self._settings = settings
        self._carrier: Carrier | None = None

    def send(self, wakeups: Sequence[WakeUp]) -> None:
        """Send all of them."""
        if self._carrier is None:
            self._carrier = self._made()
        self._carrier.send(wakeups)

    def _made(self) -> Carrier:
        from celery import Celery

        from flowstone_celery.worker.carrier import CeleryCarrier

        app = Celery("flowstone-keeper", set_as_current=False)
        app.conf.update({name: value for name, value in self._broker.items() if value is not None})
        return CeleryCarrier(app, self._settings)


class KeeperProcess:
    """A keeper, its input, and the end of both."""

    def __init__(self, greeting: Mapping[str, Any], ears: Ears) -> None:
        """Prepare from the first line."""
        settings = Settings.from_dict(greeting["settings"])
        configure_logging(settings.log)
        set_strict(settings.env != "production")
        self._ears = ears
        self._parent = os.getppid()
        self._board = Board(Path(greeting["board"]))
        self._database = Database(
            greeting["database"]["url"],
            schema=greeting["database"]["schema"],
            pool_size=2,
            pooler=settings.database_pooler,
            application="flowstone-keeper",
        )
        node = Node.from_dict(greeting["node"])
        carrier = BrokerLater(greeting["broker"], settings)
        self._keeper = Keeper(
            self._database, settings, carrier, node, self._board, may_kill=greeting["may_kill"]
        )
        self._lease = settings.lease_seconds
        # A transaction-mode pooler gives each statement another connection: nobody would be listening.
        self._listener = Listener(self._database) if settings.database_pooler == "session" else None
        self._heed_again = 0.0
        self._unreported: Node | None = node
        self._notes: list[dict[str, Any]] = []
        self._stop_asked = bool(greeting.get("stop"))
        self._bye = False
        self._told: set[tuple[int, signal.Signals]] = set()

    def run(self) -> None:
        """Keep the node for its life, then say that it is gone."""
        node = self._keeper.node
        emit("flowstone.keeper.start", node=node.name, pid=node.pid)
        pause = 0.0
        while not self._bye and not self._parent_is_gone():
            self._hear(min(pause, _LONGEST_SLEEP))
            pause = self._act()
        if not self._bye:
            self._outlive_parent()
        self._leave()
        emit(
            "flowstone.keeper.stop",
            node=node.name,
            pid=node.pid,
            reason="stop" if self._bye else "parent gone",
        )

    def _hear(self, seconds: float) -> None:
        """What the parent says, and what Postgres tells of others' commits: many of these within a moment are one look."""
        rest = self._heed_again - time.monotonic()
        commits = [] if self._listener is None or rest > 0 else self._listener.sockets
        for line in self._ears.hear(min(seconds, rest) if rest > 0 else seconds, commits):
            self._take(line)
        if self._listener is not None and self._listener.heard():
            self._heed_again = time.monotonic() + _HEED_EVERY
            self._keeper.hear()

    def _parent_is_gone(self) -> bool:
        return self._ears.ended or os.getppid() != self._parent

    def _take(self, line: Mapping[str, Any]) -> None:
        if "node" in line:
            self._unreported = Node.from_dict(line["node"])
        if "note" in line:
            self._notes.append(line["note"])
        self._stop_asked = self._stop_asked or bool(line.get("stop"))
        self._bye = self._bye or bool(line.get("bye"))

    def _act(self) -> float:
        """Do what was asked and what is due; answers the seconds until the next look."""
        try:
            self._pass_on()
            return self._keeper.step()
        except DatabaseUnavailable:
            return _LONGEST_SLEEP
        except FlowStoneError as error:
            if isinstance(error, SchemaMismatch) and "oldest_code" in error.facts:
                # The database was outgrown before this keeper came: not even a beat is for this code to write.
                self._board.retire(f"is too old for the database: {error.message}")
            # An older schema, for instance: a migration may mend it while we wait.
            emit(
                "flowstone.error",
                type=type(error).__name__,
                code=error.code,
                message=str(error),
                retryable=True,
                count=1,
            )
            return 5.0

    def _pass_on(self) -> None:
        if self._unreported is not None:
            self._keeper.report(self._unreported)
            self._unreported = None
        while self._notes:
            self._database.first(SQL["note"], **self._notes[0])
            self._notes.pop(0)
        if self._stop_asked and not self._keeper.stop_announced:
            self._keeper.announce_stop()
        if self._listener is not None:
            self._listener.open()

    # --- the end ----------------------------------------------------------------------------------------------------------------

    def _outlive_parent(self) -> None:
        """The parent fell: its processes, if any live on, are asked to go, then made to; what they held is released."""
        self._keeper.parent_gone = True
        fallen = time.monotonic()
        while time.monotonic() < fallen + max(self._lease, 2 * _ORPHAN_GRACE):
            late = time.monotonic() > fallen + _ORPHAN_GRACE
            with suppress(DatabaseUnavailable):
                if not self._send(signal.SIGKILL if late else signal.SIGTERM):
                    return
            time.sleep(min(self._act(), 0.1))

    def _send(self, number: signal.Signals) -> int:
        orphans = self._keeper.own_processes()
        fresh = [pid for pid in orphans if (pid, number) not in self._told]
        for pid in fresh:
            self._told.add((pid, number))
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(orphans)

    def _leave(self) -> None:
        if self._stop_asked:
            self._keeper.stop_announced = True
        with suppress(DatabaseUnavailable):
            self._keeper.leave()
        if self._listener is not None:
            self._listener.close()
        self._database.dispose()
        with suppress(OSError):
            self._board.remove()


if __name__ == "__main__":
    sys.exit(main())
