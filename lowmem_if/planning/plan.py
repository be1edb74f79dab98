"""Machine + request -> plan: for each component where its weights live, in which type, and why.

For each component every way to run it is listed, the simpler first; its peaks and seconds are predicted,
what has no room is dropped, and the quickest of the rest is taken, of equally quick ones the simpler.
Pins of the user are never overridden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lowmem_if.cascade.locate import Location, locate
from lowmem_if.cascade.lora import Lora, merge_bytes_of, of_stage
from lowmem_if.cascade.lora_fit import settled
from lowmem_if.cascade.strategies import (
    EXACT,
    PREFERENCES,
    Pin,
    parse_pin,
    pin_texts,
)
from lowmem_if.errors import (
    CascadeError,
    CheckpointError,
    DeviceError,
    DoesNotFit,
    RequestError,
    RunFolderError,
)
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.alternatives import nearest
from lowmem_if.planning.candidates import configs_for
from lowmem_if.planning.evaluate import deficit, evaluate, shortage
from lowmem_if.planning.memory import (
    ExecutionConfig,
    predict,
)
from lowmem_if.planning.reasons import reason, runner_up
from lowmem_if.planning.workload import samplings_of, workloads_of
from lowmem_if.request.image_spec import ImageSpec, Sampling
from lowmem_if.request.request import Request
from lowmem_if.request.tiling import UPSCALER_SIDE


@dataclass(frozen=True, slots=True)
class Estimate:
    """Peaks in bytes, the time in seconds, and bytes read from disk."""

    vram_bytes: int
    ram_bytes: int
    seconds: float
    read_bytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """One component's turn: how its weights live, how it draws, what it will take, and why so.

    `samplings` are those of the modes it draws in; `area` is the largest picture's pixels over those of
    the square that the stage was made for. `instead_of` is the runner-up: what was dropped for want of
    room, or what would be next. `speedup` above 1 says that the UNet is compiled. `lora` are merged into
    the UNet's weights while they are read.
    """

    component: str
    strategy: str
    storage_dtype: str
    compute_dtype: str
    device: str
    batch: int
    vae_tiling: bool
    samplings: dict[str, Sampling]
    area: float
    tile: int
    predicted: Estimate
    reason: str
    instead_of: str
    resident_bytes: int = 0
    speedup: float = 1.0
    lora: tuple[Lora, ...] = ()

    @property
    def setting(self) -> ExecutionConfig:
        return ExecutionConfig(
            self.component, self.strategy, self.storage_dtype, self.compute_dtype,
            self.batch, self.device, self.vae_tiling, self.resident_bytes, self.area, self.tile,
            self.speedup, merge_bytes_of(self.lora),
        )  # fmt: skip

    @property
    def sampling(self) -> Sampling | None:
        """Of a run in one mode the only one; None of a component that draws nothing."""
        return next(iter(self.samplings.values()), None)

    def sampling_of(self, task: ImageSpec) -> Sampling:
        """How this component draws a picture."""
        return self.samplings[task.mode].of(task, self.component)


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan is a value: `Plan.from_json(plan.to_json()) == plan`.

    `download_bytes` is what still has to be fetched; `pins` are the user's own choices as text.
    """

    machine: Machine
    request: Request
    prefer: str
    pins: dict[str, str]
    steps: tuple[Step, ...]
    download_bytes: int

    @property
    def seconds(self) -> float:
        """Of the whole run, the worker's start included."""
        return self.machine.speeds.start_s + sum(step.predicted.seconds for step in self.steps)

    def step(self, component: str) -> Step:
        """The step of one component."""
        return next(step for step in self.steps if step.component == component)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON data, with `fits` true: a plan that does not fit is never made."""
        data: dict[str, Any] = TypeAdapter(Plan).dump_python(self, mode="json")
        return {"fits": True, **data}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            RunFolderError: it is not such a plan.
        """
        try:
            return TypeAdapter(Plan).validate_python({k: v for k, v in data.items() if k != "fits"})
        except (ValidationError, RequestError, CheckpointError, AttributeError) as error:
            first = str(error).splitlines()[0]
            raise RunFolderError(
                f"the plan cannot be read ({first}); start a new folder"
            ) from error


def make_plan(
    machine: Machine,
    request: Request,
    *,
    prefer: str = EXACT,
    pins: Mapping[str, Pin] | None = None,
) -> Plan:
    """Choose a strategy for every component of the request.

    Raises:
        DoesNotFit: a component has no strategy with room; says what would fit.
        CascadeError, CheckpointError: the cascade is not one, or a file of it is broken.
        LoraError: a LoRA fits none of the stages that run, or both.
        DeviceError, RequestError: a pin asks for what the device cannot do.
    """
    if prefer not in PREFERENCES:
        raise RequestError(f"unknown preference {prefer!r}: use exact or balanced")
    pins = {component: parse_pin(component, str(pin)) for component, pin in (pins or {}).items()}
    location = locate(request.cascade, components=request.components, revision=request.revision)
    request = replace(request, lora=settled(request.lora, location, request.components))
    try:
        steps = tuple(
            _choose(machine, request, location, component, prefer, pins.get(component))
            for component in request.components
        )
    except _NoRoom as short:
        raise short.told(nearest(machine, request, prefer, pins, _fits)) from None
    return Plan(machine, request, prefer, pin_texts(pins), steps, _download_bytes(location, steps))


class _NoRoom(Exception):
    """A component has no strategy with room; the one that came nearest."""

    def __init__(self, component: str, resource: str, needed: int, available: int) -> None:
        self.figures = (component, resource, needed, available)

    def told(self, nearest: str) -> DoesNotFit:
        return DoesNotFit(*self.figures, nearest)


def _choose(
    machine: Machine,
    request: Request,
    location: Location,
    component: str,
    prefer: str,
    pin: Pin | None,
) -> Step:
    part = location.cascade.parts[component]
    jobs = workloads_of(request, location.cascade, component)
    settings = configs_for(machine, request, location, component, prefer, pin)
    lora = of_stage(request.lora, component)
    candidates = [evaluate(machine, part, setting, jobs) for setting in settings]
    fitting = [candidate for candidate in candidates if candidate.short is None]
    if not fitting:
        closest = min((c for c in candidates if c.short), key=deficit)
        assert closest.short is not None
        raise _NoRoom(component, *closest.short)
    # A picture is cut no smaller than it must be; among ways that cut it alike the quickest is taken.
    chosen = min(fitting, key=lambda candidate: (cuts(candidate.setting), candidate.seconds))
    setting = chosen.setting
    return Step(
        component, setting.strategy, setting.storage, setting.compute, setting.device, setting.batch,
        setting.vae_tiling,
        samplings_of(request, location.cascade, component),
        setting.area,
        setting.tile,
        Estimate(chosen.footprint.vram_bytes, chosen.footprint.ram_bytes, chosen.seconds,
                   chosen.footprint.read_bytes),
        reason(machine, request, part, chosen, pin),
        runner_up(machine, candidates, chosen),
        setting.resident_bytes,
        setting.speedup,
        lora,
    )  # fmt: skip


def cuts(setting: ExecutionConfig) -> float:
    """How finely the user's own pictures are cut; 0: not at all."""
    return UPSCALER_SIDE / setting.tile if setting.tile else 0.0


def _fits(machine: Machine, request: Request, prefer: str, pins: Mapping[str, Pin]) -> bool:
    """Whether a plan could be made; what cannot even be found or used does not fit."""
    try:
        location = locate(request.cascade, components=request.components, revision=request.revision)
        request = replace(request, lora=settled(request.lora, location, request.components))
        for name in request.components:
            part, pin = location.cascade.parts[name], pins.get(name)
            settings = configs_for(machine, request, location, name, prefer, pin)
            footprints = [predict(part, s, reserve=machine.counts_reserve) for s in settings]
            if all(map(partial(shortage, machine), settings, footprints)):
                return False
    except (DeviceError, CascadeError, CheckpointError):
        return False
    return True


def _download_bytes(location: Location, steps: tuple[Step, ...]) -> int:
    return sum(
        step.predicted.read_bytes
        for step in steps
        if location.folder(step.component, storage=step.storage_dtype) is None
    )
