"""Every error that FlowStone raises: one tree, one stable code each, and sentences that say what, why and how to mend it.

The hundreds tell where to look: FS-1xxx a declaration, FS-2xxx running, FS-3xxx fences and leases, FS-5xxx services, schema and
deployment, FS-6xxx values. `python -m flowstone_celery.errors` prints the table of `docs/reference/errors.md`.
"""

# ruff: noqa: N818 - the names say what happened (StaleFence, RunFailed); the tree's root carries the word Error

from __future__ import annotations

import difflib
import math
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

_TEXT_LIMIT = 4_000
_TRACEBACK_LIMIT = 20_000
_PLAIN_INT = 2**63


class FlowStoneError(Exception):
    """Something in FlowStone went wrong.

    `message` says what and why (by default the first line of the class's docstring), `hint` says how to mend it, `facts` carries
    the particulars for programs. `retryable` tells whether the same act may succeed later with nothing changed.
    """

    code: str = "FS-0000"
    retryable: bool = False
    _by_code: ClassVar[dict[str, type[FlowStoneError]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in vars(cls):
            _register(cls)

    def __init__(self, message: str | None = None, *, hint: str | None = None, **facts: object) -> None:
        self.message = message if message is not None else _summary(type(self))
        self.hint = hint
        self.facts: dict[str, Any] = facts
        super().__init__(self.message)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.code, _sentence(self.message), self.hint)))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object that `from_dict` reads back and that Postgres accepts; facts that are not plain become text."""
        return {
            "code": self.code,
            "type": type(self).__name__,
            "message": _clean(self.message),
            "hint": None if self.hint is None else _clean(self.hint),
            "facts": _plain(self.facts),
            "retryable": self.retryable,
        }

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> FlowStoneError:
        """The error that was stored, by its code; one of an unknown code keeps that code under `FlowStoneError`."""
        code = str(stored.get("code", FlowStoneError.code))
        error = FlowStoneError._by_code.get(code, FlowStoneError)(
            stored.get("message"), hint=stored.get("hint")
        )
        error.facts = dict(stored.get("facts") or {})
        error.code = code
        error.retryable = bool(stored.get("retryable", error.retryable))
        return error

    @staticmethod
    def known() -> list[type[FlowStoneError]]:
        """All classes that carry a code of their own, by code."""
        return [kind for _, kind in sorted(FlowStoneError._by_code.items())]


def _register(kind: type[FlowStoneError]) -> None:
    taken = FlowStoneError._by_code.setdefault(kind.code, kind)
    if taken is not kind:
        raise TypeError(f"code {kind.code} of {kind.__name__} already belongs to {taken.__name__}")


_register(FlowStoneError)


# --- FS-1xxx: declaration -------------------------------------------------------------------------------------------------------


class DeclarationError(FlowStoneError):
    """A declaration is wrong."""

    code = "FS-1000"


class UnknownAsset(DeclarationError):
    """No asset of this name is declared."""

    code = "FS-1001"


class DuplicateAsset(DeclarationError):
    """Two assets carry the same name."""

    code = "FS-1002"


class UnknownDependency(DeclarationError):
    """An asset needs another that is not declared."""

    code = "FS-1003"


class DependencyCycle(DeclarationError):
    """Assets, or resources, depend on each other in a circle; the fact `path` names them in order."""

    code = "FS-1004"


class UnknownOption(DeclarationError):
    """A declaration carries an option that does not exist."""

    code = "FS-1005"


class InvalidOption(DeclarationError):
    """An option of a declaration has a value that it cannot have."""

    code = "FS-1006"


class InvalidPartition(DeclarationError):
    """A partition key is of a type or a form that cannot be a key."""

    code = "FS-1007"


class UnknownResource(DeclarationError):
    """No resource of this name is declared."""

    code = "FS-1008"


class DuplicateResource(DeclarationError):
    """Two resources carry the same name."""

    code = "FS-1009"


class InvalidMapping(DeclarationError):
    """The partitions of an asset and of what it needs do not fit together."""

    code = "FS-1010"


# --- FS-2xxx: running -----------------------------------------------------------------------------------------------------------


class RunFailed(FlowStoneError):
    """A run ended without its result."""

    code = "FS-2001"


class DependencyNotReady(FlowStoneError):
    """A value that the step needs does not exist yet."""

    code = "FS-2002"
    retryable = True


class DependencyFailed(FlowStoneError):
    """A step that this one needs has failed."""

    code = "FS-2003"


class ExecutionError(FlowStoneError):
    """User code raised; the facts `type`, `text` and `traceback` tell what."""

    code = "FS-2004"

    @classmethod
    def of(cls, error: BaseException, name: str = "", partition: str = "") -> ExecutionError:
        """What the function of the step `name` raised, as text of bounded length; `__cause__` holds the original."""
        what, text = type(error).__qualname__, _text_of(error)
        lines = "".join(traceback.format_exception(error))[-_TRACEBACK_LIMIT:]
        message = (
            f"{_step(name, partition)} raised {what}: {text}"
            if text
            else f"{_step(name, partition)} raised {what}"
        )
        wrapped = cls(
            message, type=_qualified(type(error)), text=text, traceback=lines, step=name, partition=partition
        )
        wrapped.__cause__ = error
        return wrapped


class StepTimeout(FlowStoneError):
    """A step ran longer than its timeout."""

    code = "FS-2005"
    retryable = True


class Cancelled(FlowStoneError):
    """The run or the step was cancelled."""

    code = "FS-2006"


class WaitTimeout(FlowStoneError):
    """The caller stopped waiting; the run itself goes on."""

    code = "FS-2007"


class RunNotFound(FlowStoneError):
    """No run has this id."""

    code = "FS-2008"


class IdempotencyConflict(FlowStoneError):
    """The idempotency key belongs to a run that was started with something else."""

    code = "FS-2009"


class TooManyCrashes(FlowStoneError):
    """A step lost its worker more often than is allowed."""

    code = "FS-2010"


class WrongState(FlowStoneError):
    """What was asked for cannot be done in the present state."""

    code = "FS-2011"


class DeadlineExceeded(FlowStoneError):
    """A run had not ended by its deadline."""

    code = "FS-2012"


class CannotJoin(FlowStoneError):
    """What was given as `connection=` is no transaction in which rows of FlowStone can be written."""

    code = "FS-2013"


class NotCommitted(RunNotFound):
    """The transaction in which the run was started is open still."""

    code = "FS-2014"
    retryable = True


class BackfillNotFound(FlowStoneError):
    """No backfill has this id."""

    code = "FS-2015"


class ScatterFailed(FlowStoneError):
    """More items of a scatter failed than may."""

    code = "FS-2016"


class ScatterNotFound(FlowStoneError):
    """No scatter has this id."""

    code = "FS-2017"


class NoWorker(FlowStoneError):
    """No worker listens on a queue that has work."""

    code = "FS-2101"


class UnknownTask(FlowStoneError):
    """A worker was handed work for which it has no declaration."""

    code = "FS-2102"


# --- FS-3xxx: fences and leases -------------------------------------------------------------------------------------------------


class StaleFence(FlowStoneError):
    """Another worker has claimed the step since; nothing was written."""

    code = "FS-3007"


class LeaseLost(FlowStoneError):
    """The lease ended before the work did; nothing was written."""

    code = "FS-3008"


# --- FS-5xxx: services, schema, deployment --------------------------------------------------------------------------------------


class ServiceUnavailable(FlowStoneError):
    """A service that FlowStone needs cannot be reached."""

    code = "FS-5001"
    retryable = True


class DatabaseUnavailable(ServiceUnavailable):
    """Postgres cannot be reached."""

    code = "FS-5002"


class BrokerUnavailable(ServiceUnavailable):
    """The Celery broker cannot be reached."""

    code = "FS-5003"


class SchemaMismatch(FlowStoneError):
    """The database's schema is not the one that this version needs."""

    code = "FS-5004"


class ConfigError(FlowStoneError):
    """A setting is missing or wrong."""

    code = "FS-5005"


class UnsupportedPool(FlowStoneError):
    """The worker's pool cannot run this work safely."""

    code = "FS-5006"


class CorruptRow(FlowStoneError):
    """A row holds what no statement of FlowStone writes."""

    code = "FS-5007"


class ResourceUnavailable(FlowStoneError):
    """A resource that the step requires could not be set up in this process."""

    code = "FS-5008"
    retryable = True


class CommitUnknown(DatabaseUnavailable):
    """The connection broke while a commit was under way: it may have happened or not."""

    code = "FS-5012"


# --- FS-6xxx: values ------------------------------------------------------------------------------------------------------------


class InvalidValue(FlowStoneError):
    """A value is of a type that cannot be stored."""

    code = "FS-6001"


class ValueTooLarge(FlowStoneError):
    """A value is larger than its store takes."""

    code = "FS-6002"


class ValueNotFound(FlowStoneError):
    """No value is stored under this asset and partition."""

    code = "FS-6003"


class StorageError(FlowStoneError):
    """A value store did not answer as it should."""

    code = "FS-6004"
    retryable = True


# --- sentences and plain forms --------------------------------------------------------------------------------------------------


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """The question "Did you mean 'orders'?" for the nearest candidate, or the empty text when none is near."""
    by_folded = {candidate.casefold(): str(candidate) for candidate in sorted(set(candidates), reverse=True)}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f"Did you mean {by_folded[near[0]]!r}?" if near else ""


def reference_table() -> str:
    """All codes of this page as a Markdown table, whatever else is imported."""
    rows = [
        f'| <a id="{kind.code.lower()}"></a>{kind.code} | `{kind.__name__}` | {_summary(kind)} | {"yes" if kind.retryable else ""} |'
        for kind in FlowStoneError.known()
        if kind.__module__ == __name__
    ]
    return "\n".join(["| code | class | what it says | retryable |", "|---|---|---|---|", *rows])


def _summary(kind: type[FlowStoneError]) -> str:
    lines = (kind.__doc__ or kind.__name__).strip().splitlines()
    return lines[0].rstrip(".")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", ".)")) else f"{text}."


def _qualified(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _step(name: str, partition: str) -> str:
    subject = f"step {name!r}" if name else "the step's function"
    return f"{subject} of partition {partition!r}" if partition else subject


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:_TEXT_LIMIT]
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything, and the failure must be recorded all the same
        return "(its text could not be read)"


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {_clean(str(key)): _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(member) for member in value]
    if value is None or (isinstance(value, int) and abs(value) < _PLAIN_INT):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _clean(str(value))


def _clean(text: str) -> str:
    """Text that jsonb takes: no NUL, no half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\ufffd")


if __name__ == "__main__":
    print(reference_table())
