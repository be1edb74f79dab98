"""Machine + request -> plan: for each component where its weights are kept, in which type, and why.

The planner lists every config of a component, the simpler ones first, and estimates its peaks and
seconds. It drops configs that do not fit and chooses the fastest of the others; of equally fast ones,
the simplest. A user's pins are never overridden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lowmem_if.cascade.catalog import component_name
from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.strategies import (
    EXACT,
    FAITHFUL,
    FAST,
    PREFERENCES,
    Pin,
    levels_of,
    parse_pin,
    pin_texts,
)
from lowmem_if.errors import CheckpointError, DoesNotFit, RequestError, RunFolderError
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.alternatives import closest_alternatives
from lowmem_if.planning.candidates import configs_for
from lowmem_if.planning.evaluate import Evaluation, evaluated
from lowmem_if.planning.fitting import Fitting, located
from lowmem_if.planning.plan_json import flat_step, nested_step
from lowmem_if.planning.step import NoFit, Step, strictest_step
from lowmem_if.request.request import Request
from lowmem_if.request.request_json import request_from_json, request_to_json

__all__ = ["Plan", "Step", "make_plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan is a value: `Plan.from_json(plan.to_json()) == plan`.

    Attributes:
        prefer: the level that the plan was made under.
        pins: the user's own choices: component -> text of the pin.
        download_bytes: bytes that must still be downloaded.
        automatic: whether the planner chose `prefer`. It may then go further when memory runs out.
    """

    machine: Machine
    request: Request
    prefer: str
    pins: dict[str, str]
    steps: tuple[Step, ...]
    download_bytes: int
    automatic: bool = False

    @property
    def asked(self) -> str | None:
        """The user's own `prefer`; None: the planner chose."""
        return None if self.automatic else self.prefer

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that a step may use if it must be planned again, strictest first."""
        if not self.automatic:
            return (self.prefer,)
        # Plans of version 0.2 were `exact` by default.
        return PREFERENCES[min(map(PREFERENCES.index, (self.prefer, FAITHFUL))) :]

    @property
    def loosened(self) -> str:
        """One line if the planner had to go further than `faithful`; else empty."""
        if not self.automatic or self.prefer in (EXACT, FAITHFUL):
            return ""
        return f"{FAITHFUL} does not fit, so this is {self.prefer}: pixels change a little"

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
                "automatic": data.get("automatic", data["prefer"] == EXACT),
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
    prefer: str | None = None,
    pins: Mapping[str, Pin] | None = None,
) -> Plan:
    """Choose a strategy for every component of the request.

    Args:
        prefer: the level that no component goes beyond; None: each component gets the strictest level
            under which it fits, from `faithful` on. Only `fast` leaves work out: that saves no memory.

    Raises:
        DoesNotFit: no strategy of a component fits; the error names requests that fit.
        CascadeError, CheckpointError: there is no such cascade, or one of its files is broken.
        HubError: a repository in `parts` is not on this disk, and the Hub cannot be asked about it.
        LoraError: a LoRA fits none of the stages that run, or both.
        DeviceError, RequestError: the device or the component does not support a pin.
    """
    levels = levels_of(prefer)
    pins = {component_name(c): parse_pin(c, str(pin)) for c, pin in (pins or {}).items()}
    request, location = located(request.faster() if prefer == FAST else request)
    try:
        chosen = [
            _choose(machine, request, location, component, levels, pins.get(component))
            for component in request.components
        ]
    except NoFit as error:
        alternatives = closest_alternatives(machine, request, prefer, pins, Fitting())
        raise DoesNotFit(*error.figures, alternatives) from None
    steps = tuple(step for _level, step in chosen)
    used = max((level for level, _step in chosen), key=PREFERENCES.index)
    return Plan(
        machine, request, used, pin_texts(pins), steps, _download_bytes(location, steps), not prefer
    )


def _choose(
    machine: Machine,
    request: Request,
    location: Location,
    component: str,
    levels: Sequence[str],
    pin: Pin | None,
) -> tuple[str, Step]:
    """The best step of a component under the strictest level that fits, and this level."""

    def candidates(level: str) -> list[Evaluation]:
        configs = configs_for(machine, request, location, component, level, pin)
        return list(evaluated(machine, request, location, configs))

    return strictest_step(machine, request, location, levels, candidates, pin)


def _download_bytes(location: Location, steps: tuple[Step, ...]) -> int:
    return sum(
        step.estimate.read_bytes
        for step in steps
        if location.cascade.parts[step.component].repository  # else its weights are here
        and location.folder(step.component, storage=step.config.storage_dtype) is None
    )
