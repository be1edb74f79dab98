"""Machine profiles: `profiles/*.toml` -> Machine and pinned choices. Strict: no key is ignored."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lowmem_if.cascade.catalog import component_name
from lowmem_if.cascade.strategies import Pin, parse_pin
from lowmem_if.errors import ProfileError, RequestError
from lowmem_if.hardware.machine import (
    DEVICE_KINDS,
    Machine,
    accelerator_compute_dtype,
    cpu_compute_dtype,
    probe,
    with_budget,
)
from lowmem_if.hardware.speeds import ACCELERATOR, ANY, CPU, Speeds, Throughput, assumed
from lowmem_if.units import did_you_mean, parse_bytes

_PACKAGE = Path(__file__).parents[1]
FOLDER = next(
    folder for folder in (_PACKAGE / "profiles", _PACKAGE.parent / "profiles") if folder.is_dir()
)
"""Inside the installed package, or next to the package in a checkout."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A machine that is described instead of measured, and the choices that its author pinned."""

    machine: Machine
    pins: dict[str, Pin]
    description: str
    sources: tuple[str, ...]


def _size(value: object) -> object:
    """Bytes of TOML strings like "14.7GiB"; numbers are returned as they are."""
    try:
        return parse_bytes(value) if isinstance(value, str) else value
    except RequestError as error:
        raise ValueError(str(error)) from error  # pydantic reports it together with the key


_Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]


class _Rates(BaseModel):
    """Published or estimated speeds; missing ones are those assumed for the class of device."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source: str
    float16_tflops: float | None = Field(None, gt=0)
    float32_tflops: float | None = Field(None, gt=0)
    cpu_float32_gflops: float | None = Field(None, gt=0)
    cpu_bfloat16_gflops: float | None = Field(None, gt=0)
    disk: _Size | None = None
    bus: _Size | None = None

    def over(self, assumed: Speeds) -> Speeds:
        """These speeds, completed by the assumed ones."""
        given = {
            (ACCELERATOR, "float16"): _times(self.float16_tflops, 1e12),
            (ACCELERATOR, "bfloat16"): _times(self.float16_tflops, 1e12),
            (ACCELERATOR, "float32"): _times(self.float32_tflops, 1e12),
            (CPU, "float32"): _times(self.cpu_float32_gflops, 1e9),
            (CPU, "bfloat16"): _times(self.cpu_bfloat16_gflops, 1e9),
        }
        paces = tuple(Throughput(*where, ANY, pace) for where, pace in given.items() if pace)
        bus = self.bus or assumed.bus_bytes
        faster = replace(
            assumed,
            disk_bytes=self.disk or assumed.disk_bytes,
            bus_bytes=bus,
            pageable_bytes=bus / 2,
        )
        return faster.with_paces(paces, self.source)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


class _File(BaseModel):
    """The keys of a profile file, with their types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    description: str
    sources: list[str] = Field(min_length=1)
    device: str = Field(pattern=f"^({'|'.join(DEVICE_KINDS)})$")
    device_name: str
    vram_total: _Size | None = None
    vram_available: _Size | None = None
    ram_total: _Size
    ram_available: _Size
    disk_free: _Size
    compute_capability: list[int] = Field(default=[0, 0], min_length=2, max_length=2)
    cpu_features: list[str] = []
    spills_vram: bool = False
    pinned: _Size | None = None
    devices: int = Field(1, gt=0)
    notes: list[str] = []
    rates: _Rates | None = None
    pins: dict[str, str] = {}

    @model_validator(mode="after")
    def _makes_sense(self) -> _File:
        """Check keys against each other; pydantic reports the text of a ValueError."""
        wanted = {"cuda": ("vram_total", "compute_capability"), "xpu": ("vram_total",)}
        for key in wanted.get(self.device, ()):
            if key not in self.model_fields_set:
                raise ValueError(f"a {self.device} machine needs {key}")
        for free, total in (("vram_available", "vram_total"), ("ram_available", "ram_total")):
            if (getattr(self, free) or 0) > (getattr(self, total) or 0):
                raise ValueError(f"{free} is more than {total}")
        if min(self.compute_capability) < 0:
            raise ValueError("compute_capability is negative")
        return self


def profile_names() -> tuple[str, ...]:
    """The names of the profiles in the package."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.toml")))


def load_profile(name: str | Path) -> Profile:
    """A profile by name, or from a TOML file of your own.

    Raises:
        ProfileError: there is none, or a key of the file is missing, wrong or unknown; names both.
    """
    name = str(name)
    own = name.endswith(".toml")
    if name not in profile_names() and not own:
        near = did_you_mean(name.lower(), profile_names())
        raise ProfileError(
            f"no profile {name!r}: use {', '.join(profile_names())} or a .toml file{near}"
        )
    file = Path(name) if own else FOLDER / f"{name}.toml"
    try:
        file = file.expanduser()
        content = _File.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        pins = _pins(content.pins)
    except (OSError, RuntimeError) as error:
        raise ProfileError(f"{file}: cannot be read ({error}); check the path") from error
    except ValidationError as error:
        raise ProfileError(f"{file}: {_first(error)}; correct it as in {FOLDER}") from error
    except RequestError as error:
        raise ProfileError(f"{file}: {error}; correct it") from error
    except ValueError as error:
        raise ProfileError(f"{file}: not valid TOML ({error}); correct it") from error
    return Profile(_machine(file.stem, content), pins, content.description, tuple(content.sources))


def choose_machine(
    profile: str | None = None,
    *,
    device: str = "auto",
    ram: str | int | None = None,
    vram: str | int | None = None,
) -> tuple[Machine, dict[str, Pin]]:
    """(The machine to plan for, measured or from a profile, with the user's budgets; its pins).

    Args:
        ram, vram: budgets as people write them, `8GB`.

    Raises:
        ProfileError, DeviceError, RequestError: no such profile or device, or an invalid size.
    """
    ram_bytes = None if ram is None else parse_bytes(str(ram))
    vram_bytes = None if vram is None else parse_bytes(str(vram))
    if profile is None:
        return probe(device, ram_bytes=ram_bytes, vram_bytes=vram_bytes), {}
    if device != "auto":
        raise RequestError(
            f"a profile has its own device: leave out --device {device} or --profile"
        )
    loaded = load_profile(profile)
    return with_budget(loaded.machine, ram_bytes=ram_bytes, vram_bytes=vram_bytes), loaded.pins


def _first(error: ValidationError) -> str:
    """The first error in a file: the key, and what is wrong with it."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if not key:
        return str(problem["msg"]).removeprefix("Value error, ")
    what = {"extra_forbidden": "unknown key", "missing": "missing key"}.get(problem["type"])
    return f"{what} {key!r}" if what else f"key {key!r}: {problem['msg']}"


def _pins(texts: dict[str, str]) -> dict[str, Pin]:
    pins = {}
    for component, text in texts.items():
        try:
            pins[component_name(component)] = parse_pin(component, text)
        except RequestError as error:
            raise RequestError(f"key 'pins.{component}': {error}") from error
    return pins


def _machine(name: str, content: _File) -> Machine:
    if content.device == "cpu":
        dtype, reason = cpu_compute_dtype(frozenset(content.cpu_features))
    else:
        major, minor = content.compute_capability
        dtype, reason = accelerator_compute_dtype(content.device, (major, minor))
    total = content.vram_total or 0
    capability = (content.compute_capability[0], content.compute_capability[1])
    rates = content.rates.over(assumed(content.device, capability)) if content.rates else None
    return Machine(
        name=name,
        device=f"{content.device}:0" if content.device in ("cuda", "xpu") else content.device,
        device_name=content.device_name,
        vram_bytes=content.vram_available or total,
        vram_total_bytes=total,
        ram_bytes=content.ram_available,
        ram_total_bytes=content.ram_total,
        disk_free_bytes=content.disk_free,
        compute_dtype=dtype,
        compute_dtype_reason=reason,
        capability=capability,
        rates=rates,
        spills_vram=content.spills_vram,
        pinned_bytes=content.pinned,
        devices=content.devices,
        notes=tuple(content.notes),
    )
