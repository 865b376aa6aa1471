"""Settings: precedence, sources, masking, refusals, production, and the form that travels to a child process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from flowstone_celery.config import Settings, describe, load_settings, mask_password, unknown_variables
from flowstone_celery.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

LONG_KEY = "k" * 40


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in [each for each in os.environ if each.startswith("FLOWSTONE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def _source(settings: Settings, name: str) -> tuple[object, str]:
    return next((value, source) for each, value, source in settings.sources() if each == name)


def test_argument_beats_environment_beats_env_file_beats_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(
        "FLOWSTONE_LEASE_SECONDS=5\nFLOWSTONE_POOL_SIZE=6\nFLOWSTONE_CRASH_LIMIT=7\nOTHER=1\n"
    )
    monkeypatch.setenv("FLOWSTONE_LEASE_SECONDS", "8")
    monkeypatch.setenv("FLOWSTONE_POOL_SIZE", "9")
    settings = load_settings(lease_seconds=10)
    assert _source(settings, "lease_seconds") == (10.0, "argument")
    assert _source(settings, "pool_size") == (9, "FLOWSTONE_POOL_SIZE")
    assert _source(settings, "crash_limit") == (7, "FLOWSTONE_CRASH_LIMIT in .env")
    assert _source(settings, "loss_limit") == (20, "default")


def test_argument_heals_a_bad_environment_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSTONE_LEASE_SECONDS", "soon")
    assert load_settings(lease_seconds=4).lease_seconds == 4


def test_none_counts_as_not_given_and_an_empty_variable_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSTONE_DB_SCHEMA", "team_a")
    monkeypatch.setenv("FLOWSTONE_REDIS_URL", "")
    settings = load_settings(db_schema=None)
    assert (settings.db_schema, settings.redis_url) == ("team_a", None)


def test_secret_keys_are_a_comma_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSTONE_SECRET_KEYS", " old , new,")
    assert load_settings().secret_keys == ("old", "new")


def test_beat_is_a_third_of_the_lease() -> None:
    assert load_settings(lease_seconds=6).beat_seconds == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FLOWSTONE_ENV", "staging"),
        ("FLOWSTONE_DATABASE_URL", "mysql://localhost/shop"),
        ("FLOWSTONE_DATABASE_URL", "postgresql://localhost:port/shop"),
        ("FLOWSTONE_DATABASE_URL", "postgresql://[::1/shop"),
        ("FLOWSTONE_REDIS_URL", "localhost:6379"),
        ("FLOWSTONE_PUBLIC_URL", "shop.example.com"),
        ("FLOWSTONE_DB_SCHEMA", 'x"; drop schema public; --'),
        ("FLOWSTONE_DB_SCHEMA", "a" * 64),
        ("FLOWSTONE_LEASE_SECONDS", "0.5"),
        ("FLOWSTONE_LEASE_SECONDS", "nan"),
        ("FLOWSTONE_LEASE_SECONDS", "soon"),
        ("FLOWSTONE_POOL_SIZE", "2.5"),
        ("FLOWSTONE_DATABASE_POOLER", "statement"),
        ("FLOWSTONE_LOG", "xml"),
    ],
)
def test_bad_value_names_variable_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert str(refused.value).count(variable) >= 1
    assert repr(value) in str(refused.value) or value in str(refused.value.facts["value"])
    assert refused.value.facts["allowed"] in str(refused.value)


def test_bad_argument_is_refused_without_pydantic_too() -> None:
    with pytest.raises(ConfigError, match="db_schema"):
        Settings(db_schema="Bad Name")
    with pytest.raises(ConfigError, match="lease_seconds"):
        Settings(lease_seconds=True)


def test_unknown_argument_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'lease_seconds'"):
        load_settings(lease_second=3)


def test_refusal_of_a_url_hides_its_password() -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(database_url="mysql://me:hunter2@db/shop")
    assert "hunter2" not in str(refused.value) + repr(refused.value.facts)


def test_sources_and_repr_show_no_secret() -> None:
    settings = load_settings(
        database_url="postgresql://me:hunter2@db/shop?sslpassword=hunter3",
        redis_url="redis://:hunter4@cache/0",
        secret_keys=("hunter5",),
    )
    shown = repr(settings) + repr(settings.sources())
    assert "hunter" not in shown
    assert "me:****@db" in shown


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://:a:b@c@host/0", "redis://:****@host/0"),
        ("postgresql://host/db?password=x&a=b", "postgresql://host/db?password=****&a=b"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("http://host:8787/a@b", "http://host:8787/a@b"),
    ],
)
def test_passwords_are_masked_wherever_they_stand(url: str, masked: str) -> None:
    assert mask_password(url) == masked


def test_unknown_variables_are_told_with_the_nearest_match(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FLOWSTONE_POOLSIZE=3\n")
    environ = {"FLOWSTONE_DATABASE_ULR": "x", "FLOWSTONE_LOG": "json", "FLOWSTONE_FAULT": "", "PATH": "/bin"}
    told = unknown_variables(environ)
    assert [each.name for each in told] == ["FLOWSTONE_DATABASE_ULR", "FLOWSTONE_POOLSIZE"]
    assert "FLOWSTONE_DATABASE_URL" in told[0].sentence
    assert "FLOWSTONE_POOL_SIZE" in told[1].sentence


def test_every_setting_is_described_with_its_variable() -> None:
    variables = [variable for variable, _, allowed, help_ in describe() if allowed and help_]
    assert len(variables) == len(load_settings().sources())
    assert "FLOWSTONE_MIN_WAKEUPS" in variables


def test_json_round_trip_keeps_values_secrets_and_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSTONE_LEASE_SECONDS", "2")
    settings = load_settings(secret_keys=("a", "b"), home="elsewhere", database_url="postgresql://u:p@h/d")
    again = Settings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again == settings
    assert again.sources() == settings.sources()
    assert (again.secret_keys, again.home.name) == (("a", "b"), "elsewhere")


def test_round_trip_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="no setting 'colour'"):
        Settings.from_dict({"colour": "red"})
    with pytest.raises(ConfigError, match="lease_seconds"):
        Settings.from_dict({"lease_seconds": 0})


def test_production_refuses_missing_urls_and_secrets_all_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(env="production").require_production_ready()
    for variable in ("FLOWSTONE_DATABASE_URL", "FLOWSTONE_REDIS_URL", "FLOWSTONE_SECRET_KEYS"):
        assert f"{variable} is not set" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"secret_keys": ("short",)}, "shorter than 32"),
        ({"database_url": "postgresql:///db?host={home}/pg"}, "embedded server"),
        ({"redis_url": "unix://{home}/redis.sock"}, "embedded server"),
    ],
)
def test_production_refuses_weak_keys_and_embedded_servers(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    home = tmp_path / ".flowstone"
    fit: dict[str, object] = {
        "env": "production",
        "database_url": "postgresql://db/shop",
        "redis_url": "redis://cache/0",
        "secret_keys": (LONG_KEY,),
        "home": home,
    }
    load_settings(**fit).require_production_ready()
    change = {k: v.format(home=home) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(ConfigError, match=sentence):
        load_settings(**(fit | change)).require_production_ready()


def test_production_accepts_the_apps_own_broker_and_refuses_armed_faults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load_settings(env="production", database_url="postgresql://db/shop", secret_keys=(LONG_KEY,))
    settings.require_production_ready(broker_url="amqp://rabbit//")
    monkeypatch.setenv("FLOWSTONE_FAULT", "user.start:1:kill9")
    with pytest.raises(ConfigError, match="FLOWSTONE_FAULT"):
        settings.require_production_ready(broker_url="amqp://rabbit//")


def test_development_asks_for_nothing() -> None:
    load_settings().require_production_ready()


def test_importing_config_loads_no_pydantic() -> None:
    code = "import sys, flowstone_celery.config; print('pydantic' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
