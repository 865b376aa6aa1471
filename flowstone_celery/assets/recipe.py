"""What a value is made of, as one short text: its code, and the content of everything that went into it.

Two values of one recipe are as good as each other. An input that was made anew with the same content leaves the recipe as it was:
what stands on it need not be made again.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec

_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}:"
_VERSION = "version:"

Consumed = tuple[str, str, str]
"""One slice that went in: asset, partition text, digest of its content."""


def recipe(spec: AssetSpec, consumed: Iterable[Consumed]) -> str:
    """The recipe of a value of this asset, made from these slices; their order makes no difference."""
    return f"{code_of(spec)}|{digest_of(consumed)}"


def code_of(spec: AssetSpec) -> str:
    """The code's half: the declared version, else the digest of the compiled function under this Python's minor version."""
    return (
        f"{_VERSION}{spec.code_version}" if spec.code_version is not None else f"{_PYTHON}{spec.code_digest}"
    )


def code_named(version: str | None) -> str | None:
    """The code's half for a declared version, where one was declared."""
    return None if version is None else f"{_VERSION}{version}"


def digest_of(consumed: Iterable[Consumed]) -> str:
    """The inputs' half."""
    return hashlib.sha256(orjson.dumps(sorted(set(consumed)))).hexdigest()


def halves(text: str) -> tuple[str, str]:
    """A recipe's code and its inputs."""
    code, _, inputs = text.rpartition("|")
    return code, inputs


def code_change(spec: AssetSpec, was: str, digest: str | None) -> tuple[str, str] | None:
    """From what to what the code changed since a value was made with `was`; None if it did not, or nobody can tell.

    Another minor version of Python compiles the same function differently: such digests are not compared. Nor is a declaration a
    change that begins, or ceases, to name a version of code whose digest (`digest`: the one that the value was made with) is the same.
    """
    now = code_of(spec)
    if was == now:
        return None
    if not was.startswith(_VERSION) and not now.startswith(_VERSION) and not was.startswith(_PYTHON):
        return None
    if was.startswith(_VERSION) != now.startswith(_VERSION) and digest == spec.code_digest:
        return None
    return _shown(was), _shown(now)


def _shown(code: str) -> str:
    kind, _, rest = code.partition(":")
    return repr(rest) if f"{kind}:" == _VERSION else rest[:8]
