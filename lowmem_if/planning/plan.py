"""Machine + request -> plan: for each component where its weights live, in which type, and why.

For each component the strategies are listed fastest and simplest first, their peaks predicted, those
without room dropped, and the first that is left is taken. Pins of the user are never overridden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lowmem_if.errors import CheckpointError, DeviceError, DoesNotFit, RequestError, RunFolderError
from lowmem_if.planning import catalog
from lowmem_if.planning.catalog import Part
from lowmem_if.planning.footprint import Footprint, Setting, headroom, predict
from lowmem_if.planning.locations import Location, locate
from lowmem_if.planning.machine import Machine, cpu_compute_dtype
from lowmem_if.planning.request import Request, Sampling
from lowmem_if.planning.strategies import (
    BALANCED,
    EXACT,
    FLOATS,
    MODEL_OFFLOAD,
    PREFERENCES,
    QUANTISED,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    Pin,
    pin_texts,
)
from lowmem_if.planning.units import format_bytes

SMALL_BYTES = 500_000_000
"""A component whose float32 weights are smaller than this is run in float32: exactness is cheap."""

_MAX_BATCH = 8


@dataclass(frozen=True, slots=True)
class Prediction:
    """Peaks in bytes, time in seconds (None: not predicted yet), bytes read from disk."""

    vram_bytes: int
    ram_bytes: int
    seconds: float | None
    read_bytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """One component's turn: how its weights live, how it draws, what it will take, and why so.

    `instead_of` is the runner-up: what was dropped for want of room, or what would be next.
    """

    component: str
    strategy: str
    storage_dtype: str
    compute_dtype: str
    device: str
    batch: int
    vae_tiling: bool
    sampling: Sampling | None
    predicted: Prediction
    reason: str
    instead_of: str

    @property
    def setting(self) -> Setting:
        return Setting(
            self.component, self.strategy, self.storage_dtype, self.compute_dtype,
            self.batch, self.device, self.vae_tiling,
        )  # fmt: skip


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
        except (ValidationError, RequestError, AttributeError) as error:
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
        DeviceError, RequestError: a pin asks for what the device cannot do.
    """
    if prefer not in PREFERENCES:
        raise RequestError(f"unknown preference {prefer!r}: use exact or balanced")
    pins = dict(pins or {})
    location = locate(request.cascade, components=request.components, revision=request.revision)
    try:
        steps = tuple(
            _choose(machine, request, location, component, prefer, pins.get(component))
            for component in request.components
        )
    except _NoRoom as short:
        raise short.told(_nearest(machine, request, prefer, pins)) from None
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

    def __str__(self) -> str:
        return f"{self.setting.strategy} {self.setting.storage}".replace("_", " ")


def _choose(
    machine: Machine,
    request: Request,
    location: Location,
    component: str,
    prefer: str,
    pin: Pin | None,
) -> Step:
    part = location.cascade.parts[component]
    settings = _settings(machine, part, component, prefer, pin, len(request.tasks))
    settings = _that_files_allow(settings, location, pin)
    candidates = [_weigh(machine, part, setting) for setting in settings]
    fitting = [candidate for candidate in candidates if candidate.short is None]
    if not fitting:
        nearest = min((c for c in candidates if c.short), key=_overrun)
        assert nearest.short is not None
        raise _NoRoom(component, *nearest.short)
    chosen, setting = fitting[0], fitting[0].setting
    defaults = location.cascade.defaults.get(component)
    return Step(
        component, setting.strategy, setting.storage, setting.compute, setting.device, setting.batch,
        setting.vae_tiling,
        request.sampling(component, defaults) if defaults else None,
        Prediction(chosen.footprint.vram_bytes, chosen.footprint.ram_bytes, None,
                   chosen.footprint.read_bytes),
        _reason(machine, part, chosen, pin),
        _runner_up(candidates, chosen),
    )  # fmt: skip


def _settings(
    machine: Machine, part: Part, component: str, prefer: str, pin: Pin | None, images: int
) -> list[Setting]:
    """The settings to weigh, best first."""
    if component == catalog.FINISH:
        return _finish_settings(component, pin)
    compute, small = _compute_dtype(machine, part)
    ways = _pinned_ways(machine, component, compute, pin) or _ways(
        machine, component, compute, prefer, small=small
    )
    settings = [
        Setting(component, strategy, storage, _compute_for(storage, compute), batch, machine.device)
        for strategy, storage in ways
        for batch in _batches(prefer, images)
    ]
    if component == catalog.TEXT_ENCODER and machine.kind != "cpu" and not pin:
        # One pass in RAM takes seconds; it lets a card in that is too small for the encoder.
        settings.append(Setting(component, RESIDENT, "int8", "float32", 1, "cpu"))
    return settings


def _that_files_allow(
    settings: list[Setting], location: Location, pin: Pin | None
) -> list[Setting]:
    """A local cascade may hold the 8-bit text encoder only; it cannot be had in another type."""
    first = settings[0]
    if location.cascade.parts[first.component].repository is not None:
        return settings
    allowed = [s for s in settings if location.folder(first.component, storage=s.storage)]
    if allowed or pin is None:
        return allowed or [replace(first, storage="int8", strategy=RESIDENT)]
    raise CheckpointError(
        f"{location.cascade.name} has no {first.component} files for {first.storage}, only 8-bit ones: "
        f"pin {first.component}=resident:int8"
    )


def _finish_settings(component: str, pin: Pin | None) -> list[Setting]:
    """The safety checker and the mark run on the CPU: they are small, and the pictures are there."""
    if pin and (pin.strategy != RESIDENT or pin.storage not in (None, "float32")):
        raise RequestError("finish runs on the CPU: pin it to resident:float32 or leave it open")
    return [Setting(component, RESIDENT, "float32", "float32", 1, "cpu")]


def _compute_dtype(machine: Machine, part: Part) -> tuple[str, bool]:
    small = sum(4 * module.weights.parameters for module in part.modules) < SMALL_BYTES
    return ("float32" if small else machine.compute_dtype), small


def _compute_for(storage: str, compute: str) -> str:
    """Float weights are computed in as they are stored, quantised ones in the machine's type."""
    return storage if storage in FLOATS else compute


def _pinned_ways(
    machine: Machine, component: str, compute: str, pin: Pin | None
) -> list[tuple[str, str]]:
    if pin is None:
        return []
    if machine.kind == "cpu" and pin.strategy != RESIDENT:
        raise DeviceError(
            f"{pin.strategy} moves weights to an accelerator and there is none: "
            f"pin {component}=resident or leave it open"
        )
    if machine.kind == "cpu" and pin.storage == "float16":
        raise DeviceError(
            f"float16 is some 400 times slower than bfloat16 on a CPU: "
            f"pin {component}={pin.strategy}:bfloat16 or :float32"
        )
    if pin.storage in QUANTISED and machine.kind == "mps":
        raise DeviceError(f"bitsandbytes has no {pin.storage} on Apple GPUs: use a float type")
    return [(pin.strategy, pin.storage or compute)]


def _ways(
    machine: Machine, component: str, compute: str, prefer: str, *, small: bool
) -> list[tuple[str, str]]:
    """(strategy, storage) in order: exact and fast first, then what saves memory."""
    ways = [(RESIDENT, compute)]
    offloads = machine.kind in ("cuda", "xpu")
    if component == catalog.TEXT_ENCODER and not small:
        eight_bit = [(RESIDENT, "int8")] if machine.kind != "mps" else []
        quantised = [*eight_bit, (RESIDENT, "nf4")] if eight_bit else []
        if offloads:
            # The 8-bit encoder is what IF's low-memory recipe has always used on a GPU.
            ways = [*(quantised if prefer == BALANCED else eight_bit), *ways]
        elif prefer == BALANCED:
            ways += quantised
    if offloads and component == catalog.UPSCALER:
        ways.append((MODEL_OFFLOAD, compute))
    if offloads:
        ways.append((SEQUENTIAL_OFFLOAD, compute))
    return ways


def _batches(prefer: str, images: int) -> list[int]:
    """One image at a time is exact; together they share the weights' way but not every last bit."""
    if prefer == EXACT:
        return [1]
    return [batch for batch in (_MAX_BATCH, 4, 2) if batch <= images] + [1]


def _weigh(machine: Machine, part: Part, setting: Setting) -> _Candidate:
    footprint = predict(part, setting)
    vram_spare, ram_spare = headroom(setting.device)
    needs = [("RAM", footprint.ram_bytes + ram_spare, machine.ram_bytes)]
    if setting.device != "cpu":
        needs.insert(0, ("VRAM", footprint.vram_bytes + vram_spare, machine.vram_bytes))
    if machine.unified and setting.device != "cpu":
        both = footprint.vram_bytes + footprint.ram_bytes + ram_spare
        needs.append(("unified memory", both, machine.ram_bytes))
    short = [need for need in needs if need[1] > need[2]]
    return _Candidate(setting, footprint, max(short, key=lambda n: n[1] - n[2], default=None))


def _overrun(candidate: _Candidate) -> int:
    assert candidate.short is not None
    return candidate.short[1] - candidate.short[2]


def _reason(machine: Machine, part: Part, chosen: _Candidate, pin: Pin | None) -> str:
    setting = chosen.setting
    if setting.device == "cpu":
        spare, what = machine.ram_bytes - chosen.footprint.ram_bytes, "RAM"
    else:
        spare, what = machine.vram_bytes - chosen.footprint.vram_bytes, "VRAM"
    words = ["pinned"] if pin else []
    words.append(f"{format_bytes(max(0, spare))} of {what} to spare")
    if setting.component == catalog.FINISH:
        return "on the CPU, where the pictures are"
    if setting.strategy == SEQUENTIAL_OFFLOAD:
        words.append("leaves move: slow")
    if setting.storage == "float32" and _compute_dtype(machine, part)[1]:
        words.append("small, so float32")
    elif setting.storage in QUANTISED:
        words.append("computes in " + setting.compute)
    return "; ".join(words)


def _runner_up(candidates: list[_Candidate], chosen: _Candidate) -> str:
    place = candidates.index(chosen)
    if place:
        dropped = candidates[0]
        assert dropped.short is not None
        resource, needed, available = dropped.short
        return (
            f"{dropped}: needs {format_bytes(needed)} of {resource}, "
            f"{format_bytes(available)} available"
        )
    later = [c for c in candidates[1:] if c.short is None]
    return f"{later[0]}: fits too, slower" if later else ""


def _nearest(machine: Machine, request: Request, prefer: str, pins: Mapping[str, Pin]) -> str:
    """What would fit instead, found by planning it: other preferences, then smaller cascades."""
    attempts: list[tuple[str, Request, str, Mapping[str, Pin]]] = []
    if prefer == EXACT:
        attempts.append(("--prefer balanced fits", request, BALANCED, pins))
    if pins:
        attempts.append(("it fits without the pins", request, prefer, {}))
    names = list(catalog.CASCADES)
    smaller = names[names.index(request.cascade) + 1 :] if request.cascade in names else []
    attempts += [(f"--cascade {name} fits", replace(request, cascade=name), prefer, pins)
                 for name in smaller]  # fmt: skip
    for words, other, preference, other_pins in attempts:
        if _fits(machine, other, preference, other_pins):
            return words
    return "nothing smaller fits either: free some memory or raise --ram or --vram"


def _fits(machine: Machine, request: Request, prefer: str, pins: Mapping[str, Pin]) -> bool:
    location = locate(request.cascade, components=request.components, revision=request.revision)
    try:
        for component in request.components:
            _choose(machine, request, location, component, prefer, pins.get(component))
    except (_NoRoom, DeviceError):
        return False
    return True


def _download_bytes(location: Location, steps: tuple[Step, ...]) -> int:
    return sum(
        step.predicted.read_bytes
        for step in steps
        if location.folder(step.component, storage=step.storage_dtype) is None
    )


def cheaper(step: Step, machine: Machine, part: Part) -> Step | None:
    """The next rung down the ladder after memory ran out; None at the bottom.

    Smaller batch, tiled VAE, weights in RAM, leaf by leaf, at last the CPU. From there on nothing is
    predicted to fit: it is what can still be tried.
    """
    setting = _cheaper_setting(step, machine)
    if setting is None:
        return None
    footprint = predict(part, setting)
    return replace(
        step,
        strategy=setting.strategy, storage_dtype=setting.storage, compute_dtype=setting.compute,
        device=setting.device, batch=setting.batch, vae_tiling=setting.vae_tiling,
        predicted=Prediction(footprint.vram_bytes, footprint.ram_bytes, None, footprint.read_bytes),
        reason="memory ran out with " + _spelled(step.setting),
        instead_of=_spelled(step.setting),
    )  # fmt: skip


def _cheaper_setting(step: Step, machine: Machine) -> Setting | None:
    setting = step.setting
    if setting.batch > 1:
        return replace(setting, batch=setting.batch // 2)
    if setting.component == catalog.UPSCALER and not setting.vae_tiling:
        return replace(setting, vae_tiling=True)
    if setting.device == "cpu":
        return None
    offloads = machine.kind in ("cuda", "xpu") and setting.storage in FLOATS
    if offloads and setting.strategy == RESIDENT and setting.component == catalog.UPSCALER:
        return replace(setting, strategy=MODEL_OFFLOAD)
    if offloads and setting.strategy != SEQUENTIAL_OFFLOAD:
        return replace(setting, strategy=SEQUENTIAL_OFFLOAD)
    compute = setting.compute if setting.compute != "float16" else cpu_compute_dtype(frozenset())[0]
    storage = compute if setting.storage in FLOATS else setting.storage
    return replace(setting, strategy=RESIDENT, storage=storage, compute=compute, device="cpu")


def _spelled(setting: Setting) -> str:
    tiled = ", tiled VAE" if setting.vae_tiling else ""
    return (
        f"{setting.strategy.replace('_', ' ')} {setting.storage} on {setting.device}, "
        f"batch {setting.batch}{tiled}"
    )
