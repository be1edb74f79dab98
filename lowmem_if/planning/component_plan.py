"""Plan one component alone: a stage that is opened for a user's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.strategies import EXACT, PREFERENCES, Pin
from lowmem_if.errors import DoesNotFit, RequestError
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.candidates import configs_for
from lowmem_if.planning.evaluate import evaluated
from lowmem_if.planning.fitting import located
from lowmem_if.planning.plan import NoFit, Step, best_step
from lowmem_if.request.request import Request


def plan_component(
    machine: Machine,
    request: Request,
    component: str,
    *,
    prefer: str = EXACT,
    pins: Sequence[Pin | None] = (None,),
    batch: int = 1,
) -> tuple[Step, Location]:
    """Choose a strategy for one component of a request, whatever the others would need.

    Args:
        pins: the choices of which the best is taken; None: whatever the planner considers.
        batch: how many images share a pass of the UNet.

    Returns:
        The step, and where the component is; only this component's files are examined.

    Raises:
        DoesNotFit: nothing fits; its `nearest` is empty.
        LowmemError: as `make_plan`.
    """
    if prefer not in PREFERENCES:
        raise RequestError(f"unknown preference {prefer!r}: use {' or '.join(PREFERENCES)}")
    request, location = located(request, (component,))
    configs = [
        replace(config, batch=batch)
        for pin in pins
        for config in configs_for(machine, request, location, component, prefer, pin)
    ]
    candidates = list(evaluated(machine, request, location, configs))
    try:
        return best_step(machine, request, location, candidates, pins[0]), location
    except NoFit as error:
        raise DoesNotFit(*error.figures, "") from None
