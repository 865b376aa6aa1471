"""`fs_test`: one FlowStone on a database of its own, worked in this process, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flowstone_celery import faults
from flowstone_celery.core import doctor, runs
from flowstone_celery.core.executor import Executor
from flowstone_celery.core.inline import QUEUE, InlineInterrupts
from flowstone_celery.core.pacer import Pacer, end_at_limit
from flowstone_celery.core.statements import SQL
from flowstone_celery.core.wake import back_in_line
from flowstone_celery.core.workers import Node, WorkerProcess, report_node
from flowstone_celery.db.statements import Statement
from flowstone_celery.record import audit
from flowstone_celery.states import RUN_TERMINAL
from flowstone_celery.testing.clock import VirtualClock

if TYPE_CHECKING:
    from flowstone_celery.app import FlowStone
    from flowstone_celery.assets.handle import Run
    from flowstone_celery.config import Settings
    from flowstone_celery.db.database import Row

_FOR_EVER = 3650 * 86_400.0
_ENOUGH = 100_000
_NEXT_DUE = Statement(
    "testing",
    "next_due",
    frozenset(),
    "SELECT extract(epoch FROM min(due_at) - flowstone.now())::float8 AS due_in FROM flowstone.steps"
    " WHERE status = 'ready' AND queue = %(queue)s AND (%(run)s::uuid IS NULL OR run_id = %(run)s)",
)


class TestKit:
    """The real core, without Celery: what would be a worker is `drain()`."""

    __test__ = False

    def __init__(self, fs: FlowStone, settings: Settings) -> None:
        """Put this FlowStone on the test's database; `close` puts it back."""
        self.fs = fs
        self._before = fs.use(settings=settings, mode="inline")
        self.database = fs.database
        self.settings = settings
        self.clock = VirtualClock(self.database, fs.parts.resources.time_passes)
        self._executor = self._new_executor()
        fs.parts.work_inline_by(_OnVirtualTime(self))

    def close(self) -> None:
        """The FlowStone is as it was."""
        self.fs.close()
        self.fs.use(**self._before)

    # --- work -----------------------------------------------------------------------------------------------------------------

    def start(self, asset: Any, *, partition: Any = None, all_deps: bool = True, **options: Any) -> Run:
        """A run of the asset (and of all it stands on), begun and not worked."""
        target = self.fs.slice(asset, partition)
        return self.fs.begin([target], only=None if all_deps else {target}, drain=False, **options)

    def run(self, asset: Any, *, partition: Any = None, **options: Any) -> Run:
        """A run of the asset, worked to its end; pauses between retries pass on the virtual clock."""
        run = self.start(asset, partition=partition, **options)
        self.drain(run)
        return run

    def drain(self, run: Run | None = None, *, advance: bool = True) -> int:
        """Work what is ready, and what becomes ready, until nothing is left; answers how many steps ran.

        Args:
            run: only this run's steps.
            advance: move the clock ahead to what is due later.
        """
        only, count, idle = run.uuid if run else None, 0, False
        while count < _ENOUGH:
            back_in_line(self.database, only_run=only)
            done = self._executor.work(None, QUEUE, only_run=only)
            count += done
            due_in = None if done else self._next_due_in(only)
            if not done and (due_in is None or (due_in > 0 and not advance) or (due_in <= 0 and idle)):
                return count
            idle = (
                not done and due_in is not None and due_in <= 0
            )  # it became due between two looks: look once more
            if due_in is not None and due_in > 0:
                self.clock.advance(seconds=due_in + 0.001)
        raise AssertionError(f"{_ENOUGH:,} steps ran and there is no end")

    def step(self) -> bool:
        """Work exactly one step; False if none is ready."""
        back_in_line(self.database)
        return self._executor.work(None, QUEUE, going_on=False) == 1

    def sweep(self) -> None:
        """Do once what the ticker does: lost leases, cancelled runs, wake-ups."""
        Pacer(self.database, self.settings, self.fs.carrier, UUID(int=1)).step()

    def _next_due_in(self, only: UUID | None) -> float | None:
        """Seconds until the next ready step is due (0 or less: it is); None if there is none."""
        row = self.database.first(_NEXT_DUE, run=only, queue=QUEUE)
        found: float | None = row["due_in"] if row else None
        return found

    def _new_executor(self) -> Executor:
        node = Node.inline(QUEUE, self.fs.knows())
        report_node(self.database, node, keeper_pid=node.pid, lease=_FOR_EVER)
        worker = WorkerProcess(self.database, node.key, node.name, _FOR_EVER)
        return self.fs.executor_for(worker, InlineInterrupts(self.database))

    def override(self, **values: Any) -> AbstractContextManager[None]:
        """In the block these values stand for the resources of these names; they are neither set up nor torn down.

        Raises:
            UnknownResource: no resource of a name is declared.
        """
        return self.fs.override(**values)

    # --- crash ----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def crash_at(self, point: str, *, nth: int = 1) -> Iterator[None]:
        """In the block, the nth arrival at this crash point ends the work as a dying process would.

        The step it held is then released as its keeper would do it, and the block ends normally.

        Raises:
            AssertionError: the point was not reached.
        """
        crashed = False
        with faults.arm(point, "raise", nth=nth):
            try:
                yield
            except faults.FaultInjectedError:
                crashed = True
        assert crashed, f"crash point {point!r} was not reached {nth} time(s)"
        self._die()

    def _die(self) -> None:
        """This process's claims are released as those of a dead one, and it begins again as another."""
        worker = self._executor.worker_id
        limits = {"crash_limit": self.settings.crash_limit, "loss_limit": self.settings.loss_limit}
        self.database.once(
            SQL["release_dead"], workers=[worker], crash=1, loss=0, reason="its process died", **limits
        )
        end_at_limit(self.database, self.settings, workers=[worker])
        self.database.once(SQL["bury"], workers=[worker])
        self._executor = self._new_executor()

    # --- look -----------------------------------------------------------------------------------------------------------------

    def events(self, run: Run) -> list[str]:
        """The run's events in order: `run.running`, `step.succeeded shop.orders`, …"""
        return [f"{row['event']} {row['step']}" if row["step"] else str(row["event"]) for row in run.events()]

    def assert_materialized(self, asset: Any, *, partition: Any = None) -> Row:
        """The asset has a value for the partition; answers its newest version.

        Raises:
            AssertionError: it has none; names asset and partition.
        """
        from flowstone_celery.record import values

        name = self.fs.catalog.fetch(getattr(asset, "name", asset)).qualified
        found = values.versions(self.database, *self.fs.slice(name, partition), limit=1)
        assert found, f"asset {name!r} has no value for partition {partition!r}"
        return found[0]

    def refute_materialized(self, asset: Any, *, partition: Any = None) -> None:
        """The asset has no value for the partition."""
        assert not self.fs.exists(asset, partition=partition), (
            f"asset {asset!r} has a value for partition {partition!r}"
        )

    def assert_audit(self, action: str, run: Run, *, actor: str | None = None) -> Row:
        """The audit log holds this act on the run."""
        rows = [row for row in audit.of_resource(self.database, "run", run.id) if row["action"] == action]
        assert rows, f"no act {action!r} on run {run.id} is in the audit log"
        assert actor is None or rows[-1]["actor"] == actor, (
            f"{action!r} was done by {rows[-1]['actor']!r}, not {actor!r}"
        )
        return rows[-1]

    def assert_healthy(self) -> None:
        """The doctor finds no breach of an invariant."""
        findings = doctor.examine(self.database)
        assert not findings, "the doctor found:\n" + "\n".join(
            f"  {each.invariant}: {each.sentence}" for each in findings
        )

    def unfinished(self) -> list[Row]:
        """Every unfinished step, with the reason why it is not running."""
        return doctor.why_not_running(self.database)

    def wait_for(self, condition: Callable[[], bool], run: Run, *, within: float = 30.0) -> None:
        """Return when the condition holds (for tests with real workers); the error tells why the run stands where it stands."""
        import time

        ends = time.monotonic() + within
        while not condition():
            if time.monotonic() > ends:
                reasons = [f"{row['name']}: {row['reason']}" for row in run.why()]
                raise AssertionError(f"not within {within:g} s: run is {run.state}; {reasons}")
            if runs.read(self.database, run.uuid)["status"] in RUN_TERMINAL and not condition():
                raise AssertionError(f"the run ended as {run.state} and the condition does not hold")


class _OnVirtualTime:
    """What `fs.run(…)` is worked by in a test: to its end, and the pauses between retries pass on the virtual clock."""

    def __init__(self, kit: TestKit) -> None:
        self._kit = kit

    def drain(self, run_id: UUID) -> None:
        self._kit.drain(self._kit.fs.handle(run_id))
