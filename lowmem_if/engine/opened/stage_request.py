"""What a user asks for who opens one stage: every value checked, and a plan of this stage alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, UPSCALER
from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.modes import INPAINT, TEXT, UPSCALE, VARY
from lowmem_if.cascade.strategies import FLOATS, Pin, levels_of, parse_pin
from lowmem_if.errors import DeviceError, DoesNotFit, LowmemError, RequestError
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.candidates import pins_of
from lowmem_if.planning.component_plan import plan_component
from lowmem_if.planning.plan import Step
from lowmem_if.request.build import make_request
from lowmem_if.request.request import Request
from lowmem_if.units import format_bytes

_STAGES = {
    "1": STAGE_1, "2": STAGE_2, "3": UPSCALER,
    "i": STAGE_1, "ii": STAGE_2, "iii": UPSCALER,
    "stage_1": STAGE_1, "stage_2": STAGE_2, "stage_3": UPSCALER, "upscaler": UPSCALER,
}  # fmt: skip

_MODES = {
    TEXT: TEXT, UPSCALE: TEXT, VARY: VARY, "img2img": VARY, INPAINT: INPAINT, "inpainting": INPAINT,
}  # fmt: skip
"""Our names of the modes, and those of diffusers' pipelines."""

_SIZES = {stages[-1]: size for size, stages in catalog.SIZES.items()}
_SHORT = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_MOST_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class StageRequest:
    """One stage of a cascade, as a user asks for it.

    Attributes:
        request: a request of one picture that the stage takes part in.
        component: the stage.
        mode: `text`, `vary` or `inpaint`.
        pin: the user's choice; None: the planner chooses.
        storage: the number type of the UNet; empty: the planner chooses.
        batch: pictures for which the UNet is called at once.
    """

    request: Request
    component: str
    mode: str = TEXT
    pin: Pin | None = None
    storage: str = ""
    prefer: str | None = None
    batch: int = 1

    @property
    def name(self) -> str:
        """The stage in words."""
        cascade = self.request.cascade
        shown = cascade if cascade in catalog.CASCADES else Path(cascade).name
        return f"{catalog.label(self.component)} of {shown}"

    @staticmethod
    def of(cascade: str | Path, stage: str | int, given: Mapping[str, Any]) -> StageRequest:
        """Check what a user gives to `open_stage`.

        Raises:
            RequestError: no such stage, mode, pin or number type.
            LoraError: a LoRA cannot be used.
        """
        component, mode = _component(stage), _mode(given.get("mode"))
        if mode != TEXT and catalog.facts(component).decodes:
            raise RequestError(f"the upscaler has no mode {mode}: leave the mode out")
        pin = given.get("pin")
        pin = parse_pin(component, pin) if isinstance(pin, str) else pin
        storage = _storage(given.get("dtype"))
        if pin is not None and storage and pin.storage not in (None, storage):
            raise RequestError(f"the pin says {pin.storage} and dtype says {storage}: give one")
        request = make_request(
            "a picture", cascade=cascade, size=_SIZES[component], seed=0,
            lora=given.get("lora", ()), revision=given.get("revision", "main"),
            parts=given.get("parts"),
        )  # fmt: skip
        prefer, batch = given.get("prefer"), _batch(given.get("batch", 1))
        return StageRequest(request, component, mode, pin, storage, prefer, batch)

    def text_options(self, left: Machine) -> Any:
        """Options for encoding this stage's texts in the memory that remains."""
        return {
            "cascade": self.request.cascade, "revision": self.request.weights.revision,
            "dtype": "float32", "device": left.device, "ram": left.ram_bytes,
            "vram": left.vram_bytes if left.kind != "cpu" else None,
        }  # fmt: skip

    def with_default(self, pin: Pin | None) -> StageRequest:
        """The same with a profile's pin, unless the user has chosen a pin or a number type."""
        chosen = pin is None or self.pin is not None or self.storage
        return self if chosen else replace(self, pin=pin)

    def planned(self, machine: Machine) -> tuple[Step, Location]:
        """The plan of this stage alone, and where its files are.

        Raises:
            DoesNotFit: the remaining memory is not enough; `nearest` says what would fit.
            LowmemError: the pin, the device or the files cannot be used.
        """
        if machine.kind == "cpu" and "float16" in (self.storage, self.pin and self.pin.storage):
            raise DeviceError(
                "float16 is about 400 times slower than bfloat16 on a CPU: "
                "use dtype='bfloat16' or dtype='float32'"
            )
        try:
            return self._plan(machine, self.request)
        except DoesNotFit as error:
            missing = format_bytes(error.needed_bytes - error.available_bytes)
            smaller = self._smaller(machine)
            words = f"Free {missing} more {error.resource}" + (
                f", or open {smaller}" if smaller else ""
            )
            raise DoesNotFit(
                error.component, error.resource, error.needed_bytes, error.available_bytes,
                f"{words}.",
            ) from None  # fmt: skip

    def _plan(self, machine: Machine, request: Request) -> tuple[Step, Location]:
        return plan_component(
            machine, request, self.component,
            prefer=self.prefer, pins=self._pins(machine), batch=self.batch,
        )  # fmt: skip

    def _pins(self, machine: Machine) -> list[Pin | None]:
        if self.pin is not None:
            return [Pin(self.pin.strategy, self.pin.storage or self.storage or None)]
        if self.storage:
            loosest = levels_of(self.prefer)[-1]
            return [*pins_of(machine, self.component, self.storage, loosest)]
        return [None]

    def _smaller(self, machine: Machine) -> str:
        """The largest smaller cascade whose stage fits; empty if there is none."""
        for name in catalog.smaller_cascades(self.request.cascade):
            if name == catalog.DEMO:
                continue
            other = make_request("a picture", cascade=name, size=_SIZES[self.component], seed=0)
            try:
                self._plan(machine, other)
            except LowmemError:
                continue
            return f"the one of {name}"
        return ""


def _component(stage: str | int) -> str:
    known = _STAGES.get(str(stage).strip().lower().replace(" ", "_").replace("-", "_"))
    if known is None:
        raise RequestError(
            f"no stage {stage!r}: use 1, 2 or 3, or one of {', '.join(catalog.IMAGE_STAGES)}"
        )
    return known


def _mode(mode: Any) -> str:
    known = TEXT if mode is None else _MODES.get(str(mode).lower())
    if known is None:
        raise RequestError(f"unknown mode {mode!r}: use text, vary (img2img) or inpaint")
    return known


def _storage(dtype: Any) -> str:
    """The name of a number type, which may be torch's own object; empty for None."""
    if dtype is None:
        return ""
    name = str(dtype).removeprefix("torch.")
    name = _SHORT.get(name, name)
    if name not in FLOATS:
        raise RequestError(f"a UNet cannot compute in {dtype}: use one of {', '.join(FLOATS)}")
    return name


def _batch(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_AT_ONCE:
        raise RequestError(f"batch is {value!r}: use a whole number from 1 to {_MOST_AT_ONCE}")
    return value
