"""What the doctor looks at: each check answers findings with a level, a sentence and, where something is wrong, a way out."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flowstone_celery.errors import ConfigError, FlowStoneError, ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flowstone_celery.app import FlowStone
    from flowstone_celery.cli.desk import Desk
    from flowstone_celery.config import Settings
    from flowstone_celery.db.database import Database, Row

_OLDEST_POSTGRES: Final = 15
_BROKER_SECONDS: Final = 3
_CELERYS_VISIBILITY: Final = 3600
_SKEW_SECONDS: Final = 2.0
_DISK_LOW, _DISK_FULL = 2**30, 100 * 2**20
_SHOWN: Final = 5


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    BROKEN = "broken"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor."""

    check: str
    level: Level
    says: str
    fix: str | None = None


@dataclass(slots=True)
class Patient:
    """What is looked at; a part that is away is None, and the checks that need it are left out."""

    settings: Settings
    name: str = "<your app>"
    """As `celery -A` takes it."""
    fs: FlowStone | None = None
    database: Database | None = None

    @property
    def app(self) -> Any:
        """The Celery app, or None."""
        return self.fs.app if self.fs else None


def examine(desk: Desk) -> Iterator[Finding]:
    """Every finding, one after the other; no error escapes, each becomes a finding."""
    try:
        patient = Patient(desk.own_settings, desk.app_name or "<your app>")
    except ConfigError as error:
        yield _of("settings", error)
        return
    yield from _app(desk, patient)
    yield from _settings(patient)
    yield from _database(desk, patient)
    for check in _OF_ROWS:
        if patient.database is not None:
            yield from _guarded(check, patient)
    for check in _OF_SURROUNDINGS:
        yield from _guarded(check, patient)


def _guarded(check: Callable[[Patient], Iterator[Finding]], patient: Patient) -> Iterator[Finding]:
    try:
        yield from check(patient)
    except FlowStoneError as error:
        yield _of(check.__name__.strip("_").replace("_", " "), error)


def _of(check: str, error: FlowStoneError) -> Finding:
    away = isinstance(error, ServiceUnavailable)
    return Finding(check, Level.AWAY if away else Level.BROKEN, f"{error.code} {error.message}", error.hint)


# --- app and settings -------------------------------------------------------------------------------------------------------------


def _app(desk: Desk, patient: Patient) -> Iterator[Finding]:
    if not desk.has_app:
        yield Finding(
            "app",
            Level.WARN,
            "no app was named, so its assets and broker are not looked at",
            "flowstone -A shop doctor",
        )
        return
    try:
        house = desk.house
        patient.settings = house.settings
        house.check()
    except FlowStoneError as error:
        yield _of("app", error)
        return
    patient.fs = house
    count = len(house.catalog.list())
    yield Finding("app", Level.OK, f"{house.namespace!r} declares {count} assets, and they fit together")


def _settings(patient: Patient) -> Iterator[Finding]:
    from flowstone_celery.config import unknown_variables

    settings = patient.settings
    strange = unknown_variables()
    for unknown in strange:
        yield Finding("settings", Level.WARN, unknown.sentence, f"unset {unknown.name}")
    try:
        settings.require_production_ready(broker_url=patient.app.conf.broker_url if patient.app else None)
    except ConfigError as error:
        yield _of("settings", error)
        return
    if not strange:
        secrets = f"{len(settings.secret_keys)} secret keys" if settings.secret_keys else "no secret keys"
        yield Finding("settings", Level.OK, f"fit for {settings.env}; {secrets}")


# --- database ---------------------------------------------------------------------------------------------------------------------


def _database(desk: Desk, patient: Patient) -> Iterator[Finding]:
    """The database is reachable, new enough and of this code's schema; only then the patient has one."""
    from flowstone_celery.db import migrate
    from flowstone_celery.db.address import masked

    try:
        database = patient.fs.database if patient.fs else desk.open_database(patient.settings)
        schema = migrate.current(database)
    except FlowStoneError as error:
        yield _of("database", error)
        return
    yield _server(database, masked(database.url))
    if not schema.up_to_date:
        found = schema.revision or "nothing"
        yield Finding(
            "schema", Level.BROKEN, f"it is {found}, this code needs {schema.head}", "flowstone db migrate"
        )
        return
    yield Finding("schema", Level.OK, f"{schema.revision}, as this code needs it")
    patient.database = database


def _server(database: Database, url: str) -> Finding:
    with database.engine.connect() as connection:
        number = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
        version = connection.exec_driver_sql("SHOW server_version").scalar_one()
        begun = time.time()
        skew = (
            float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())
            - begun
        )
    says = f"PostgreSQL {version} answers at {url}"
    if number // 10_000 < _OLDEST_POSTGRES:
        return Finding("database", Level.BROKEN, says, f"use PostgreSQL {_OLDEST_POSTGRES} or newer")
    if abs(skew) > _SKEW_SECONDS:
        return Finding(
            "database",
            Level.WARN,
            f"{says}; its clock is {skew:+.1f} s from this machine's",
            "run NTP on both",
        )
    return Finding("database", Level.OK, says)


def _invariants(patient: Patient) -> Iterator[Finding]:
    from flowstone_celery.core import doctor

    assert patient.database is not None
    found = doctor.examine(patient.database, production=patient.settings.env == "production")
    for each in found:
        yield Finding(
            "invariants", Level.BROKEN, f"{each.invariant}: {each.sentence}", "keep the rows and report it"
        )
    if not found:
        yield Finding("invariants", Level.OK, "every row is as the design says")


def _workers(patient: Patient) -> Iterator[Finding]:
    """Workers are alive and know the app's assets."""
    from flowstone_celery.core.statements import SQL

    assert patient.database is not None
    rows = patient.database.once(SQL["nodes"])
    alive = [row for row in rows if row["alive"]]
    for row in rows:
        if not row["alive"]:
            yield Finding(
                "workers", Level.WARN, f"{row['name']} (pid {row['pid']}) no longer beats", "start it again"
            )
    if not alive:
        yield Finding("workers", Level.WARN, "no worker is alive", f"celery -A {patient.name} worker")
        return
    unknown = (
        sorted(set(patient.fs.knows()) - {task for row in alive for task in row["knows"]})
        if patient.fs
        else []
    )
    if unknown:
        says = f"no living worker knows {_some(unknown)}"
        yield Finding("workers", Level.BROKEN, says, "restart the workers with the present code")
    yield from _of_their_code(alive)
    slots = sum(row["slots"] for row in alive)
    queues = sorted({queue for row in alive for queue in row["queues"]})
    busy = sum(row["busy"] for row in alive)
    yield Finding(
        "workers",
        Level.OK,
        f"{len(alive)} alive, {busy} of {slots} slots busy, on {', '.join(queues) or 'no queue'}",
    )


def _of_their_code(alive: Sequence[Row]) -> Iterator[Finding]:
    """Workers that the database has outgrown, and workers that run different code, each with what it runs."""
    for row in alive:
        if row["outgrown"]:
            says = f"{row['name']} takes no steps: its code is of schema {row['schema_version']}, which is too old for the database"
            yield Finding("workers", Level.BROKEN, says, "restart it with the present code")
    versions: dict[str, list[str]] = {}
    for row in alive:
        versions.setdefault(row["code_version"] or "code of no known version", []).append(row["name"])
    if len(versions) > 1:
        each = "; ".join(f"{_some(names)} run {version}" for version, names in sorted(versions.items()))
        fix = "while an upgrade rolls this is as it should be; afterwards restart those that are behind"
        yield Finding("workers", Level.WARN, f"{len(versions)} versions of the code are at work: {each}", fix)


def _unfinished(patient: Patient) -> Iterator[Finding]:
    """Why steps do not run, each reason with how many steps it holds up."""
    from flowstone_celery.core import doctor

    assert patient.database is not None
    rows = [row for row in doctor.why_not_running(patient.database) if row["status"] != "blocked"]
    reasons = Counter(row["reason"] for row in rows)
    for reason, count in reasons.most_common(_SHOWN):
        stuck = reason.startswith(("no worker", "every worker"))
        fix = "start a worker on that queue with the present code" if stuck else None
        yield Finding("unfinished", Level.WARN if stuck else Level.OK, f"{count:,} steps: {reason}", fix)
    if not reasons:
        yield Finding("unfinished", Level.OK, "nothing waits")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


# --- broker and disk --------------------------------------------------------------------------------------------------------------


def _broker(patient: Patient) -> Iterator[Finding]:
    if patient.app is None:
        return
    connection = patient.app.connection_for_write()
    url = connection.as_uri()
    try:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=_BROKER_SECONDS)
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own
        hint = "start it (`flowstone up`), or set FLOWSTONE_REDIS_URL or the app's broker_url"
        yield Finding("broker", Level.AWAY, f"{url} does not answer: {type(error).__name__}: {error}", hint)
        return
    finally:
        with suppress(Exception):  # what is left of a connection that could not be made
            connection.release()
    yield Finding("broker", Level.OK, f"{url} answers")
    yield from _visibility(patient)


def _visibility(patient: Patient) -> Iterator[Finding]:
    """Redis hands out again what was not acknowledged in this time; the rows forbid a second start, other tasks run twice."""
    if patient.fs is None or "redis" not in patient.app.connection_for_write().transport_cls:
        return
    options = patient.app.conf.broker_transport_options or {}
    visibility = float(options.get("visibility_timeout") or _CELERYS_VISIBILITY)
    longest = max((spec.timeout or 0.0 for spec in patient.fs.catalog.list()), default=0.0)
    if visibility <= longest:
        says = f"visibility timeout {visibility:g} s is not above the longest timeout of an asset ({longest:g} s)"
        fix = f"broker_transport_options={{'visibility_timeout': {int(longest * 2)}}}"
        yield Finding("visibility", Level.WARN, says, fix)
    else:
        yield Finding(
            "visibility", Level.OK, f"visibility timeout {visibility:g} s, longest timeout {longest:g} s"
        )


def _disk(patient: Patient) -> Iterator[Finding]:
    from flowstone_celery.cli.show import sized

    place = next(
        each
        for each in (patient.settings.home.absolute(), *patient.settings.home.absolute().parents)
        if each.exists()
    )
    free = shutil.disk_usage(place).free
    level = Level.BROKEN if free < _DISK_FULL else Level.WARN if free < _DISK_LOW else Level.OK
    fix = None if level is Level.OK else "free some space, or move FLOWSTONE_HOME"
    yield Finding("disk", level, f"{sized(free)} free at {Path(place)}", fix)


_OF_ROWS: Final = (_invariants, _workers, _unfinished)
_OF_SURROUNDINGS: Final = (_broker, _disk)
