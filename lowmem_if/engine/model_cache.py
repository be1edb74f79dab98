"""The components that a worker keeps loaded from one turn to the next, at most one of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lowmem_if.engine.events import Event, Report, ignore
from lowmem_if.planning.eviction import CacheEntry, to_evict
from lowmem_if.planning.execution import ExecutionConfig
from lowmem_if.planning.plan import Plan, Step
from lowmem_if.stages.lifetime import Lifetime
from lowmem_if.stages.pipelines import baked_in
from lowmem_if.weights.memory_readings import Release


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What decides a loaded component's bits and place; one of another form is loaded anew.

    Attributes:
        root, weights: its folder, and the identity of the files in it.
        config: of the step, without what only drawing asks for.
        baked: what else it is made with: of the samplings, and the finish's flags.
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
class _Entry:
    form: CacheKey
    kept: CacheEntry
    life: Lifetime[Any]


class ModelCache:
    """Components between their turns. On loan one is not on the shelf.

    Attributes:
        keeps: whether anything is kept at all; if not, a component leaves when its turn is over.
        alone: components that nothing else is kept beside: memory ran out when something was.
    """

    def __init__(self, report: Report = ignore, *, keeps: bool = False) -> None:
        self.keeps = keeps
        self.alone: frozenset[str] = frozenset()
        self._report = report
        self._entries: dict[str, _Entry] = {}

    def held_bytes(self) -> tuple[int, int]:
        """(VRAM, RAM) of all that is here."""
        kept = [entry.kept for entry in self._entries.values()]
        return sum(one.vram_bytes for one in kept), sum(one.ram_bytes for one in kept)

    def clear(self, form: CacheKey, step: Step, plan: Plan) -> Iterator[tuple[str, Release]]:
        """Let go of what is in the way of a step, its own component in another form first."""
        name = step.component
        if name in self._entries and self._entries[name].form != form:
            yield name, self._end(name)
        others = [entry.kept for other, entry in self._entries.items() if other != name]
        for one in others if name in self.alone else to_evict(others, step, plan):
            yield one.component, self._end(one.component)

    def take(self, component: str) -> Lifetime[Any] | None:
        """A component for its turn, if it is here; `clear` has seen to its form."""
        entry = self._entries.pop(component, None)
        if entry is None:
            return None
        self._tell()
        entry.life.wake()
        return entry.life

    def put(self, form: CacheKey, kept: CacheEntry, life: Lifetime[Any]) -> None:
        """Keep a component whose turn is over."""
        life.rest()
        self._entries[kept.component] = _Entry(form, kept, life)
        self._tell()

    def empty(self) -> Iterator[tuple[str, Release]]:
        """Let go of everything."""
        for component in list(self._entries):
            yield component, self._end(component)

    def _end(self, component: str) -> Release:
        release = self._entries.pop(component).life.end()
        self._tell()
        self._report(Event("evicted", component, text=json.dumps(asdict(release))))
        return release

    def _tell(self) -> None:
        """Say what is here, so that it is known what was lost if this process dies."""
        here = [
            {
                "component": name,
                "strategy": entry.form.config.strategy,
                "storage_dtype": entry.form.config.storage_dtype,
                "device": entry.form.config.device,
                "bytes": entry.kept.vram_bytes + entry.kept.ram_bytes,
            }
            for name, entry in self._entries.items()
        ]
        self._report(Event("shelf", text=json.dumps(here)))


@contextmanager
def closed_on_error(life: Lifetime[Any]) -> Iterator[None]:
    """Free a component if its turn ends in an error; nothing is proved then."""
    try:
        yield
    except BaseException:
        life.close()
        raise


def left_behind(component: str, release: Release) -> str:
    """What is left of a component that should have gone, in words."""
    vram = max(release.vram_left_bytes, release.reserved_left_bytes)
    words = (
        f"{component} left {release.ram_left_bytes / 1e6:.0f} MB of RAM and "
        f"{vram / 1e6:.0f} MB of VRAM behind"
    )
    return words + (f"; still alive: {', '.join(release.alive)}" if release.alive else "")
