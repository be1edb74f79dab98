"""Machine + request -> plan: for each component where its weights are kept, in which type, and why.

The planner lists every config of a component, the simpler ones first, and estimates its peaks and
seconds. It drops configs that do not fit and chooses the fastest of the others; of equally fast ones,
the simplest. A user's pins are never overridden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lowmem_if.cascade.catalog import component_name
from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.lora.adapter import Lora, of_stage
from lowmem_if.cascade.strategies import (
    EXACT,
    PREFERENCES,
    Pin,
    parse_pin,
    pin_texts,
)
from lowmem_if.errors import CheckpointError, DoesNotFit, RequestError, RunFolderError
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.alternatives import closest_alternatives
from lowmem_if.planning.candidates import configs_for
from lowmem_if.planning.estimates.execution import Estimate, ExecutionConfig
from lowmem_if.planning.estimates.workload import samplings_of
from lowmem_if.planning.evaluate import Evaluation, deficit, evaluated
from lowmem_if.planning.fitting import Fitting, located
from lowmem_if.planning.plan_json import flat_step, nested_step
from lowmem_if.planning.reasons import reason, runner_up
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.input_tiles import UPSCALER_SIDE
from lowmem_if.request.request import Request
from lowmem_if.request.request_json import request_from_json, request_to_json
from lowmem_if.request.sampling import Sampling


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


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan is a value: `Plan.from_json(plan.to_json()) == plan`.

    Attributes:
        prefer: the user's preference, `exact` or `balanced`.
        pins: the user's own choices: component -> text of the pin.
        download_bytes: bytes that must still be downloaded.
    """

    machine: Machine
    request: Request
    prefer: str
    pins: dict[str, str]
    steps: tuple[Step, ...]
    download_bytes: int

    @property
    def seconds(self) -> float:
        """Estimated seconds of the whole run, including the worker's start."""
        return self.machine.speeds.start_s + sum(step.estimate.seconds for step in self.steps)

    def step(self, component: str) -> Step:
        """The step of one component."""
        return next(step for step in self.steps if step.component == component)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON data; `fits` is true, since a plan that does not fit is never made."""
        data: dict[str, Any] = _adapter().dump_python(self, mode="json")
        steps = [flat_step(step) for step in data["steps"]]
        return {"fits": True, **data, "request": request_to_json(self.request), "steps": steps}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            RunFolderError: `data` is not such a plan.
        """
        try:
            steps = [nested_step(step) for step in data["steps"]]
            read = {
                "request": request_from_json(data["request"]),
                "pins": {component_name(name): pin for name, pin in data["pins"].items()},
                "steps": steps,
            }
            return _adapter().validate_python({**data, **read})
        except (
            ValidationError, RequestError, CheckpointError, AttributeError, LookupError, TypeError,
        ) as error:  # fmt: skip
            first = str(error).splitlines()[0]
            raise RunFolderError(
                f"the plan cannot be read ({first}); start a new folder"
            ) from error


@cache
def _adapter() -> TypeAdapter[Plan]:
    """What reads and writes plans; making it takes some 40 milliseconds."""
    return TypeAdapter(Plan)


def make_plan(
    machine: Machine,
    request: Request,
    *,
    prefer: str = EXACT,
    pins: Mapping[str, Pin] | None = None,
) -> Plan:
    """Choose a strategy for every component of the request.

    Raises:
        DoesNotFit: no strategy of a component fits; the error names requests that fit.
        CascadeError, CheckpointError: there is no such cascade, or one of its files is broken.
        HubError: a repository in `parts` is not on this disk, and the Hub cannot be asked about it.
        LoraError: a LoRA fits none of the stages that run, or both.
        DeviceError, RequestError: the device or the component does not support a pin.
    """
    if prefer not in PREFERENCES:
        raise RequestError(f"unknown preference {prefer!r}: use {' or '.join(PREFERENCES)}")
    pins = {component_name(c): parse_pin(c, str(pin)) for c, pin in (pins or {}).items()}
    request, location = located(request)
    try:
        steps = tuple(
            _choose(machine, request, location, component, prefer, pins.get(component))
            for component in request.components
        )
    except NoFit as error:
        alternatives = closest_alternatives(machine, request, prefer, pins, Fitting())
        raise DoesNotFit(*error.figures, alternatives) from None
    return Plan(machine, request, prefer, pin_texts(pins), steps, _download_bytes(location, steps))


class NoFit(Exception):
    """No strategy of a component fits; the figures are those of the smallest shortage."""

    def __init__(self, component: str, resource: str, needed: int, available: int) -> None:
        self.figures = (component, resource, needed, available)


def _choose(
    machine: Machine,
    request: Request,
    location: Location,
    component: str,
    prefer: str,
    pin: Pin | None,
) -> Step:
    candidates = list(_evaluated(machine, request, location, component, prefer, pin))
    return best_step(machine, request, location, candidates, pin)


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


def _evaluated(
    machine: Machine,
    request: Request,
    location: Location,
    component: str,
    prefer: str,
    pin: Pin | None,
) -> Iterator[Evaluation]:
    """Every config that the planner considers for a component, best first, with its evaluation."""
    configs = configs_for(machine, request, location, component, prefer, pin)
    return evaluated(machine, request, location, configs)


def cuts(config: ExecutionConfig) -> float:
    """How finely the user's own images are divided into tiles; 0: no tiles."""
    return UPSCALER_SIDE / config.tile if config.tile else 0.0


def _download_bytes(location: Location, steps: tuple[Step, ...]) -> int:
    return sum(
        step.estimate.read_bytes
        for step in steps
        if location.cascade.parts[step.component].repository  # else its weights are here
        and location.folder(step.component, storage=step.config.storage_dtype) is None
    )
