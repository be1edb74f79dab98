"""Plan one component alone: a stage that is opened for a user's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.strategies import Pin, levels_of
from lowmem_if.errors import DoesNotFit
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.candidates import configs_for
from lowmem_if.planning.evaluate import Evaluation, evaluated
from lowmem_if.planning.fitting import located
from lowmem_if.planning.step import NoFit, Step, strictest_step
from lowmem_if.request.request import Request


def plan_component(
    machine: Machine,
    request: Request,
    component: str,
    *,
    prefer: str | None = None,
    pins: Sequence[Pin | None] = (None,),
    batch: int = 1,
) -> tuple[Step, Location]:
    """Choose a strategy for one component of a request, whatever the others would need.

    Args:
        prefer: as for `make_plan`.
        pins: the choices of which the best is taken; None: whatever the planner considers.
        batch: how many images share a pass of the UNet.

    Returns:
        The step, and where the component is; only this component's files are examined.

    Raises:
        DoesNotFit: nothing fits; its `nearest` is empty.
        LowmemError: as `make_plan`.
    """
    levels = levels_of(prefer)
    request, location = located(request, (component,))

    def candidates(level: str) -> list[Evaluation]:
        configs = [
            replace(config, batch=batch)
            for pin in pins
            for config in configs_for(machine, request, location, component, level, pin)
        ]
        return list(evaluated(machine, request, location, configs))

    try:
        _, step = strictest_step(machine, request, location, levels, candidates, pins[0])
        return step, location
    except NoFit as error:
        raise DoesNotFit(*error.figures, "") from None
