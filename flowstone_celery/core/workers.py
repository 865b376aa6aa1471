"""Who does the work: nodes, worker processes, and the id under which a process claims."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from flowstone_celery.core.model import PROTOCOL, Place
from flowstone_celery.core.statements import SQL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowstone_celery.db.database import Database


@dataclass(frozen=True, slots=True)
class Node:
    """One worker node as it reports itself: a Celery worker with its pool, or a process that works inline."""

    key: UUID
    name: str
    pid: int
    pool: str
    queues: tuple[str, ...]
    knows: tuple[str, ...]
    slots: int
    code_version: str | None = None

    @staticmethod
    def inline(queue: str, knows: tuple[str, ...]) -> Node:
        """This process as a node of its own."""
        return Node(uuid4(), f"inline@{os.uname().nodename}", os.getpid(), "inline", (queue,), knows, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, for the keeper's standard input."""
        return {
            "key": str(self.key),
            "name": self.name,
            "pid": self.pid,
            "pool": self.pool,
            "queues": list(self.queues),
            "knows": list(self.knows),
            "slots": self.slots,
            "code_version": self.code_version,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Node:
        """Read `to_dict` back."""
        return Node(
            UUID(data["key"]),
            data["name"],
            data["pid"],
            data["pool"],
            tuple(data["queues"]),
            tuple(data["knows"]),
            data["slots"],
            data.get("code_version"),
        )

    def with_queues(self, queues: tuple[str, ...]) -> Node:
        """The same node listening on other queues."""
        return replace(self, queues=queues)


def report_node(database: Database, node: Node, *, keeper_pid: int, lease: float) -> bool:
    """The node's row says what it listens to and knows; False if the node had been declared gone."""
    # Here, for it brings SQLAlchemy, and whoever only declares comes by this module too.
    from flowstone_celery.db import schema

    row = database.first(
        SQL["register_node"],
        node=node.key,
        name=node.name,
        place=Place.here().place,
        pid=node.pid,
        keeper_pid=keeper_pid,
        pool=node.pool,
        queues=list(node.queues),
        knows=list(node.knows),
        slots=node.slots,
        protocol=PROTOCOL,
        code_version=node.code_version,
        schema_version=schema.VERSION,
        lease=lease,
    )
    return row is not None


class WorkerProcess:
    """This process's row in `workers`: written on first use, anew after a fork."""

    def __init__(self, database: Database, node_key: UUID, node_name: str, lease: float) -> None:
        """Belong to this node; the lease, in seconds, is extended by its keeper."""
        self._database = database
        self._node_key = node_key
        self._node_name = node_name
        self._lease = lease
        self._id = 0
        self._pid = 0
        self._lock = threading.Lock()

    @property
    def id(self) -> int:
        """The id under which this process claims."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._id = self._register()
                    self._pid = os.getpid()
        return self._id

    def is_forgotten(self) -> bool:
        """Whether the row is gone, as after a failover or a restore; then the next use writes a new one."""
        if self._database.first(SQL["worker_is_known"], worker=self.id) is not None:
            return False
        self._pid = 0
        return True

    def _register(self) -> int:
        here = Place.here()
        row = self._database.first(
            SQL["register_worker"],
            node=self._node_key,
            name=self._node_name,
            place=here.place,
            pid=here.pid,
            pid_started=here.pid_started,
            lease=self._lease,
        )
        assert row is not None
        found: int = row["id"]
        return found
