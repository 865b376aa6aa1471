"""From a request for assets to a run with its steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flowstone_celery import codec
from flowstone_celery.assets.handler import KIND
from flowstone_celery.core.model import NewRun, NewStep

if TYPE_CHECKING:
    from flowstone_celery.assets.asset import AssetSpec, Dependency
    from flowstone_celery.assets.catalog import Catalog

QueueOf = Callable[["AssetSpec"], str]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: assets for one partition, with the options of the call."""

    targets: Sequence[str]
    """Qualified names."""
    partition: str = ""
    only: Collection[str] | None = None
    """Which assets of the targets' ancestry are made; None: all of them."""
    priority: int | None = None
    queue: str | None = None
    due_in: float = 0.0
    key: str | None = None
    """Idempotency key: a second request with the same key and content answers the same run."""
    requested_by: str = ""
    tenant: str = ""
    correlation_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What two requests with the same key must share."""
        return codec.digest(
            [list(self.targets), self.partition, self.queue, self.priority, dict(self.metadata)]
        )


def dependencies(catalog: Catalog, spec: AssetSpec) -> list[tuple[Dependency, str]]:
    """What the asset needs: each declared dependency with the qualified name it stands for."""
    return [(dependency, catalog.resolve(spec, dependency.name)) for dependency in spec.dependencies]


def plan(catalog: Catalog, request: Request, queue_of: QueueOf) -> NewRun:
    """A run that makes the wanted assets in dependency order, each step once."""
    ancestry = catalog.graph().plan(*request.targets)
    wanted = [name for name in ancestry if request.only is None or name in request.only]
    positions = {name: position for position, name in enumerate(wanted)}
    return NewRun(
        kind=KIND,
        name=request.targets[0] if len(request.targets) == 1 else ",".join(request.targets),
        partition=request.partition,
        steps=[_step(catalog, name, positions, request, queue_of) for name in wanted],
        tenant=request.tenant,
        requested_by=request.requested_by,
        idempotency_key=request.key,
        request_digest=request.digest,
        priority=request.priority or 0,
        correlation_id=request.correlation_id,
        input={"metadata": dict(request.metadata)} if request.metadata else None,
    )


def _step(
    catalog: Catalog, name: str, positions: Mapping[str, int], request: Request, queue_of: QueueOf
) -> NewStep:
    spec = catalog.fetch(name)
    needs = {
        positions[upstream]: dependency.optional
        for dependency, upstream in dependencies(catalog, spec)
        if upstream in positions
    }
    return NewStep(
        kind=KIND,
        name=name,
        task=name,
        queue=request.queue or queue_of(spec),
        partition=request.partition,
        priority=spec.priority if request.priority is None else request.priority,
        needs=needs,
        max_failures=spec.retries + 1,
        timeout=spec.timeout,
        retry=spec.retry,
        code_digest=spec.code_digest,
        due_in=request.due_in if not needs else 0.0,
    )
