"""A wire between a worker and its broker that a test can cut, freeze and mend."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress


class Proxy:
    """Forwards one local port to another, one thread for each connection."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._closed = threading.Event()
        self.refuses = False
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Every connection breaks at once; new ones are welcome, unless `refuses`. Answers how many broke."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def freeze(self) -> None:
        """Connections stay, bytes do not come through, and new connections get no answer."""
        self._flows.clear()

    def thaw(self) -> None:
        """What was held back comes through."""
        self._flows.set()

    def close(self) -> None:
        """Nothing is forwarded any more."""
        self._closed.set()
        self._flows.set()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self.refuses:
                near.close()
                continue
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        self._flows.wait()
        with near, socket.create_connection(self._target) as far:
            pair = near, far
            with self._lock:
                self._pairs.add(pair)
            with suppress(OSError):
                self._carry(near, far)
            with self._lock:
                self._pairs.discard(pair)

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        while not self._closed.is_set():
            for end in select.select([near, far], [], [], 1)[0]:
                data = end.recv(1 << 16)
                self._flows.wait()
                if not data:
                    return
                other[end].sendall(data)
