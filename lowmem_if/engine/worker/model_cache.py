"""The cache of a worker: the components that it keeps loaded between steps, at most one of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lowmem_if.engine.events import Evicted, ReleaseProof, Report, ignore
from lowmem_if.engine.worker_answers import CacheState, LoadedComponent
from lowmem_if.planning.estimates.execution import ExecutionConfig
from lowmem_if.planning.eviction import CacheEntry, to_evict
from lowmem_if.planning.plan import Plan, Step
from lowmem_if.stages.lifetime import Lifetime
from lowmem_if.stages.pipelines import baked_in
from lowmem_if.weights.memory_readings import Release


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What decides a loaded component's bits and device; with another key it is loaded again.

    Attributes:
        root, weights: its folder, and the fingerprint of the files in it.
        config: the step's configuration without what only drawing depends on.
        baked: what else it is made with: parts of the samplings, and the flags of the last step.
    """

    root: Path
    weights: str
    config: ExecutionConfig
    baked: tuple[object, ...]

    @staticmethod
    def of(root: Path, weights: str, step: Step, made_with: tuple[object, ...] = ()) -> CacheKey:
        config = replace(step.config, batch=1, area=1.0, tile=0)
        return CacheKey(root, weights, config, (*baked_in(step), *made_with))


@dataclass(slots=True)
class _Slot:
    key: CacheKey
    entry: CacheEntry
    life: Lifetime[Any]


class ModelCache:
    """Components between their steps. A component that a step uses is not in the cache meanwhile.

    Attributes:
        keeps: whether components are kept at all; if not, each is unloaded after its step.
        alone: components next to which nothing is kept, because memory ran out next to others.
    """

    def __init__(self, report: Report = ignore, *, keeps: bool = False) -> None:
        self.keeps = keeps
        self.alone: frozenset[str] = frozenset()
        self._report = report
        self._slots: dict[str, _Slot] = {}

    def held_bytes(self) -> tuple[int, int]:
        """(VRAM, RAM) of all components in the cache."""
        entries = [slot.entry for slot in self._slots.values()]
        return sum(one.vram_bytes for one in entries), sum(one.ram_bytes for one in entries)

    def clear(self, key: CacheKey, step: Step, plan: Plan) -> Iterator[tuple[str, Release]]:
        """Evict what a step has no room for, first its own component if its key has changed."""
        name = step.component
        if name in self._slots and self._slots[name].key != key:
            yield name, self._evict(name)
        others = [slot.entry for other, slot in self._slots.items() if other != name]
        for one in others if name in self.alone else to_evict(others, step, plan):
            yield one.component, self._evict(one.component)

    def take(self, component: str) -> Lifetime[Any] | None:
        """A cache hit: the component for its step; None if it is not loaded. Call `clear` first."""
        slot = self._slots.pop(component, None)
        if slot is None:
            return None
        self._report_state()
        slot.life.wake()
        return slot.life

    def put(self, key: CacheKey, entry: CacheEntry, life: Lifetime[Any]) -> None:
        """Keep a component whose step is over."""
        life.rest()
        self._slots[entry.component] = _Slot(key, entry, life)
        self._report_state()

    def empty(self) -> Iterator[tuple[str, Release]]:
        """Evict everything."""
        for component in list(self._slots):
            yield component, self._evict(component)

    def _evict(self, component: str) -> Release:
        release = self._slots.pop(component).life.end()
        self._report_state()
        self._report(Evicted(component, ReleaseProof(**asdict(release))))
        return release

    def _report_state(self) -> None:
        """Report what is loaded, so that the parent knows what was lost if this process dies."""
        loaded = tuple(
            LoadedComponent(
                component=name,
                strategy=slot.key.config.strategy,
                storage_dtype=slot.key.config.storage_dtype,
                device=slot.key.config.device,
                bytes=slot.entry.vram_bytes + slot.entry.ram_bytes,
            )
            for name, slot in self._slots.items()
        )
        self._report(CacheState(loaded))


def left_behind(component: str, release: Release) -> str:
    """What remains of a component that should have been freed, in words."""
    vram = max(release.vram_left_bytes, release.reserved_left_bytes)
    words = (
        f"{component} left {release.ram_left_bytes / 1e6:.0f} MB of RAM and "
        f"{vram / 1e6:.0f} MB of VRAM behind"
    )
    return words + (f"; still alive: {', '.join(release.alive)}" if release.alive else "")
