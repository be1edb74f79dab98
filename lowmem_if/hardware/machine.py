"""Detect what may be used: VRAM, RAM under the container's limit, disk, the number type and why."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import psutil

from lowmem_if.errors import DeviceError
from lowmem_if.hardware.accelerator import Accelerator, read_accelerator
from lowmem_if.hardware.calibration_file import machine_key, read_calibration
from lowmem_if.hardware.cards import looks_present
from lowmem_if.hardware.cgroups import tightest_group
from lowmem_if.hardware.speeds import Speeds, assumed
from lowmem_if.hardware.weights_disk import free_for_weights
from lowmem_if.system.host import inside_windows, segments_expand

DEVICE_KINDS = ("cpu", "cuda", "mps", "xpu")
LEAST_PINNED_BYTES = 128 * 2**20
"""The memory that streaming pins: two buffers of 32 MiB, which the allocator may round up."""

INSTALL_BITSANDBYTES = "pip install --no-deps bitsandbytes"
"""Installs what 8-bit and 4-bit weights need; its dependencies are installed already."""

_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine as the planner sees it, measured by `probe()` or read from a profile.

    Attributes:
        name: a profile's name, or "this machine".
        device: where components run: `cpu`, `cuda:0`, `xpu:0`, `mps`.
        device_name: its name by the maker.
        vram_bytes: accelerator memory a run may use; 0 on a CPU.
        vram_total_bytes: the accelerator's memory.
        ram_bytes: anonymous memory a run may use; pages of mapped files do not count.
        ram_total_bytes: the machine's (or its container's) memory.
        disk_free_bytes: on the disk of the weights.
        compute_dtype, compute_dtype_reason: the number type of the large networks, and why.
        capability: CUDA compute capability, (0, 0) elsewhere and where it is unknown.
        notes: readings that were limited or distrusted, in words.
        rates: its speeds, calibrated or published; None if it has none of its own.
        spills_vram: if VRAM runs out, the driver uses RAM, many times slower, instead of failing
            (Windows, WSL); so plans leave more VRAM free.
        keeps_reserve: torch's segments cannot expand (Windows, WSL, AMD's cards, Jetson), so its
            allocator keeps much of the memory that was freed.
        pinned_bytes: how much memory can be pinned for transfers; None: enough (WSL: almost none).
        has_bitsandbytes: whether 8-bit and 4-bit weights can be used, which take that package.
        devices: number of accelerators of this kind; a run uses one.
        unused: a sentence for each card that torch cannot use: why, and what to do. The notes include
            them.
    """

    name: str
    device: str
    device_name: str
    vram_bytes: int
    vram_total_bytes: int
    ram_bytes: int
    ram_total_bytes: int
    disk_free_bytes: int
    compute_dtype: str
    compute_dtype_reason: str
    capability: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    rates: Speeds | None = None
    spills_vram: bool = False
    keeps_reserve: bool = False
    pinned_bytes: int | None = None
    has_bitsandbytes: bool = True
    devices: int = 1
    unused: tuple[str, ...] = ()

    @property
    def speeds(self) -> Speeds:
        """Its own speeds, else those assumed for its class; for unpinned transfers if none can pin."""
        own = self.rates or assumed(self.kind, self.capability)
        if self.pinned_bytes is not None and self.pinned_bytes < LEAST_PINNED_BYTES:
            return replace(own, bus_bytes=own.pageable_bytes)
        return own

    @property
    def multiplies_int8(self) -> bool:
        """Whether bitsandbytes' int8 runs here: on CUDA from 7.5 (its `has_imma`), not on Apple."""
        can = self.kind != "mps" and not (0, 0) < self.capability < (7, 5)
        return can and self.has_bitsandbytes

    @property
    def kind(self) -> str:
        """`cpu`, `cuda`, `mps` or `xpu`."""
        return self.device.partition(":")[0]

    @property
    def counts_reserve(self) -> bool:
        """Whether plans count the VRAM that torch's allocator holds instead of what is in use."""
        return self.spills_vram or self.keeps_reserve

    @property
    def unified(self) -> bool:
        """Whether the accelerator's memory is the RAM (Apple): one budget, and nothing to offload to."""
        return self.kind == "mps"


def probe(
    device: str = "auto",
    *,
    ram_bytes: int | None = None,
    vram_bytes: int | None = None,
    root: Path = Path("/"),
) -> Machine:
    """Measure this machine. It should be idle: readings lag while something else is being loaded.

    Args:
        device: `auto` (the first accelerator, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`, `xpu`.
        ram_bytes, vram_bytes: budgets of the user; used as they are, with a note if above the reading.
        root: root of the file system that control groups and signs of cards are read from.

    Raises:
        DeviceError: no such device here, or torch cannot use it; says why, and what to do.
    """
    if not _DEVICE.fullmatch(device):
        raise DeviceError(f"unknown device {device!r}: use auto, cpu, cuda, cuda:N, mps or xpu")
    machine = _read_cpu(root)
    if device != "cpu" and looks_present(root):
        found, unused = read_accelerator(device, root)
        machine = _with_accelerator(machine, found, root) if found else machine
        machine = replace(machine, notes=unused + machine.notes, unused=unused)
    elif device not in ("auto", "cpu"):
        raise DeviceError(f"there is no {device} device here; use --device cpu or auto")
    machine = replace(machine, rates=_calibrated(machine, root))
    return with_budget(machine, ram_bytes=ram_bytes, vram_bytes=vram_bytes)


def _calibrated(machine: Machine, root: Path) -> Speeds | None:
    accelerator = "" if machine.kind == "cpu" else machine.device_name
    return read_calibration(machine.device, machine_key(accelerator, root))


def with_budget(
    machine: Machine, *, ram_bytes: int | None = None, vram_bytes: int | None = None
) -> Machine:
    """The machine with the user's budgets in place of its readings."""
    notes = machine.notes
    if ram_bytes is not None and ram_bytes > machine.ram_bytes:
        notes += (f"RAM budget above the {machine.ram_bytes / 1e9:.1f} GB that are available",)
    if vram_bytes is not None and vram_bytes > machine.vram_bytes:
        notes += (f"VRAM budget above the {machine.vram_bytes / 1e9:.1f} GB that are free",)
    return replace(
        machine,
        ram_bytes=machine.ram_bytes if ram_bytes is None else ram_bytes,
        vram_bytes=machine.vram_bytes if vram_bytes is None else vram_bytes,
        notes=notes,
    )


def cpu_compute_dtype(features: frozenset[str] | None) -> tuple[str, str]:
    """The number type for large networks on a CPU, and the reason; `features` None: unknown.

    Never float16: a 2-core AVX512 machine multiplied 2048^3 matrices at 90 GFLOP/s in float32, 188 in
    bfloat16 and 0.4 in float16 (docs/log.md).
    """
    if features is None:
        return "float32", "this system does not report whether the CPU has bfloat16 units"
    native = sorted(features & {"amx_bf16", "avx512_bf16", "bf16"})
    if native:
        return "bfloat16", f"the CPU has {native[0]}; float16 is some 400 times slower on a CPU"
    return "float32", "the CPU has no bfloat16 units; float16 is some 400 times slower on a CPU"


def accelerator_compute_dtype(kind: str, capability: tuple[int, int]) -> tuple[str, str]:
    """The number type for large networks on an accelerator, and the reason."""
    if kind == "cuda" and capability < (7, 0) and capability != (6, 0):
        major, minor = capability
        return (
            "float32",
            f"float16 runs at a 64th of the speed at compute capability {major}.{minor}",
        )
    if kind == "cuda" and capability < (8, 0):
        return "float16", "the published weights' own type; no bfloat16 before Ampere"
    return "float16", "the published weights' own type"


def _read_cpu(root: Path) -> Machine:
    total, available, notes = _read_ram()
    if group := tightest_group(root):
        if group.available_bytes < available or not total:
            notes += (f"RAM limited to {group.limit_bytes / 1e9:.1f} GB by {group.folder}",)
        total = min(total or group.limit_bytes, group.limit_bytes)
        available = min(available or group.available_bytes, group.available_bytes)
    disk_free, disk_note = free_for_weights()
    notes += (disk_note,) if disk_note else ()
    dtype, reason = cpu_compute_dtype(_cpu_features(root))
    return Machine(
        name="this machine",
        device="cpu",
        device_name=f"{platform.machine()} CPU, {os.cpu_count()} threads",
        vram_bytes=0,
        vram_total_bytes=0,
        ram_bytes=available,
        ram_total_bytes=total,
        disk_free_bytes=disk_free,
        compute_dtype=dtype,
        compute_dtype_reason=reason,
        notes=notes,
        has_bitsandbytes=bitsandbytes_is_installed(),
    )


def bitsandbytes_is_installed() -> bool:
    """Whether 8-bit and 4-bit weights can be used in this environment."""
    return find_spec("bitsandbytes") is not None


def _read_ram() -> tuple[int, int, tuple[str, ...]]:
    """(total, available, notes) as the system reports them; unknown sizes are 0, and impossible ones are
    limited to possible ones.
    """
    try:
        memory = psutil.virtual_memory()
        total, available = int(memory.total), int(memory.available)
    except (OSError, RuntimeError, ValueError, psutil.Error) as error:
        return 0, 0, (f"RAM cannot be read ({error}): set what may be used with --ram",)
    if 0 <= available <= total:
        return total, available, ()
    note = f"the system reports {available} of {total} bytes of RAM available"
    return max(0, total), max(0, min(available, total)), (note,)


def _with_accelerator(machine: Machine, found: Accelerator, root: Path) -> Machine:
    kind = found.device.partition(":")[0]
    dtype, reason = accelerator_compute_dtype(kind, found.capability)
    free, notes = found.free_bytes, machine.notes
    walled = kind == "cuda" and inside_windows(root)
    # Inside WSL the driver is that of Windows and lends RAM, too (microsoft/WSL issue 11050).
    spills = walled or (kind == "cuda" and sys.platform == "win32")
    keeps = kind == "cuda" and not segments_expand(root)
    if spills:
        notes += (
            "Windows uses RAM when VRAM runs out, many times slower: plans leave more VRAM free",
        )
    elif keeps:
        notes += (
            "torch's memory segments cannot expand here: plans count all memory that it holds",
        )
    if walled:
        notes += ("WSL pins almost no memory: transfers are planned at the unpinned speed",)
    if not 0 < free <= found.total_bytes:
        free = max(0, min(free, found.total_bytes))
        notes += (f"{found.device} reports {found.free_bytes} of {found.total_bytes} bytes free",)
    if kind == "mps":
        free = min(free, machine.ram_bytes)
    return replace(
        machine,
        device=found.device,
        device_name=found.name,
        vram_bytes=free,
        vram_total_bytes=found.total_bytes,
        compute_dtype=dtype,
        compute_dtype_reason=reason,
        capability=found.capability,
        devices=found.count,
        notes=notes,
        spills_vram=spills,
        keeps_reserve=keeps,
        pinned_bytes=0 if walled else None,
    )


def _cpu_features(root: Path) -> frozenset[str] | None:
    """The CPU's feature flags as Linux lists them; None if there is no such list."""
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(flags.group(1).split()) if flags else None
