"""The Celery task under whose name steps run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

from celery import Task
from celery.exceptions import Ignore, Retry

from flowstone_celery.errors import DatabaseUnavailable, FlowStoneError, InvalidOption, WrongState
from flowstone_celery.worker.house import HEADER, house_of
from flowstone_celery.worker.observer import WELL, StepObserver
from flowstone_celery.worker.seat import seat_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flowstone_celery.worker.house import House

EARLY_ACK_SECONDS: Final = 60.0
"""A message whose step runs longer than this is acknowledged meanwhile: no broker's patience is put to the test."""

_FAR: Final = 10**9
"""Seconds: no Celery time limit ends a step, its own limits do."""


class StepTask(Task):  # type: ignore[misc]  # Celery's classes are untyped
    """With our header it runs that step; called by a plain Celery user it starts a run."""

    abstract = True
    Request = "flowstone_celery.worker.request:StepRequest"
    acks_late = True
    reject_on_worker_lost = False
    acks_on_failure = True
    acks_on_timeout = True
    acks_on_failure_or_timeout = True
    retry_on_worker_lost = False
    ignore_result = True
    store_errors_even_if_ignored = False
    store_eager_result = False
    track_started = False
    max_retries = None
    serializer = "json"
    rate_limit = 0
    typing = False
    time_limit: float | None
    soft_time_limit: float | None
    throws = (FlowStoneError,)

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        """Run the step that the message names, or start a run.

        Raises:
            WrongState: no FlowStone is attached to the app.
        """
        house = house_of(self.app)
        if house is None:
            raise WrongState(
                f"{self.name!r} belongs to an app without FlowStone",
                hint="call FlowStone(app) where the app is made",
            )
        header = getattr(self.request, HEADER, None)
        return self._start(house, args, kwargs) if header is None else self._work(house, header["step"])

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., Any]:
        """How the worker's consumer handles a message of this task."""
        worker = consumer.controller
        limited = bool(worker.time_limit or worker.soft_time_limit or self.time_limit or self.soft_time_limit)
        # A limit given to the worker holds for every task without one of its own.
        self.time_limit = self.soft_time_limit = _FAR if limited else None
        handle: Callable[..., Any] = super().start_strategy(app, consumer, **kwargs)

        def handle_known(message: Any, *rest: Any, **more: Any) -> Any:
            header = message.headers.get(HEADER)
            why = "" if header is None else worker.flowstone.refusal(header)
            if why:
                return worker.flowstone.refuse(consumer, message, why)
            return handle(message, *rest, **more)

        return handle_known

    # --- a step ---------------------------------------------------------------------------------------------------------------

    def _work(self, house: House, step: int) -> str:
        seat, request = seat_of(self.app, house), self.request
        observer = StepObserver(
            self.app, seat.line, step, request.id, request.hostname or "", sends=seat.place.sends_events
        )
        queue = (request.delivery_info or {}).get("routing_key") or self.app.conf.task_default_queue
        with seat.taken():
            try:
                seat.executor.work(step, queue, observer=observer)
            except DatabaseUnavailable as error:
                # Nothing was claimed; the row is still ready and the sweep wakes somebody when the database is back.
                raise Retry("the database is away", exc=_plain(error)) from None
            finally:
                observer.flush()
            return _shown(observer)

    # --- a plain call -----------------------------------------------------------------------------------------------------------

    def _start(self, house: House, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        if len(args) > 1:
            raise InvalidOption(
                f"{self.name!r} takes a partition and named options, not {len(args)} positional arguments",
                hint=f"app.send_task({self.name!r}, kwargs={{'partition': …}})",
            )
        named: Mapping[str, Any] = {"partition": args[0], **kwargs} if args else kwargs
        try:
            run = house.start(self.name, named, self.request.id)
        except DatabaseUnavailable as error:
            # No run exists yet, so the message is all there is: Celery keeps it.
            raise self.retry(exc=_plain(error), countdown=5) from None
        return None if run is None else str(getattr(run, "id", run))


def _shown(observer: StepObserver) -> str:
    """How the message's own task ends for Celery: as the step that it named did. None of it is republished or stored."""
    named = observer.named
    if named is None:
        return f"it was done; {observer.further} others" if observer.further else "it was done"
    if named.event == "failed":
        raise _plain(named.error)
    if named.event == "cancelled":
        observer.revoked()
        observer.flush()
        raise Ignore(str(named.error or "cancelled"))
    if named.event not in WELL:
        _again(named.event, named.error)
    how = named.did or named.event
    return f"{how}; {observer.further} others" if observer.further else how


def _again(event: str, error: FlowStoneError | None) -> NoReturn:
    said = {"released": "given back: the worker stops", "stale": "another worker holds the step now"}
    raise Retry(str(error) if error else said.get(event, event), exc=_plain(error) if error else None)


def _plain(error: FlowStoneError | None) -> FlowStoneError:
    """The same error with plain facts and no traceback: it can travel to the pool's parent."""
    return FlowStoneError.from_dict((error or FlowStoneError("the step failed")).to_dict())
