"""Settings: one frozen page of values, each of which knows where it came from.

The fields of ``Settings`` are the only table: names, defaults, what is allowed and the environment variable are all read
from it. Importing this module is cheap; pydantic-settings is loaded by ``load_settings`` alone.

Order of precedence: argument, environment (``FLOWSTONE_…``), the file ``.env`` of the working folder, default.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn, get_type_hints
from urllib.parse import unquote, urlsplit

from flowstone_celery.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic_settings import BaseSettings

PREFIX: Final = "FLOWSTONE_"
DEFAULT_SOURCE: Final = "default"
ARGUMENT_SOURCE: Final = "argument"
MASK: Final = "****"

OTHER_VARIABLES: Final = frozenset(
    {"FLOWSTONE_FAULT", "FLOWSTONE_TEST_DATABASE_URL", "FLOWSTONE_TEST_BROKER_URL"}
)
"""Variables that are ours without being settings."""

SHORTEST_PRODUCTION_SECRET: Final = 32


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a value may be: a sentence for people and a test for code."""

    allowed: str
    accepts: Callable[[Any], bool]


def _between(low: float, high: float, unit: str) -> _Rule:
    return _Rule(
        f"a number of {unit} from {low:,} to {high:,}", lambda v: not isinstance(v, bool) and low <= v <= high
    )


def _one_of(*choices: str) -> _Rule:
    return _Rule("one of " + ", ".join(choices), lambda v: v in choices)


def _url(*schemes: str) -> _Rule:
    return _Rule(
        "a URL that starts with " + " or ".join(f"{s}://" for s in schemes), lambda v: _is_url(v, schemes)
    )


def _is_url(value: str, schemes: tuple[str, ...]) -> bool:
    parts = urlsplit(value)  # ValueError for a malformed address is read as "not accepted"
    return parts.scheme in schemes and parts.port != 0 and bool(parts.netloc or parts.path.strip("/"))


_DATABASE_URL = _url("postgresql", "postgres", "postgresql+psycopg")
_WEB_URL = _url("http", "https")
_REDIS_URL = _url("redis", "rediss", "unix", "redis+socket")
_SCHEMA_NAME = _Rule(
    "a lower-case Postgres name: letters, digits and _, at most 63, not starting with a digit",
    lambda v: re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", v) is not None,
)
_APP = _Rule("the module of a Celery app, as in shop or shop.tasks:app", lambda v: bool(v.strip()))
_PATH = _Rule("a folder", lambda v: isinstance(v, Path))
_HOME: Final = Path(".flowstone")
_SECRETS = _Rule(
    "secrets separated by commas, the newest last", lambda v: all(isinstance(k, str) and k for k in v)
)


_SECONDS: Final = "seconds"
_ENV = _one_of("dev", "test", "production")
_POOLER = _one_of("session", "transaction")


def _of(default: Any, rule: _Rule, help_: str) -> Any:
    return field(default=default, metadata={"rule": rule, "help": help_})


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """All settings of one process, checked: no instance holds a value that is not allowed.

    Raises ``ConfigError`` naming the variable, the value and what is allowed.
    """

    env: Literal["dev", "test", "production"] = _of("dev", _ENV, "what this installation is for")
    app: str | None = _of(None, _APP, "the Celery app that commands work on, as for celery -A")
    database_url: str | None = _of(None, _DATABASE_URL, "PostgreSQL 15 or newer; unset means embedded")
    redis_url: str | None = _of(None, _REDIS_URL, "Redis, also the default broker; unset means embedded")
    home: Path = _of(_HOME, _PATH, "folder of servers and reports")  # noqa: RUF009 - this is dataclasses.field
    secret_keys: tuple[str, ...] = _of((), _SECRETS, "keys that sign tokens, newest last")
    public_url: str | None = _of(None, _WEB_URL, "address under which the outside reaches this installation")
    db_schema: str = _of("flowstone", _SCHEMA_NAME, "Postgres schema of all tables")
    lease_seconds: float = _of(30.0, _between(1, 3600, _SECONDS), "how long a silent worker keeps its claims")
    pacer_poll_seconds: float = _of(0.2, _between(0.01, 60, _SECONDS), "longest pause of the pacer")
    slice_seconds: float = _of(1.0, _between(0, 3600, _SECONDS), "how long one message may go on")
    async_width: int = _of(100, _between(1, 10_000, "steps"), "async steps side by side in one process")
    slice_starts: int = _of(1000, _between(1, 1_000_000, "steps"), "how many steps one message may start")
    grace_seconds: float = _of(10.0, _between(0, 3600, _SECONDS), "from the soft timeout to the hard one")
    crash_limit: int = _of(3, _between(1, 1000, "crashes"), "process deaths after which a step fails")
    loss_limit: int = _of(20, _between(1, 10_000, "losses"), "lost nodes after which a step fails")
    max_value_bytes: int = _of(64 * 2**20, _between(1024, 2**30, "bytes"), "largest value that is stored")
    inline_value_bytes: int = _of(65_536, _between(0, 2**26, "bytes"), "larger values are written ahead")
    pool_size: int = _of(5, _between(1, 1000, "connections"), "database connections for each process")
    database_pooler: Literal["session", "transaction"] = _of("session", _POOLER, "mode of a pooler")
    publish_timeout_seconds: float = _of(0.2, _between(0.01, 60, _SECONDS), "longest wait for the broker")
    retention_days: int | None = _of(None, _between(1, 36_500, "days"), "age to prune at; unset: never")
    key_life_days: int = _of(30, _between(0, 36_500, "days"), "how long pruning leaves idempotency keys")
    log: Literal["console", "json"] = _of("console", _one_of("console", "json"), "form of log lines")
    min_wakeups: int = _of(8, _between(1, 100_000, "wake-ups"), "least wake-ups under way to a queue")
    origins: dict[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for each in _fields():
            _check(each, getattr(self, each.name), self.source_of(each.name))

    def __repr__(self) -> str:
        changed = (f"{name}={value!r}" for name, value, source in self.sources() if source != DEFAULT_SOURCE)
        return f"Settings({', '.join(changed)})"

    @property
    def beat_seconds(self) -> float:
        """Seconds between two extensions of a lease: a third of it, so that two may fail."""
        return self.lease_seconds / 3

    def source_of(self, name: str) -> str:
        """Where the value came from: ``default``, ``argument``, a variable's name, or that name ``in .env``."""
        known = self.origins.get(name)
        if known is not None:
            return known
        default = next(each.default for each in _fields() if each.name == name)
        return DEFAULT_SOURCE if getattr(self, name) == default else ARGUMENT_SOURCE

    def sources(self) -> list[tuple[str, object, str]]:
        """Each setting as ``(name, value, source)``; secrets and passwords in URLs are masked."""
        return [
            (each.name, _shown(each, getattr(self, each.name)), self.source_of(each.name))
            for each in _fields()
        ]

    def require_production_ready(self, *, broker_url: str | None = None) -> None:
        """Nothing unfit for production is in use, when ``env`` is ``production``; otherwise nothing is asked.

        ``broker_url`` is the broker that the Celery app itself names; with one, ``redis_url`` may stay unset.
        Raises ``ConfigError`` listing everything that is missing.
        """
        if self.env != "production":
            return
        lacking = [sentence for sentence in self._lacks(broker_url) if sentence]
        if lacking:
            raise ConfigError(
                "FLOWSTONE_ENV is production, but " + "; ".join(lacking),
                hint="Set what is named (a secret: python -c 'import secrets; print(secrets.token_urlsafe(32))'), "
                "or use FLOWSTONE_ENV=dev for embedded servers.",
                lacking=lacking,
            )

    def _lacks(self, broker_url: str | None) -> list[str | None]:
        weak = [key for key in self.secret_keys if len(key) < SHORTEST_PRODUCTION_SECRET]
        return [
            self._url_lacks("FLOWSTONE_DATABASE_URL", self.database_url),
            self._url_lacks("FLOWSTONE_REDIS_URL", self.redis_url or broker_url),
            None if self.secret_keys else "FLOWSTONE_SECRET_KEYS is not set",
            f"a key of FLOWSTONE_SECRET_KEYS is shorter than {SHORTEST_PRODUCTION_SECRET} characters"
            if weak
            else None,
            "FLOWSTONE_FAULT arms crash points" if os.environ.get("FLOWSTONE_FAULT") else None,
        ]

    def _url_lacks(self, variable: str, url: str | None) -> str | None:
        if not url:
            return f"{variable} is not set"
        if str(self.home.resolve()) in unquote(url):
            return f"{variable} names an embedded server under {self.home}"
        return None

    def to_dict(self) -> dict[str, object]:
        """JSON-ready form *with secrets*, for handing to a child process; never to be logged."""
        values: dict[str, object] = {each.name: getattr(self, each.name) for each in _fields()}
        origins = {each.name: self.source_of(each.name) for each in _fields()}
        return {**values, "home": str(self.home), "secret_keys": list(self.secret_keys), "origins": origins}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """Inverse of ``to_dict``. Raises ``ConfigError`` for unknown names and for values that are not allowed."""
        _refuse_unknown({name: value for name, value in data.items() if name != "origins"})
        rebuilt = {name: make(data[name]) for name, make in _REBUILD.items() if name in data}
        return cls(**{**data, **rebuilt})


_REBUILD: Final[dict[str, Callable[[Any], Any]]] = {"home": Path, "secret_keys": tuple}
"""What JSON cannot say, made again."""


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A ``FLOWSTONE_…`` variable that nothing reads, with the question whether another was meant."""

    name: str
    suggestion: str

    @property
    def sentence(self) -> str:
        """A warning for people."""
        return f"{self.name} is set, but no setting has that name. {self.suggestion}".strip()


def load_settings(*, env_file: str | Path | None = ".env", **overrides: object) -> Settings:
    """Settings of this process: arguments over environment over ``env_file`` over defaults.

    An argument of ``None`` counts as not given; an empty variable as not set. ``env_file=None`` reads no file.
    Raises ``ConfigError`` naming the variable, the value and what is allowed.
    """
    from pydantic import ValidationError

    given = {name: value for name, value in overrides.items() if value is not None}
    _refuse_unknown(given)
    values, origins = _read_layers(env_file, given)
    try:
        model = _environment_model().model_validate(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        _refuse(_field(name), values[name], origins[name])
    return Settings(**{name: getattr(model, name) for name in values}, origins=_with_defaults(origins))


def unknown_variables(
    environ: Mapping[str, str] | None = None, *, env_file: str | Path | None = ".env"
) -> list[UnknownVariable]:
    """Variables with our prefix, in the environment or in ``env_file``, that no setting reads; sorted by name."""
    known = {variable_of(each.name) for each in _fields()} | OTHER_VARIABLES
    named = {*(os.environ if environ is None else environ), *_names_in(env_file)}
    strange = sorted(name for name in named if name.upper().startswith(PREFIX) and name.upper() not in known)
    return [UnknownVariable(name, did_you_mean(name, known)) for name in strange]


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def describe() -> list[tuple[str, object, str, str]]:
    """Each setting as ``(variable, default, allowed, help)``, in order: the source of the reference page."""
    return [
        (variable_of(f.name), f.default, f.metadata["rule"].allowed, f.metadata["help"]) for f in _fields()
    ]


# -- layers ----------------------------------------------------------------------------------------------------


def _read_layers(
    env_file: str | Path | None, given: Mapping[str, object]
) -> tuple[dict[str, object], dict[str, str]]:
    """What each layer says, the stronger over the weaker, and for each value the layer it came from."""
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for source, found in (*_outside_layers(env_file), (ARGUMENT_SOURCE, given)):
        values.update(found)
        origins.update({name: source.format(variable=variable_of(name)) for name in found})
    return values, origins


def _outside_layers(env_file: str | Path | None) -> list[tuple[str, dict[str, object]]]:
    from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

    model = _environment_model()
    layers: list[tuple[str, dict[str, object]]] = [("{variable}", EnvSettingsSource(model)())]
    if env_file is not None:
        layers.insert(
            0, (f"{{variable}} in {Path(env_file).name}", DotEnvSettingsSource(model, env_file=env_file)())
        )
    return [(source, _only_ours(found)) for source, found in layers]


def _only_ours(found: dict[str, object]) -> dict[str, object]:
    # The .env source also hands over variables of other programs.
    names = {each.name for each in _fields()}
    return {name: value for name, value in found.items() if name in names}


@functools.cache
def _environment_model() -> type[BaseSettings]:
    """The pydantic model that turns text into the types of ``Settings``; built from its fields."""
    from pydantic import BeforeValidator, create_model
    from pydantic_settings import BaseSettings, SettingsConfigDict

    class Environment(BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix=PREFIX, env_ignore_empty=True, enable_decoding=False, extra="ignore"
        )

    hints: dict[str, Any] = get_type_hints(Settings)
    keys = hints["secret_keys"]
    hints["secret_keys"] = Annotated[keys, BeforeValidator(_split_on_commas)]
    columns: dict[str, Any] = {each.name: (hints[each.name], each.default) for each in _fields()}
    return create_model("Environment", __base__=Environment, **columns)


def _split_on_commas(value: object) -> object:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _with_defaults(origins: dict[str, str]) -> dict[str, str]:
    return {each.name: DEFAULT_SOURCE for each in _fields()} | origins


def _names_in(env_file: str | Path | None) -> list[str]:
    if env_file is None or not Path(env_file).is_file():
        return []
    from dotenv import dotenv_values

    return list(dotenv_values(env_file))


# -- checks ----------------------------------------------------------------------------------------------------


@functools.cache
def _fields() -> tuple[dataclasses.Field[Any], ...]:
    return tuple(each for each in dataclasses.fields(Settings) if "rule" in each.metadata)


def _field(name: str) -> dataclasses.Field[Any]:
    return next(each for each in _fields() if each.name == name)


def _check(each: dataclasses.Field[Any], value: Any, source: str) -> None:
    """The value is allowed. Raises ``ConfigError`` otherwise."""
    if value is None and each.default is None:
        return
    try:
        accepted = each.metadata["rule"].accepts(value)
    except (
        TypeError,
        ValueError,
    ):  # a value of another type, or a malformed URL, fails inside the test itself
        accepted = False
    if not accepted:
        _refuse(each, value, source)


def _refuse(each: dataclasses.Field[Any], value: object, source: str) -> NoReturn:
    allowed = each.metadata["rule"].allowed
    shown = _shown(each, value)
    place = f"{source}: " if source.startswith(PREFIX) else ""
    raise ConfigError(
        f"{place}setting {each.name!r} cannot be {shown!r}; allowed is {allowed}",
        hint=f"Change {variable_of(each.name)} or leave it unset for {each.default!r}.",
        variable=variable_of(each.name),
        value=shown,
        allowed=allowed,
    )


def _refuse_unknown(names: Mapping[str, object]) -> None:
    known = {each.name for each in _fields()}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or "`flowstone config show` lists all settings."
            raise ConfigError(f"there is no setting {name!r}", hint=hint, setting=name)


def _shown(each: dataclasses.Field[Any], value: object) -> object:
    """The value as people may see it."""
    if each.name == "secret_keys":
        return MASK if value else ""
    if isinstance(value, Path):
        return str(value)
    return mask_password(value) if isinstance(value, str) else value


def mask_password(url: str) -> str:
    """The text with every password in it masked, whether before the host or in the query."""
    hidden = re.sub(r"(?<=://)([^/@:]*):[^/]*@", rf"\1:{MASK}@", url)
    return re.sub(r"(?i)([?&](?:password|sslpassword)=)[^&]*", rf"\1{MASK}", hidden)
