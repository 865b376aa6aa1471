"""The servers of a project are up, found, or down: the door of the room."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flowstone_celery.embedded import daemons, postgres, redis
from flowstone_celery.embedded import home as homes
from flowstone_celery.embedded.home import Options, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flowstone_celery.embedded.home import Home

Mode = Literal["smart", "fast", "immediate"]


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers of one home answer. `broker_url` is for Celery, `redis_url` for redis-py; both are one Redis."""

    home: Path
    database_url: str
    broker_url: str
    redis_url: str


def up(
    home: Path,
    *,
    on_progress: Callable[[str], None] | None = None,
    durable: bool = True,
    appendonly: bool = True,
) -> Servers:
    """PostgreSQL and Redis of this home answer; those already up are left as they are, with the options they were started with.

    `durable=False` lets PostgreSQL answer before the disk has the data, `appendonly=False` lets Redis forget everything when it
    stops: for tests. `on_progress` is told each thing that takes time. Raises ServiceUnavailable (what, why, how to mend).
    """
    return find(home) or _up(home, on_progress or _quiet, Options(durable, appendonly))


def find(home: Path) -> Servers | None:
    """The servers of this home if both answer, else None. Starts and writes nothing."""
    place = homes.known(home)
    state = homes.read_state(place) if place else None
    if place is None or state is None or not homes.is_private(state.sockets):
        return None
    return _servers(place, state.sockets) if _both_answer(state.sockets) else None


def down(home: Path) -> bool:
    """No server of this home runs, and no socket or state file of it is left; the data stay. True if something ran."""
    orphans = _end_predecessors(home)
    if homes.known(home) is None:
        return orphans
    with _at(home) as (place, sockets, _):
        ran = _end(place, sockets)
        homes.forget(place)
        homes.drop(sockets)
    return ran or orphans


def stop_postgres(home: Path, *, mode: Mode = "immediate") -> bool:
    """PostgreSQL of this home does not run; its URL stays the same for the next start. True if it ran.

    Modes as PostgreSQL names them: immediate is a crash (the log is replayed at the next start), fast ends sessions cleanly,
    smart waits for them (30 s, then they are killed).
    """
    with _at(home) as (place, sockets, _):
        return daemons.stop(postgres.daemon(place, sockets), postgres.MODES[mode])


def start_postgres(home: Path) -> None:
    """PostgreSQL of this home answers, with the options of the last `up`."""
    with _at(home) as (place, sockets, lock):
        postgres.ensure(place, sockets, _options(place), lock, _quiet)


def restart_postgres(home: Path, *, mode: Mode = "immediate") -> None:
    """PostgreSQL of this home was stopped and answers again."""
    stop_postgres(home, mode=mode)
    start_postgres(home)


def stop_redis(home: Path) -> bool:
    """Redis of this home does not run; its URL stays the same for the next start. True if it ran."""
    with _at(home) as (place, sockets, _):
        return daemons.stop(redis.daemon(place, sockets), signal.SIGTERM)


def start_redis(home: Path) -> None:
    """Redis of this home answers, with the options of the last `up`."""
    with _at(home) as (place, sockets, _):
        redis.ensure(place, sockets, _options(place), _quiet)


def _up(home: Path, say: Callable[[str], None], options: Options) -> Servers:
    if _end_predecessors(home):
        say("stopped the servers of a folder that stood here before")
    with _at(home, say) as (place, sockets, lock), _all_or_nothing(place, sockets):
        found = _servers(place, sockets)
        state = State(
            token=place.token,
            sockets=sockets,
            options=options,
            urls={"database": found.database_url, "broker": found.broker_url, "redis": found.redis_url},
            redis=redis.ensure(place, sockets, options, say),
            postgres=postgres.ensure(place, sockets, options, lock, say),
        )
        homes.write_state(place, state)
    return found


@contextmanager
def _at(home: Path, say: Callable[[str], None] | None = None) -> Iterator[tuple[Home, Path, int]]:
    """The home is ours alone meanwhile: its place, the folder of its sockets, the descriptor of its lock."""
    with homes.explained(home):
        place = homes.prepared(home)
        with homes.locked(place, say or _quiet) as lock:
            yield place, homes.sockets(place), lock


def _end(place: Home, sockets: Path) -> bool:
    """Neither server runs; True if one did."""
    redis_ran = daemons.stop(redis.daemon(place, sockets), signal.SIGTERM)
    return daemons.stop(postgres.daemon(place, sockets), signal.SIGINT) or redis_ran


def _end_predecessors(home: Path) -> bool:
    """No server of a home that was removed from this path still runs; True if one did."""
    ran = False
    with homes.explained(home):
        for place, sockets in homes.predecessors(home):
            ran = _end(place, sockets) or ran
            homes.drop(sockets)
    return ran


@contextmanager
def _all_or_nothing(place: Home, sockets: Path) -> Iterator[None]:
    """What was not running before does not run after a failure either."""
    both = (redis.daemon(place, sockets), postgres.daemon(place, sockets))
    absent = [daemon for daemon in both if not daemons.members(daemon)]
    try:
        yield
    except BaseException:
        for daemon in absent:
            daemons.stop(daemon, signal.SIGTERM)
        raise


def _servers(place: Home, sockets: Path) -> Servers:
    return Servers(place.path, postgres.url(sockets), redis.broker_url(sockets), redis.url(sockets))


def _both_answer(sockets: Path) -> bool:
    return redis.answers(sockets) and postgres.answers(sockets)


def _options(place: Home) -> Options:
    state = homes.read_state(place)
    return state.options if state else Options()


def _quiet(message: str) -> None:
    del message
