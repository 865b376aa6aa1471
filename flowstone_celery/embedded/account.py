"""PostgreSQL refuses to run as root; here is the account it runs under instead, in folders that only root may enter."""

from __future__ import annotations

import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path

from flowstone_celery.embedded.home import OUTSIDE
from flowstone_celery.errors import ServiceUnavailable

NOBODY = "nobody"
_CAPABILITIES = (
    ("dac_read_search", 2),
    ("dac_override", 1),
)  # the weaker first; containers often grant the second only


@dataclass(frozen=True, slots=True)
class Account:
    """Who owns the cluster, and the words before a command that make it run as that user."""

    uid: int
    gid: int
    prefix: tuple[str, ...] = ()

    def own(self, folder: Path) -> Path:
        """The folder exists, belongs to the account and is closed to others."""
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != self.uid:
            os.chown(folder, self.uid, self.gid)
        return folder


def account() -> Account:
    """Ourselves as an ordinary user; `nobody` for root."""
    return _for_root() if os.geteuid() == 0 else Account(os.geteuid(), os.getegid())


def _for_root() -> Account:
    """`nobody` with one right of root's kept: to pass through folders. Without it, a project under /root would be out of reach.

    The right must be ambient (to survive the programs that initdb starts) and the fix-up of capabilities be off (or access(2),
    by which PostgreSQL looks for its own files, would answer without it).
    """
    setpriv = shutil.which("setpriv", path=os.environ.get("PATH", os.defpath) + ":/usr/bin:/bin")
    try:
        nobody = pwd.getpwnam(NOBODY)
    except KeyError:
        nobody = None
    if setpriv is None or nobody is None:
        missing = (
            "the program `setpriv` (package util-linux)" if setpriv is None else f"the account `{NOBODY}`"
        )
        raise ServiceUnavailable(
            f"PostgreSQL refuses to run as root, and {missing}, by which root runs it as somebody else, is not on this machine.",
            hint=f"Install what is missing, run as an ordinary user, {OUTSIDE}.",
        )
    words = [
        setpriv,
        f"--reuid={nobody.pw_uid}",
        f"--regid={nobody.pw_gid}",
        "--clear-groups",
        "--no-new-privs",
    ]
    if right := _right_to_pass():
        words += ["--securebits=+no_setuid_fixup", f"--inh-caps=+{right}", f"--ambient-caps=+{right}"]
    return Account(nobody.pw_uid, nobody.pw_gid, tuple(words))


def _right_to_pass() -> str | None:
    """The weakest right that we hold and that lets a process pass through closed folders."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    held = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return next((name for name, bit in _CAPABILITIES if held >> bit & 1), None)
