"""A set-up or a check of a resource runs: in user code, on whatever thread, whether anybody still waits for it or not."""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from flowstone_celery.assets.resource_state import Instance, ResourceState, text_of, took
from flowstone_celery.telemetry import emit

if TYPE_CHECKING:
    from flowstone_celery.assets.resource import Opened
    from flowstone_celery.assets.resource_state import Attempt, Here
    from flowstone_celery.core.model import Call


def attempt_it(here: Here, attempt: Attempt, call: Call | None = None) -> None:
    """The try has run and its outcome is noted. With a call it runs on the step's own thread, where interrupts reach it and pass."""
    section = nullcontext() if call is None else call.user_code()
    if attempt.instance is None:
        _set_up(here, attempt, section)
    else:
        _check(here, attempt, attempt.instance, section)


def give_up(here: Here, attempt: Attempt) -> None:
    """The try took too long: whatever comes of it, nobody waits for it."""
    spec = attempt.spec
    with here.lock:
        if attempt.ended or attempt.abandoned:
            return
        cell = here.cell(spec.name)
        cell.give_up(attempt)
        thread = attempt.thread.name if attempt.thread else "?"
        reason = f"no answer within {spec.timeout:g} s (thread {thread} hangs)"
        hanging = len(cell.hanging)
        if attempt.instance is None:
            attempt.error = reason
            cell.fails(reason, spec.retry_after)
        else:
            here.retire(attempt.instance)
            cell.becomes(ResourceState.UNHEALTHY, reason)
    if attempt.instance is None:
        _tell_failed(attempt, reason, hanging=hanging)
    else:
        emit("flowstone.resource.unhealthy", resource=spec.name, reason=reason)
    attempt.over.set()


# --- set up ---------------------------------------------------------------------------------------------------------------------


def _set_up(here: Here, attempt: Attempt, section: Any) -> None:
    begun = time.monotonic()
    values = MappingProxyType({name: each.opened.value for name, each in attempt.upstream.items()})
    opened: Opened | None = None
    try:
        with section:
            opened = attempt.spec.open(values)
    except BaseException as error:
        passes = _passes(attempt, error)
        if opened is None:
            _failed(here, attempt, None if passes else error, begun)
        else:
            _opened(here, attempt, opened, begun)
        if passes:
            raise
    else:
        _opened(here, attempt, opened, begun)


def _passes(attempt: Attempt, error: BaseException) -> bool:
    """Whether it asks the step to end, on whose thread this runs."""
    return attempt.thread is None and not isinstance(error, Exception)


def _opened(here: Here, attempt: Attempt, opened: Opened, begun: float) -> None:
    """What was set up serves from now on; what comes too late is torn down at once."""
    instance = Instance(attempt.spec, opened, attempt.upstream, retired=attempt.abandoned)
    with here.lock:
        cell = here.cell(attempt.spec.name)
        late = instance.retired = attempt.abandoned
        cell.ended(attempt)
        here.live.append(instance)
        if not late:
            cell.instance = instance
            cell.becomes(ResourceState.READY)
    if not late:
        emit(
            "flowstone.resource.setup",
            resource=attempt.spec.name,
            duration_ms=took(begun),
            asset=attempt.asset,
        )
    attempt.over.set()
    here.sweep()


def _failed(here: Here, attempt: Attempt, error: BaseException | None, begun: float) -> None:
    """The set-up failed; without an error it was the step that had to end."""
    reason = None if error is None else text_of(error)
    with here.lock:
        cell = here.cell(attempt.spec.name)
        late = attempt.abandoned
        cell.ended(attempt)
        if reason is not None and not late:
            attempt.error, attempt.cause = reason, error
            cell.fails(reason, attempt.spec.retry_after)
    if reason is not None and not late:
        _tell_failed(attempt, reason, duration_ms=took(begun))
    attempt.over.set()
    here.release(attempt.upstream)


def _tell_failed(attempt: Attempt, reason: str, **more: object) -> None:
    emit(
        "flowstone.resource.setup_failed",
        resource=attempt.spec.name,
        error=reason,
        asset=attempt.asset,
        **more,
    )


# --- check ----------------------------------------------------------------------------------------------------------------------


def _check(here: Here, attempt: Attempt, instance: Instance, section: Any) -> None:
    """The instance stays if it is healthy, and is on its way out if it is not."""
    reason: str | None = None
    ended: BaseException | None = None
    try:
        with section:
            reason = _reason(instance.opened)
    except BaseException as error:  # noqa: BLE001 - raised again below if it asks the step to end
        ended = error if _passes(attempt, error) else None
        reason = None if ended else text_of(error)
    with here.lock:
        cell = here.cell(attempt.spec.name)
        late = attempt.abandoned
        cell.ended(attempt)
        if ended is None and not late:
            instance.checked = time.monotonic()
        if reason is not None and not late:
            here.retire(instance)
            cell.becomes(ResourceState.UNHEALTHY, reason)
    if reason is not None and not late:
        emit("flowstone.resource.unhealthy", resource=attempt.spec.name, reason=reason)
    here.release({**attempt.upstream, attempt.spec.name: instance})
    attempt.over.set()
    if ended is not None:
        raise ended


def _reason(opened: Opened) -> str | None:
    """Why it is unhealthy, or None."""
    assert opened.health is not None
    answer = opened.health()
    if answer is None or isinstance(answer, str):
        return answer
    return None if answer else f"its check answered {answer!r:.80}"
