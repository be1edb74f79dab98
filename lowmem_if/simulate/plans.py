"""A plan whose steps on an accelerator were all simulated, even those that the shipped table lacks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import Location, locate
from lowmem_if.cascade.parts import Part
from lowmem_if.cascade.strategies import EXACT, Pin
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.estimates.memory import is_simulated, remember
from lowmem_if.planning.estimates.passes import attention_of
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
    prefer: str = EXACT,
    pins: Mapping[str, Pin] | None = None,
    report: Callable[[str], object] = lambda _line: None,
) -> Plan:
    """The plan, made again until every step on an accelerator has been simulated.

    Raises:
        SimulationError: the simulator does not support this version of torch.
        DoesNotFit and the others of `make_plan`.
    """
    location = locate(request.cascade, components=request.components, revision=request.revision)
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
        root = location.folder(step.component, storage=step.config.storage_dtype)
        if root is None:
            root = _made_up(location.cascade.name, part, step, undo)
        simulated = simulate_step(step, root, attention=attention_of(step.config.device))
    host = simulated.peak("anonymous") + simulated.peak("pinned")
    remember(
        part,
        step.config,
        vram_bytes=simulated.peak("allocated"),
        reserved_bytes=simulated.peak("reserved"),
        host_bytes=host,
    )


def _made_up(cascade: str, part: Part, step: Step, undo: ExitStack) -> Path:
    assert cascade in catalog.PUBLISHED, "a local cascade has its files"
    folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
    synthesize(cascade, folder, fill=ZEROS, components=(step.component,))
    return folder / part.root
