"""A plan whose steps on an accelerator were all simulated, even those that the shipped table lacks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.parts import Part, Place
from lowmem_if.cascade.strategies import Pin
from lowmem_if.errors import CascadeError
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.estimates.memory import is_simulated, remember
from lowmem_if.planning.estimates.pass_lookup import attention_of
from lowmem_if.planning.plan import Plan, Step, make_plan
from lowmem_if.request.request import Request
from lowmem_if.simulate.simulated_step import simulate_step
from lowmem_if.weights.synthetic.checkpoints import ZEROS, synthesize

_MOST_ROUNDS = 12
"""Each round simulates what the last plan chose; a step that proves too large is not chosen again."""


def simulated_plan(
    machine: Machine,
    request: Request,
    *,
    prefer: str | None = None,
    pins: Mapping[str, Pin] | None = None,
    report: Callable[[str], object] = lambda _line: None,
) -> Plan:
    """The plan, made again until every step on an accelerator has been simulated.

    Raises:
        SimulationError: the simulator does not support this version of torch.
        DoesNotFit and the others of `make_plan`.
    """
    location = request.locate()
    plan = make_plan(machine, request, prefer=prefer, pins=pins)
    for _ in range(_MOST_ROUNDS):
        unknown = [step for step in plan.steps if not _is_known(location, step)]
        if not unknown:
            break
        for step in unknown:
            report(f"simulating {catalog.label(step.component)}: {step.config}")
            _simulate(location, step)
        plan = make_plan(machine, request, prefer=prefer, pins=pins)
    return plan


def _is_known(location: Location, step: Step) -> bool:
    """Whether a step was simulated, or need not be: on a CPU, and for images that are not square."""
    part = location.cascade.parts[step.component]
    return (
        step.config.device == "cpu"
        or step.config.drawn_area != 1
        or is_simulated(part, step.config)
    )


def _simulate(location: Location, step: Step) -> None:
    """Simulate a step by the headers of its files, or of made-up ones if they are not downloaded."""
    part = location.cascade.parts[step.component]
    with ExitStack() as undo:
        place = location.place(step.component, storage=step.config.storage_dtype)
        if place is None:
            place = Place(_made_up(location, part, step, undo))
        simulated = simulate_step(
            step, place.root, attention=attention_of(step.config.device), elsewhere=place.elsewhere
        )
    host = simulated.peak("anonymous") + simulated.peak("pinned")
    remember(
        part,
        step.config,
        vram_bytes=simulated.peak("allocated"),
        reserved_bytes=simulated.peak("reserved"),
        host_bytes=host,
    )


def _made_up(location: Location, part: Part, step: Step, undo: ExitStack) -> Path:
    name = location.cascade.name
    if location.choice.part(step.component) or name not in catalog.ON_HUB:
        raise CascadeError(
            f"the {step.component} of {location.choice} is not on this disk, and its sizes are not "
            f"published: `lowmem-if fetch {location.choice.options}`, or leave --simulate out"
        )
    folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
    synthesize(name, folder, fill=ZEROS, components=(step.component,))
    return folder / part.root
