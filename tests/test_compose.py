"""docker-compose.yml is a deployment that could start: every service, what it waits for, and how its health is told."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowstone_celery import config

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
SERVERS = {"postgres", "redis"}
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")


@dataclass(frozen=True)
class Service:
    """One service as it would be started: its command in words, and its environment."""

    name: str
    command: list[str]
    environment: dict[str, str]


def compose() -> dict[str, Any]:
    """The file with its anchors merged."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def services(given: Mapping[str, str] | None = None) -> Iterator[Service]:
    """Every service that has a command, with its variables filled in from `given` or their defaults."""
    for name, service in compose()["services"].items():
        if "command" in service:
            yield Service(
                name,
                shlex.split(_filled(service["command"], given)),
                {key: _filled(value, given) for key, value in (service.get("environment") or {}).items()},
            )


def _filled(text: object, given: Mapping[str, str] | None) -> str:
    filled = _VARIABLE.sub(lambda found: (given or {}).get(found["name"], found["default"] or ""), str(text))
    return filled.replace("$$", "$")


def test_all_services_are_there() -> None:
    names = set(compose()["services"])
    assert names >= SERVERS | {"migrate", "worker-1", "worker-2", "beat-1", "beat-2", "flower"}


def test_what_others_wait_for_tells_its_health() -> None:
    found = compose()["services"]
    for name, service in found.items():
        for needed, how in (service.get("depends_on") or {}).items():
            assert needed in found, f"{name} waits for {needed}, which is not there"
            if how["condition"] == "service_healthy":
                assert found[needed]["healthcheck"]["test"], f"{needed} tells no health"
    for name in (*SERVERS, "worker-1", "worker-2", "flower"):
        assert found[name]["healthcheck"]["test"]


def test_nothing_of_ours_starts_before_the_schema_is_there() -> None:
    found = compose()["services"]
    for name in set(found) - SERVERS - {"migrate"}:
        needs = found[name]["depends_on"]
        assert needs["migrate"]["condition"] == "service_completed_successfully"
        assert needs["redis"]["condition"] == "service_healthy"
    assert found["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert found["migrate"]["restart"] == "no"


def test_the_truth_lies_on_volumes_that_are_declared() -> None:
    found = compose()
    mounted = {name: found["services"][name]["volumes"][0].partition(":")[0] for name in SERVERS}
    assert set(mounted.values()) <= set(found["volumes"])


def test_commands_and_environments_are_complete_without_any_variable() -> None:
    started = {service.name: service for service in services()}
    assert started["worker-1"].command[:4] == ["celery", "-A", "shop", "worker"]
    assert started["migrate"].command == ["flowstone", "db", "migrate"]
    for service in started.values():
        assert not any("${" in word for word in (*service.command, *service.environment.values()))
    assert services({"POSTGRES_PASSWORD": "other"}) is not None
    urls = {
        each.environment.get("FLOWSTONE_DATABASE_URL") for each in services({"POSTGRES_PASSWORD": "other"})
    }
    assert urls == {None, "postgresql://flowstone:other@postgres:5432/flowstone"}


def test_every_setting_that_is_named_exists() -> None:
    known = {variable for variable, *_ in config.describe()}
    others = {"FLOWSTONE_APP"}  # the command line's own
    for service in services():
        named = {name for name in service.environment if name.startswith("FLOWSTONE_")}
        assert named <= known | others


def test_two_beats_share_no_file() -> None:
    beats = [service.command for service in services() if "beat" in service.command]
    files = [command[command.index("--schedule") + 1] for command in beats]
    assert len(set(files)) == len(files) == 2


def test_a_worker_gets_longer_to_stop_than_its_grace() -> None:
    grace = config.load_settings(env_file=None).grace_seconds
    for name in ("worker-1", "worker-2"):
        assert int(compose()["services"][name]["stop_grace_period"].removesuffix("s")) > grace


@pytest.mark.parametrize(
    "name", ["Dockerfile", "README.md", "pyproject.toml", "LICENSE", "migrations", "flowstone_celery"]
)
def test_what_the_image_is_built_from_is_there(name: str) -> None:
    assert (ROOT / name).exists()
    assert name == "Dockerfile" or name in (ROOT / "Dockerfile").read_text()
