"""What stays loaded from one run to the next: what the steps leave room for; and who goes first.

Every step keeps the strategy that its plan gave it with the whole budget. What its predicted peak leaves
over is filled with components that were loaded before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowmem_if.cascade.catalog import TEXT_ENCODER
from lowmem_if.planning.estimates.execution import Estimate
from lowmem_if.planning.evaluate import shortage
from lowmem_if.planning.plan import Plan, Step


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A component that is loaded and does nothing: its bytes, and what reading it again takes."""

    component: str
    vram_bytes: int
    ram_bytes: int
    read_bytes: int


def to_evict(others: Sequence[CacheEntry], step: Step, plan: Plan) -> list[CacheEntry]:
    """Those that a step has no room beside, in the order in which they should go.

    Only what is in the memory that is short goes; where no more of it can, the step has all there is.
    """
    staying = eviction_order(others, step.component, plan.request.components)
    going: list[CacheEntry] = []
    while short := shortage(plan.machine, step.config, _beside(step, staying)):
        resource = short[0]
        first = next((one for one in staying if _takes(one, resource)), None)
        if first is None:
            break
        staying.remove(first)
        going.append(first)
    return going


def eviction_order(
    others: Sequence[CacheEntry], turn: str, components: Sequence[str]
) -> list[CacheEntry]:
    """Components by when they are needed again, at the turn of one of them; the last one first.

    Runs of a session are taken to repeat, so turns go round in a circle, and what is needed the last is
    what had its turn just before (Belady's rule). Before all of these goes the text encoder, whose
    embeddings are kept on disk: only new texts need it; then what this run does without, the one that is
    quickest to read first.
    """

    def rank(one: CacheEntry) -> tuple[int, int]:
        if one.component == TEXT_ENCODER:
            return 0, 0
        if one.component not in components:
            return 1, one.read_bytes
        ahead = components.index(one.component) - components.index(turn)
        return 2, -(ahead % len(components))

    return sorted(others, key=rank)


def _beside(step: Step, staying: Sequence[CacheEntry]) -> Estimate:
    """The step's peaks on top of what stays."""
    return replace(
        step.estimate,
        vram_bytes=step.estimate.vram_bytes + sum(one.vram_bytes for one in staying),
        ram_bytes=step.estimate.ram_bytes + sum(one.ram_bytes for one in staying),
    )


def _takes(one: CacheEntry, resource: str) -> bool:
    return bool({"RAM": one.ram_bytes, "VRAM": one.vram_bytes}.get(resource, 1))
