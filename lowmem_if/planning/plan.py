"""Machine + request -> plan: for each component where its weights live, in which type, and why.

For each component every way to run it is listed, the simpler first; its peaks and seconds are predicted,
what has no room is dropped, and the quickest of the rest is taken, of equally quick ones the simpler.
Pins of the user are never overridden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lowmem_if.errors import (
    CascadeError,
    CheckpointError,
    DeviceError,
    DoesNotFit,
    RequestError,
    RunFolderError,
)
from lowmem_if.planning import catalog
from lowmem_if.planning.candidates import compute_dtype, settings_for
from lowmem_if.planning.catalog import Part
from lowmem_if.planning.footprint import (
    Footprint,
    Setting,
    headroom,
    predict,
)
from lowmem_if.planning.jobs import Job, jobs_of, samplings_of, tasks_of
from lowmem_if.planning.locations import Location, locate
from lowmem_if.planning.lora import Lora
from lowmem_if.planning.lora_fit import settled
from lowmem_if.planning.machine import Machine
from lowmem_if.planning.nearest import nearest
from lowmem_if.planning.request import Request
from lowmem_if.planning.seconds import predict_seconds
from lowmem_if.planning.strategies import (
    EXACT,
    PREFERENCES,
    QUANTISED,
    SEQUENTIAL_OFFLOAD,
    STREAM,
    Pin,
    parse_pin,
    pin_texts,
)
from lowmem_if.planning.tasks import ImageTask, Sampling
from lowmem_if.planning.tiling import TILES, UPSCALER_SIDE, WHOLE_AREA, aligned
from lowmem_if.planning.units import format_bytes, format_seconds

SPILL_BYTES = 400_000_000
"""More VRAM to leave free where the driver would lend RAM instead of failing (ComfyUI keeps 600 MB free
on Windows for it)."""


@dataclass(frozen=True, slots=True)
class Prediction:
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
    room, or what would be next. `lora` are merged into the UNet's weights while they are read.
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
    predicted: Prediction
    reason: str
    instead_of: str
    resident_bytes: int = 0
    lora: tuple[Lora, ...] = ()

    @property
    def setting(self) -> Setting:
        return Setting(
            self.component, self.strategy, self.storage_dtype, self.compute_dtype,
            self.batch, self.device, self.vae_tiling, self.resident_bytes, self.area, self.tile,
            _merge_bytes(self.lora),
        )  # fmt: skip

    @property
    def sampling(self) -> Sampling | None:
        """Of a run in one mode the only one; None of a component that draws nothing."""
        return next(iter(self.samplings.values()), None)

    def sampling_of(self, task: ImageTask) -> Sampling:
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
    lora = settled(request.lora, location, request.components)
    request = replace(request, lora=lora)
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


@dataclass(frozen=True, slots=True)
class _Candidate:
    setting: Setting
    footprint: Footprint
    short: tuple[str, int, int] | None
    """(resource, needed, available) where there is no room; None where there is."""
    seconds: float


def _choose(
    machine: Machine,
    request: Request,
    location: Location,
    component: str,
    prefer: str,
    pin: Pin | None,
) -> Step:
    part = location.cascade.parts[component]
    tasks = tasks_of(request, component)
    jobs = jobs_of(request, location.cascade, component)
    settings = settings_for(machine, location, component, prefer=prefer, pin=pin, images=len(tasks))
    settings = _in_shape(settings, component, tasks)
    lora = _of_stage(request.lora, component)
    settings = [replace(setting, merge_bytes=_merge_bytes(lora)) for setting in settings]
    candidates = [_weigh(machine, part, setting, jobs) for setting in settings]
    fitting = [candidate for candidate in candidates if candidate.short is None]
    if not fitting:
        closest = min((c for c in candidates if c.short), key=_overrun)
        assert closest.short is not None
        raise _NoRoom(component, *closest.short)
    # A picture is cut no smaller than it must be; among ways that cut it alike the quickest is taken.
    chosen = min(fitting, key=lambda candidate: (_cuts(candidate.setting), candidate.seconds))
    setting = chosen.setting
    return Step(
        component, setting.strategy, setting.storage, setting.compute, setting.device, setting.batch,
        setting.vae_tiling,
        samplings_of(request, location.cascade, component),
        setting.area,
        setting.tile,
        Prediction(chosen.footprint.vram_bytes, chosen.footprint.ram_bytes, chosen.seconds,
                   chosen.footprint.read_bytes),
        _reason(machine, part, chosen, pin, lora),
        _runner_up(machine, candidates, chosen),
        setting.resident_bytes,
        lora,
    )  # fmt: skip


def _of_stage(lora: Sequence[Lora], component: str) -> tuple[Lora, ...]:
    return tuple(one for one in lora if one.stage == component)


def _merge_bytes(lora: Sequence[Lora]) -> int:
    """Of RAM for all LoRAs of a step: what they add to one weight is held together."""
    return sum(one.merge_bytes for one in lora if one.scale)


def _cuts(setting: Setting) -> float:
    """How finely the user's own pictures are cut; 0: not at all."""
    return UPSCALER_SIDE / setting.tile if setting.tile else 0.0


def _in_shape(settings: list[Setting], component: str, tasks: list[ImageTask]) -> list[Setting]:
    """The settings with the area of the largest picture, and tiles for the user's own."""
    area = max((task.area_in(component) for task in tasks), default=1.0)
    settings = [replace(setting, area=area) for setting in settings]
    own = [task for task in tasks if task.is_enlarged_as_it_is]
    if component != catalog.UPSCALER or not own:
        return settings
    others = max((task.area for task in tasks if not task.is_enlarged_as_it_is), default=0.0)
    least = ceil(UPSCALER_SIDE * others**0.5)  # what is never cut must have room too
    sides = [side for side in TILES if side >= least] or [aligned(least)]
    sides = [0, *sides] if area <= WHOLE_AREA else sides
    return [replace(setting, tile=side) for side in sides for setting in settings]


def _weigh(machine: Machine, part: Part, setting: Setting, jobs: Sequence[Job]) -> _Candidate:
    footprint = predict(part, setting)
    left = machine.ram_bytes - footprint.ram_bytes
    left -= footprint.vram_bytes if machine.unified else 0
    seconds = predict_seconds(part, setting, jobs, machine.speeds, left, unified=machine.unified)
    return _Candidate(setting, footprint, _short(machine, setting, footprint), seconds)


def _short(machine: Machine, setting: Setting, footprint: Footprint) -> tuple[str, int, int] | None:
    """(resource, needed, available) of what is missing most; None where there is room."""
    vram_spare, ram_spare = headroom(setting.device)
    vram_spare += SPILL_BYTES if machine.spills_vram else 0
    needs = [("RAM", footprint.ram_bytes + ram_spare, machine.ram_bytes)]
    if setting.device != "cpu":
        needs.insert(0, ("VRAM", footprint.vram_bytes + vram_spare, machine.vram_bytes))
    if machine.unified and footprint.vram_bytes:
        both = footprint.vram_bytes + footprint.ram_bytes + ram_spare
        needs.append(("unified memory", both, machine.ram_bytes))
    return max(
        (need for need in needs if need[1] > need[2]), key=lambda n: n[1] - n[2], default=None
    )


def _overrun(candidate: _Candidate) -> int:
    assert candidate.short is not None
    return candidate.short[1] - candidate.short[2]


def _reason(
    machine: Machine, part: Part, chosen: _Candidate, pin: Pin | None, lora: Sequence[Lora]
) -> str:
    setting = chosen.setting
    if setting.device == "cpu":
        spare, what = machine.ram_bytes - chosen.footprint.ram_bytes, "RAM"
    else:
        spare, what = machine.vram_bytes - chosen.footprint.vram_bytes, "VRAM"
    words = ["pinned"] if pin else []
    words.append(f"{format_bytes(max(0, spare))} of {what} to spare")
    if setting.component == catalog.FINISH:
        return "on the CPU, where the pictures are"
    if setting.vae_tiling:
        words.append("VAE in tiles")
    if setting.tile:
        words.append(f"in tiles of {setting.tile} pixels")
    if setting.strategy == SEQUENTIAL_OFFLOAD:
        words.append("leaves move: slow")
    if setting.strategy == STREAM:
        words.append(_streaming(setting))
        if not lora and _casts_at_every_pass(part, setting):
            words.append("they are cast each time unless `fetch --convert bf16` was run")
    words += _merging(setting, lora)
    if setting.storage == "float32" and compute_dtype(machine, part)[1]:
        words.append("small, so float32")
    elif setting.storage in QUANTISED:
        words.append("computes in " + setting.compute)
    return "; ".join(words)


def _merging(setting: Setting, lora: Sequence[Lora]) -> list[str]:
    if not lora:
        return []
    names = " and ".join(map(str, lora))
    return [f"LoRA {names}, merged with {format_bytes(setting.merge_bytes)} of RAM"]


def _streaming(setting: Setting) -> str:
    """What of a streaming component comes from its file, and how often."""
    if setting.component == catalog.TEXT_ENCODER:
        return "layers come from the file, once"
    stay = f"{format_bytes(setting.resident_bytes)} stay, other " if setting.resident_bytes else ""
    return stay + "layers come from the file at every pass"


def _casts_at_every_pass(part: Part, setting: Setting) -> bool:
    """Whether a bfloat16 copy of the UNet would spare a CPU work; if there is one is not looked up."""
    unets = [module for module in part.modules if module.folder == "unet"]
    on_cpu = (setting.device, setting.storage) == ("cpu", "bfloat16")
    return on_cpu and any(not unet.is_bfloat16 for unet in unets)


def _runner_up(machine: Machine, candidates: list[_Candidate], chosen: _Candidate) -> str:
    """What would have been taken with more room, the quickest of it; else the next quickest."""
    others = [c for c in candidates if str(c.setting) != str(chosen.setting)]
    before = candidates.index(chosen)
    preferred = [
        candidate
        for place, candidate in enumerate(candidates)
        if candidate in others
        and candidate.short
        and (candidate.seconds, place) < (chosen.seconds, before)
    ]
    if preferred:
        best = min(preferred, key=lambda c: c.seconds)
        assert best.short is not None
        resource, needed, available = best.short
        return (
            f"{_named(machine, best)}: {format_seconds(best.seconds)}, but needs "
            f"{format_bytes(needed)} of {resource}, {format_bytes(available)} available"
        )
    fitting = [c for c in others if c.short is None]
    fitting = [c for c in fitting if _way(c.setting) != _way(chosen.setting)] or fitting
    if not fitting:
        return ""
    best = min(fitting, key=lambda c: c.seconds)
    slower = best.seconds > chosen.seconds
    return f"{_named(machine, best)}: {format_seconds(best.seconds)}" + ("" if slower else ", too")


def _way(setting: Setting) -> tuple[str, str, str]:
    return setting.strategy, setting.storage, setting.device


def _named(machine: Machine, candidate: _Candidate) -> str:
    setting = candidate.setting
    place = " on the CPU" if setting.device == "cpu" != machine.device else ""
    return f"{setting}{place}"


def _fits(machine: Machine, request: Request, prefer: str, pins: Mapping[str, Pin]) -> bool:
    """Whether a plan could be made; what cannot even be found or used does not fit."""
    images = len(request.tasks)
    try:
        location = locate(request.cascade, components=request.components, revision=request.revision)
        lora = settled(request.lora, location, request.components)
        for name in request.components:
            part, pin = location.cascade.parts[name], pins.get(name)
            settings = settings_for(machine, location, name, prefer=prefer, pin=pin, images=images)
            merging = _merge_bytes(_of_stage(lora, name))
            settings = [replace(setting, merge_bytes=merging) for setting in settings]
            if all(_short(machine, setting, predict(part, setting)) for setting in settings):
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
