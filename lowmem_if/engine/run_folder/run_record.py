"""The typed content of `run.json`: versions, plan, steps, fingerprints of the weights, log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from lowmem_if.cascade.catalog import POSTPROCESS, component_name
from lowmem_if.errors import RunFolderError
from lowmem_if.planning.plan import Plan
from lowmem_if.system.file_operations import patiently

FORMAT = 1


class _Frozen(BaseModel):
    """A part of the record. Keys that this version does not know are kept and written back."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def to_json(self) -> dict[str, Any]:
        """The part as plain JSON data, with the keys that were given only."""
        return self.model_dump(mode="json", exclude_unset=True)


class Measured(_Frozen):
    """The peaks and the time of a step that has ended.

    Attributes:
        vram_bytes, ram_bytes: the peaks, with the components that a session kept loaded.
        seconds: the time of the step, loading included.
        warm_vram_bytes, warm_ram_bytes: the share of other components that were kept loaded.
    """

    vram_bytes: int
    ram_bytes: int
    seconds: float
    warm_vram_bytes: int = 0
    warm_ram_bytes: int = 0

    def warm_bytes(self, kind: str) -> int:
        """The memory of other components that were kept loaded; `kind` is "vram" or "ram"."""
        return {"vram": self.warm_vram_bytes, "ram": self.warm_ram_bytes}[kind]

    def own_bytes(self, kind: str) -> int:
        """The peak without components that were kept loaded, which a step's estimate excludes."""
        peak = {"vram": self.vram_bytes, "ram": self.ram_bytes}[kind]
        return max(0, peak - self.warm_bytes(kind))


class Released(_Frozen):
    """What was left in memory after a component was released; the fields are those of `Release`.

    Attributes:
        alive: modules that something still referred to.
        ram_left_bytes, vram_left_bytes: memory that was not free again.
        allowed_bytes: how much of each kind may be left.
        reserved_left_bytes, driver_left_bytes: held by torch's allocator, and used beyond it.
    """

    alive: tuple[str, ...]
    ram_left_bytes: int
    vram_left_bytes: int
    allowed_bytes: int
    reserved_left_bytes: int = 0
    driver_left_bytes: int = 0


class StepRecord(_Frozen):
    """The status of a step. `stays`: the component was still loaded when its run ended."""

    status: Literal["pending", "done"]
    measured: Measured | None = None
    released: Released | None = None
    stays: bool = False


PENDING = StepRecord(status="pending")


def _read_plan(data: Any) -> Plan:
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  pydantic reports a ValueError
    return Plan.from_json(data)


def _current_names(data: Any) -> Any:
    """The values by the components' current names; version 0.1 called one of them differently."""
    if not isinstance(data, dict):
        return data
    return {component_name(name): value for name, value in data.items()}


class RunRecord(_Frozen):
    """All of `run.json`.

    Attributes:
        versions: library -> version, as they were when the run was begun.
        steps: component -> its record; every step of the plan has one.
        weights: component -> fingerprint of the files that it has worked with.
        log: why steps were replaced, in order.
    """

    format: int
    versions: dict[str, str]
    plan: Annotated[Plan, PlainValidator(_read_plan), PlainSerializer(Plan.to_json)]
    steps: Annotated[dict[str, StepRecord], BeforeValidator(_current_names)]
    weights: Annotated[dict[str, str], BeforeValidator(_current_names)]
    log: tuple[str, ...]

    @model_validator(mode="after")
    def _has_every_step(self) -> RunRecord:
        missing = [s.component for s in self.plan.steps if s.component not in self.steps]
        if missing:
            raise ValueError(f"steps has no {missing[0]}")
        return self

    @staticmethod
    def begin(plan: Plan, versions: dict[str, str]) -> RunRecord:
        """The record of a run in which nothing has been done."""
        steps = {step.component: PENDING for step in plan.steps}
        return RunRecord.model_construct(
            format=FORMAT, versions=versions, plan=plan, steps=steps, weights={}, log=()
        )

    def with_step(self, component: str, step: StepRecord) -> RunRecord:
        """The record with another record of one step."""
        return self.model_copy(update={"steps": {**self.steps, component: step}})

    def with_weights(self, component: str, fingerprint: str) -> RunRecord:
        """The record with the fingerprint of a component's files."""
        return self.model_copy(update={"weights": {**self.weights, component: fingerprint}})

    def with_plan(self, plan: Plan, why: str) -> RunRecord:
        """The record with another plan for the same steps, and the reason in its log."""
        return self.model_copy(update={"plan": plan, "log": (*self.log, why)})

    def extended(self, plan: Plan) -> RunRecord:
        """The record with a plan of more steps: the new ones and postprocessing are pending."""
        new = {step.component: PENDING for step in plan.steps}
        old = {name: step for name, step in self.steps.items() if name != POSTPROCESS}
        return self.model_copy(update={"plan": plan, "steps": new | old})

    def to_text(self) -> str:
        """The text of `run.json`."""
        return json.dumps(self.to_json(), ensure_ascii=False, indent=1)


def read_record(file: Path) -> RunRecord:
    """Read `run.json`.

    Raises:
        RunFolderError: the file is missing, broken, or in another format.
    """
    try:
        data = json.loads(patiently(file.read_bytes))
        found = data["format"]
        if found == FORMAT:
            return RunRecord.model_validate(data)
    except FileNotFoundError:
        raise RunFolderError(f"{file.parent} is no run folder: it has no {file.name}") from None
    except OSError as error:
        raise RunFolderError(f"{file.parent} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{file} is broken ({_in_one_line(error)}): start a new folder"
        ) from error
    raise RunFolderError(
        f"{file.parent} was written in format {found!r}, this version reads {FORMAT}: "
        "start a new folder"
    )


def _in_one_line(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
