"""The core as a state machine: any order of starts, claims, settlements, deaths, cancels and time leaves the invariants whole."""

from __future__ import annotations

from typing import Any

import pytest
from corelab import LONG, QUEUE, Lab, step
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from flowstone_celery.core import steps
from flowstone_celery.core.model import Claim
from flowstone_celery.core.retry_policy import RetryPolicy
from flowstone_celery.core.statements import SQL
from flowstone_celery.states import RUN_TERMINAL, StepStatus

SHAPES = {
    "one": [step("a", max_failures=2)],
    "chain": [step("a"), step("b", 0), step("c", 1)],
    "diamond": [
        step("a", priority=1),
        step("b", 0),
        step("c", 0, max_failures=3),
        step("d", 1, optional=[2]),
    ],
    "wide": [step("a"), step("b"), step("c", optional=[0, 1]), step("d", 2, optional=[0])],
}
ENDS = (StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED)


class Core(RuleBasedStateMachine):
    """Two workers; claims may be settled late, twice, or after another has taken the step."""

    lab: Lab

    claims: Bundle[Claim] = Bundle("claims")
    spent: Bundle[Claim] = Bundle("spent")

    @initialize()
    def begin(self) -> None:
        self.lab.wipe()
        self.node = self.lab.node()
        self.workers = [self.lab.worker(self.node) for _ in range(2)]
        self.runs: list[Any] = []
        self.ended: dict[int, str] = {}

    # --- acts -----------------------------------------------------------------------------------------------------------------

    @rule(shape=st.sampled_from(sorted(SHAPES)), promise=st.booleans())
    def start(self, shape: str, promise: bool) -> None:
        self.runs.append(self.lab.start(*SHAPES[shape], promise=promise))

    @rule(target=claims, which=st.integers(0, 1))
    def claim_by_query(self, which: int) -> Any:
        claim = self.lab.claim_next(self.workers[which], QUEUE)
        return multiple() if claim is None else claim

    @rule(target=claims, which=st.integers(0, 1), data=st.data())
    def claim_by_wake_up(self, which: int, data: st.DataObject) -> Any:
        known = [each.step for each in self.lab.postbox.sent]
        if not known:
            return multiple()
        claim = self.lab.claim(self.workers[which], data.draw(st.sampled_from(known)))
        return multiple() if claim is None else claim

    @rule(target=spent, claim=consumes(claims))
    def succeed(self, claim: Claim) -> Claim:
        self._settled(claim, self.lab.succeed(claim.held))
        return claim

    @rule(target=spent, claim=consumes(claims), status=st.sampled_from(ENDS))
    def end(self, claim: Claim, status: StepStatus) -> Claim:
        self._settled(claim, self._do(lambda tx: steps.end(tx, claim.held, status, {}, name=claim.name)))
        return claim

    @rule(target=spent, claim=consumes(claims), delay=st.sampled_from([0.0, 30.0]))
    def fail(self, claim: Claim, delay: float) -> Claim:
        from flowstone_celery.errors import ExecutionError

        limits = {"failures": claim.failures, "max_failures": claim.max_failures}
        policy = RetryPolicy("fixed", delay, delay, 0.0)
        error = ExecutionError("no")
        moved = self._do(
            lambda tx: steps.fail_or_retry(tx, claim.held, error, name=claim.name, policy=policy, **limits)
        )
        self._settled(claim, moved if moved and moved.event == "failed" else None)
        return claim

    @rule(target=spent, claim=consumes(claims))
    def give_back(self, claim: Claim) -> Claim:
        self._do(lambda tx: steps.give_back(tx, claim.held, "stop"))
        return claim

    @rule(claim=spent)
    def settle_again(self, claim: Claim) -> None:
        """What was settled, given back or lost under this fence settles nothing any more."""
        assert self.lab.succeed(claim.held) is None

    @rule(claim=claims)
    def settle_with_another_fence(self, claim: Claim) -> None:
        assert self.lab.succeed({**claim.held, "fence": claim.fence + 10**6}) is None
        assert self.lab.succeed({**claim.held, "worker": claim.worker_id + 10**6}) is None

    @rule(which=st.integers(0, 1), crash=st.booleans())
    def die(self, which: int, crash: bool) -> None:
        worker = self.workers[which]
        values = {"workers": [worker], "crash": int(crash), "loss": int(not crash), "reason": "died"}
        self.lab.database.once(SQL["release_dead"], **values, crash_limit=10**6, loss_limit=10**6)
        self.lab.database.once(SQL["bury"], workers=[worker])
        self.workers[which] = self.lab.worker(self.node)

    @rule()
    def lose_leases(self) -> None:
        """The node falls silent, is found lost, and beats again."""
        self.lab.sql(
            "UPDATE flowstone.workers SET alive_until = flowstone.now() - interval '1 second' WHERE status = 'live'"
        )
        self.lab.sql(
            "UPDATE flowstone.pacer SET steady_since = flowstone.now() - interval '10 minutes', beat_at = flowstone.now()"
        )
        self.lab.database.once(SQL["release_lost"], lease=2.0, loss_limit=10**6, limit=2)
        self.lab.database.once(SQL["beat"], node=self.node.key, alive=self.workers, lease=LONG)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.runs:
            self.lab.cancel(data.draw(st.sampled_from(self.runs)))

    @rule(seconds=st.sampled_from([1, 60]))
    def advance(self, seconds: int) -> None:
        self.lab.clock.advance(seconds=seconds)

    @rule()
    def promise(self) -> None:
        self.lab.pacer()._sweep()

    # --- what always holds ----------------------------------------------------------------------------------------------------

    @invariant()
    def the_doctor_finds_nothing(self) -> None:
        if hasattr(self, "runs"):
            assert self.lab.findings() == []

    @invariant()
    def what_ended_stays_as_it_ended(self) -> None:
        for step_id, status in getattr(self, "ended", {}).items():
            assert (
                self.lab.scalar("SELECT status FROM flowstone.steps WHERE id = %(id)s", id=step_id) == status
            )

    @invariant()
    def wake_ups_under_way_stay_within_their_room(self) -> None:
        assert self.lab.scalar("SELECT count(*) FROM flowstone.steps WHERE sent_at IS NOT NULL") <= 8

    def teardown(self) -> None:
        """Whatever happened, the work that is left comes to its end."""
        self.lab.sql(
            "UPDATE flowstone.workers SET alive_until = flowstone.now() - interval '1 second' WHERE status = 'live'"
        )
        self.lab.database.once(SQL["release_dead"], **_ALL_DEAD, workers=getattr(self, "workers", []))
        for run in getattr(self, "runs", []):
            self.lab.drain()
            from flowstone_celery.core import runs

            runs.cancel_steps(self.lab.database, run)
            assert self.lab.run(run)["status"] in RUN_TERMINAL
        assert self.lab.findings() == []

    def _do(self, work: Any) -> Any:
        return self.lab.database.attempt(work)

    def _settled(self, claim: Claim, moved: Any) -> None:
        if moved is not None:
            assert claim.id not in self.ended, "a step ended twice"
            self.ended[claim.id] = moved.event


_ALL_DEAD = {"crash": 0, "loss": 1, "reason": "the end", "crash_limit": 10**6, "loss_limit": 10**6}


@pytest.mark.timeout(180)
def test_the_invariants_hold_in_any_order_of_acts(module_lab: Lab) -> None:
    class Bound(Core):
        lab = module_lab

    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            phases=(
                Phase.explicit,
                Phase.reuse,
                Phase.generate,
            ),  # shrinking on a real database takes minutes
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
