"""The speeds that were measured on this machine: where they are kept, and whether they are still valid.

`calibrate/measure.py` measures them, and `api/rehearse.py` adds those of its run. They are valid for the
same machine with the same driver and torch only.
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from pydantic import TypeAdapter, ValidationError

from lowmem_if.cascade.cache_dir import cache_folder
from lowmem_if.errors import CacheError
from lowmem_if.hardware.speeds import Speeds
from lowmem_if.system.host import usable_cpus


@dataclass(frozen=True, slots=True)
class MachineKey:
    """What speeds depend on. `threads`: those that torch will compute with on the CPU."""

    cpu: str
    threads: int
    ram_gb: int
    accelerator: str
    driver: str
    torch: str


@dataclass(frozen=True, slots=True)
class _File:
    identity: MachineKey
    rates: Speeds


def machine_key(accelerator: str = "", root: Path = Path("/")) -> MachineKey:
    """The key of this machine with an accelerator of that name ("": the CPU); torch is not imported."""
    return MachineKey(
        cpu=_first(root / "proc/cpuinfo", r"^model name\s*:\s*(.*)$") or platform.processor(),
        threads=_threads(),
        ram_gb=_ram_gb(),
        accelerator=accelerator,
        driver=_first(root / "proc/driver/nvidia/version", r"^(.*)$") if accelerator else "",
        torch=_torch_version(),
    )


def calibration_file(device: str) -> Path:
    """The file of the speeds of this machine with a device (`cpu`, `cuda:0`)."""
    return cache_folder("calibration") / f"{device.replace(':', '-')}.json"


def read_calibration(device: str, now: MachineKey) -> Speeds | None:
    """The speeds that were measured here; None if there are none, or they belong to another machine.

    An unreadable file counts as none, since it can be made again.
    """
    try:
        content = calibration_file(device).read_bytes()
        found = TypeAdapter(_File).validate_json(content)
    except (OSError, CacheError, ValidationError):
        return None
    return found.rates if found.identity == now and _sane(found.rates) else None


def calibration_bytes(now: MachineKey, rates: Speeds) -> bytes:
    """The content of the file."""
    data: Any = TypeAdapter(_File).dump_python(_File(now, rates), mode="json")
    return json.dumps(data, indent=1).encode()


def _sane(rates: Speeds) -> bool:
    """Whether every number that something is divided by is above zero."""
    divisors = (
        rates.disk_bytes, rates.cached_bytes, rates.fill_bytes, rates.bus_bytes, rates.pageable_bytes,
        *(pace.flops_per_s for pace in rates.paces),
    )  # fmt: skip
    return bool(rates.paces) and all(divisor > 0 for divisor in divisors)


def _threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return usable_cpus()


def _ram_gb() -> int:
    """Rounded, since firmware reserves a little more or less from one start to the next."""
    try:
        return round(int(psutil.virtual_memory().total) / 1e9)
    except (OSError, RuntimeError, ValueError, psutil.Error):
        return 0


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _first(file: Path, pattern: str) -> str:
    """The first match in a file; empty if there is no such file."""
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(pattern, text, re.MULTILINE)
    return found.group(1).strip() if found else ""
