"""Why a busy prefork worker is slow to stop, and the end of it.

When Celery's consumer closes, it flushes the pool: jobs that a child has been given, but whose start the parent has not read yet,
are forgotten. The child runs such a job all the same, and before it exits waits up to 30 s for the parent to have read its result
(`billiard.pool.Worker._ensure_messages_consumed`). The parent stops reading as soon as it knows of no job, and waits for the child.

Once the parent knows of no job, no unread result can matter to anyone: the children need not wait.
"""

from __future__ import annotations

from typing import Any, Final

from billiard.pool import CLOSE

_ENOUGH: Final = 2**30
"""More results than a child ever counts, and room to count on."""


def let_children_go(pool: Any) -> bool:
    """Children of a closed pool that has no job left wait for nothing. False if there is still a job, or no such pool.

    Called from the worker's timer, which goes on while the pool is joined.
    """
    inner = getattr(pool, "_pool", None)
    if inner is None or getattr(inner, "_state", None) != CLOSE or inner._cache:
        return False
    for counter in list(getattr(inner, "_on_ready_counters", {}).values()):
        # The bare integer: a child that was killed may have taken the counter's lock with it.
        counter.get_obj().value = _ENOUGH
    return True
