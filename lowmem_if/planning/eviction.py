"""Decide which cached components are evicted before a step, and in which order.

Every step keeps the strategy that its plan chose with the whole budget. Components from earlier steps
remain loaded in the memory that the step's predicted peak leaves free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowmem_if.cascade.catalog import facts
from lowmem_if.planning.estimates.execution import Estimate
from lowmem_if.planning.evaluate import shortage
from lowmem_if.planning.plan import Plan, Step


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A loaded component that is not in use: its memory, and the bytes to read if it is loaded again."""

    component: str
    vram_bytes: int
    ram_bytes: int
    read_bytes: int


def to_evict(others: Sequence[CacheEntry], step: Step, plan: Plan) -> list[CacheEntry]:
    """The cache entries to evict before a step, in this order.

    Only entries in the memory that is short are evicted. The step may still be short when none is left.
    """
    kept = eviction_order(others, step.component, plan.request.components)
    evicted: list[CacheEntry] = []
    while short := shortage(plan.machine, step.config, _with_cached(step, kept)):
        resource = short[0]
        first = next((entry for entry in kept if _uses(entry, resource)), None)
        if first is None:
            break
        kept.remove(first)
        evicted.append(first)
    return evicted


def eviction_order(
    others: Sequence[CacheEntry], current: str, components: Sequence[str]
) -> list[CacheEntry]:
    """Cache entries in eviction order, for the step of the component `current`.

    The text encoder is the first to evict: its embeddings are cached on disk, so only new texts need it.
    Then follow components that this run does not use, cheapest to reload first. The others follow by
    next use, latest first (Belady's rule). The runs of a session are assumed to repeat, so the component
    of the previous step has the latest next use.
    """

    def rank(entry: CacheEntry) -> tuple[int, int]:
        if facts(entry.component).encodes:
            return 0, 0
        if entry.component not in components:
            return 1, entry.read_bytes
        ahead = components.index(entry.component) - components.index(current)
        return 2, -(ahead % len(components))

    return sorted(others, key=rank)


def _with_cached(step: Step, kept: Sequence[CacheEntry]) -> Estimate:
    """The estimate of a step plus the memory of the cached components."""
    return replace(
        step.estimate,
        vram_bytes=step.estimate.vram_bytes + sum(entry.vram_bytes for entry in kept),
        ram_bytes=step.estimate.ram_bytes + sum(entry.ram_bytes for entry in kept),
    )


def _uses(entry: CacheEntry, resource: str) -> bool:
    return bool({"RAM": entry.ram_bytes, "VRAM": entry.vram_bytes}.get(resource, 1))
