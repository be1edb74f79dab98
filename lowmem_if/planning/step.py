"""One step of a plan, and the choice of the best one under the strictest level that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.lora.adapter import Lora, of_stage
from lowmem_if.cascade.strategies import Pin
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.estimates.execution import Estimate, ExecutionConfig
from lowmem_if.planning.estimates.workload import samplings_of
from lowmem_if.planning.evaluate import Evaluation, deficit
from lowmem_if.planning.reasons import reason, runner_up
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.input_tiles import UPSCALER_SIDE
from lowmem_if.request.request import Request
from lowmem_if.request.sampling import Sampling
from lowmem_if.units import format_bytes


@dataclass(frozen=True, slots=True)
class Step:
    """One component of a plan: how it is executed and samples, its estimate, and the reason.

    Attributes:
        samplings: mode -> how the component samples in it; empty if it samples nothing.
        reason: why `config` was chosen.
        instead_of: the runner-up, or a faster config that needs too much memory.
        lora: LoRAs that are merged into the UNet's weights while the weights are read.
    """

    config: ExecutionConfig
    estimate: Estimate
    samplings: dict[str, Sampling]
    reason: str
    instead_of: str
    lora: tuple[Lora, ...] = ()

    @property
    def component(self) -> str:
        return self.config.component

    def with_config(self, **changes: Any) -> Step:
        """The same step with some fields of its config changed."""
        return replace(self, config=replace(self.config, **changes))

    @property
    def sampling(self) -> Sampling | None:
        """The first mode's sampling; None for a component that samples nothing."""
        return next(iter(self.samplings.values()), None)

    def sampling_of(self, spec: ImageSpec) -> Sampling:
        """How this component samples one image."""
        return self.samplings[spec.mode].of(spec, self.component)


class NoFit(Exception):
    """No strategy of a component fits; the figures are those of the smallest shortage."""

    def __init__(self, component: str, resource: str, needed: int, available: int) -> None:
        self.figures = (component, resource, needed, available)

    @property
    def shortage(self) -> str:
        """The shortage in words: `needs 4.3 GB of VRAM, 3.9 GB available`."""
        _component, resource, needed, available = self.figures
        return f"needs {format_bytes(needed)} of {resource}, {format_bytes(available)} available"


def strictest_step(
    machine: Machine,
    request: Request,
    location: Location,
    levels: Sequence[str],
    candidates: Callable[[str], list[Evaluation]],
    pin: Pin | None,
) -> tuple[str, Step]:
    """The best step under the first level that fits, and this level.

    Args:
        levels: the levels to try, strictest first.
        candidates: level -> one component's candidates under it.

    Raises:
        NoFit: no candidate fits under any level; the figures are those of the last level.
    """
    first: NoFit | None = None
    for level in levels:
        try:
            step = best_step(machine, request, location, candidates(level), pin)
        except NoFit as error:
            first = first or error
            if level == levels[-1]:
                raise
            continue
        if first:
            step = replace(step, reason=f"{step.reason}; {levels[0]} {first.shortage}")
        return level, step
    raise ValueError("no levels to try")


def best_step(
    machine: Machine,
    request: Request,
    location: Location,
    candidates: list[Evaluation],
    pin: Pin | None,
) -> Step:
    """The best of one component's candidates, as a step.

    Raises:
        NoFit: none fits.
    """
    component = candidates[0].config.component
    fitting = [candidate for candidate in candidates if candidate.short is None]
    if not fitting:
        closest = min((c for c in candidates if c.short), key=deficit)
        assert closest.short is not None
        raise NoFit(component, *closest.short)
    # Tiles are no smaller than necessary; among configs with equal tiles the fastest wins.
    chosen = min(fitting, key=lambda candidate: (cuts(candidate.config), candidate.seconds))
    return Step(
        chosen.config,
        chosen.estimate,
        samplings_of(request, location.cascade, component),
        reason(machine, request, location.cascade.parts[component], chosen, pin),
        runner_up(machine, candidates, chosen),
        of_stage(request.lora, component),
    )


def cuts(config: ExecutionConfig) -> float:
    """How finely the user's own images are divided into tiles; 0: no tiles."""
    return UPSCALER_SIDE / config.tile if config.tile else 0.0
