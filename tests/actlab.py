"""Short words for tests of acts on runs: who does them, and how runs stand in their lane."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from corelab import Lab

from flowstone_celery.core.acts import Doer
from flowstone_celery.outcomes import Fail

if TYPE_CHECKING:
    from collections.abc import Iterable

BROKEN = Fail("it broke")


def doer(lab: Lab) -> Doer:
    """The laboratory as somebody who acts."""
    return Doer(lab.database, lab.postbox, lab.settings)


def begun(lab: Lab, runs: Iterable[UUID]) -> list[UUID]:
    """Which of these runs have begun, in this order."""
    return [run for run in runs if lab.run(run)["started_at"] is not None]


def starts(lab: Lab, run: UUID, round_: int) -> int:
    """How many attempts began in a round of a run."""
    return int(
        lab.scalar(
            "SELECT count(*) FROM flowstone.history WHERE run_id = %(run)s AND round = %(round)s AND event = 'step.running'",
            run=run,
            round=round_,
        )
    )
