"""What each looser level of preference would save, compared with a plan."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_if.cascade.strategies import PREFERENCES, parse_pin
from lowmem_if.errors import DoesNotFit
from lowmem_if.planning.plan import Plan, make_plan


@dataclass(frozen=True, slots=True)
class Saving:
    """What a looser level would save; a negative number costs more.

    Attributes:
        level: the preference.
        seconds: seconds of the whole run.
        vram_bytes, ram_bytes: bytes of the largest step's peak.
    """

    level: str
    seconds: float
    vram_bytes: int
    ram_bytes: int


def savings(plan: Plan) -> tuple[Saving, ...]:
    """The savings of every level that is looser than the plan's own."""
    pins = {component: parse_pin(component, pin) for component, pin in plan.pins.items()}
    found = []
    for level in PREFERENCES[PREFERENCES.index(plan.prefer) + 1 :]:
        try:
            other = make_plan(plan.machine, plan.request, prefer=level, pins=pins)
        except DoesNotFit:  # the files on this disk may have changed since the plan was made
            continue
        vram, ram = (
            before - after for before, after in zip(_peaks(plan), _peaks(other), strict=True)
        )
        found.append(Saving(level, plan.seconds - other.seconds, vram, ram))
    return tuple(found)


def _peaks(plan: Plan) -> tuple[int, int]:
    """The largest peaks of VRAM and of RAM; each may be another step's."""
    estimates = [step.estimate for step in plan.steps]
    return max(e.vram_bytes for e in estimates), max(e.ram_bytes for e in estimates)
