"""Measure memory, release it, and prove that it was released.

Only anonymous memory counts against RAM: pages of a mapped file can be dropped at any time. glibc keeps
freed memory in its arenas until `malloc_trim` is called.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch.nn import functional

from lowmem_if.system.process_memory import own_memory, trim_heap
from lowmem_if.weights.allocator import empty_caches

RELEASE_SHARE = 0.05
RELEASE_BYTES = 64_000_000
"""How much a released component may leave: this share of its weights or these bytes, the larger."""


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes at one moment. `ram_anon`: this process's own pages; `ram_file`: mapped files' pages.

    `vram_allocated` are torch's live tensors, `vram_reserved` what torch holds from the driver,
    `vram_used` what all processes hold together.
    """

    ram_anon: int
    ram_file: int
    vram_allocated: int = 0
    vram_reserved: int = 0
    vram_used: int = 0

    def __sub__(self, other: MemoryReading) -> MemoryReading:
        """The difference to another moment; negative where memory was released since."""
        return MemoryReading(
            *(now - then for now, then in zip(astuple(self), astuple(other), strict=True))
        )


@dataclass(frozen=True, slots=True)
class Release:
    """Whether a component was released, and how many bytes are still in use if it was not.

    Bytes are those after minus those before, at least 0.

    Attributes:
        alive: modules that something still refers to.
        ram_left_bytes: memory of this process, including that of libraries.
        vram_left_bytes: tensors.
        allowed_bytes: how much of each kind may be left.
        reserved_left_bytes: what torch's allocator still holds from the driver; 0 while other components
            are loaded, since free blocks may be in their segments.
        driver_left_bytes: used by the driver's account, beyond what torch holds: contexts, kernels and
            workspaces. It is only recorded, since it includes the memory of other programs.
    """

    alive: tuple[str, ...]
    ram_left_bytes: int
    vram_left_bytes: int
    allowed_bytes: int
    reserved_left_bytes: int = 0
    driver_left_bytes: int = 0

    @property
    def complete(self) -> bool:
        left = max(self.ram_left_bytes, self.vram_left_bytes, self.reserved_left_bytes)
        return not self.alive and left <= self.allowed_bytes


class Watch:
    """Weak references to every module of a component, to check later whether they were freed."""

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        self._references = [
            (type(module).__name__, weakref.ref(part))
            for module in modules
            for part in module.modules()
        ]

    def alive(self) -> tuple[str, ...]:
        """The classes of the top modules that are still alive, or have a module that is."""
        return tuple(dict.fromkeys(name for name, ref in self._references if ref() is not None))


def read_memory(device: str = "cpu") -> MemoryReading:
    """This process's memory, and the accelerator's if `device` is one."""
    own, file = own_memory()
    if device == "cpu":
        return MemoryReading(own, file)
    if device == "mps":
        allocated = torch.mps.current_allocated_memory()
        driver = torch.mps.driver_allocated_memory()
        # Metal allocates in RAM, and macOS counts it as the process's own; here it counts once.
        return MemoryReading(max(0, own - driver), file, allocated, driver, driver)
    try:
        free, total = torch.accelerator.get_memory_info(device)
    except (RuntimeError, NotImplementedError):  # some drivers (XPU under WSL2) do not report it
        free = total = 0
    allocated = torch.accelerator.memory_allocated(device)
    reserved = torch.accelerator.memory_reserved(device)
    return MemoryReading(own, file, allocated, reserved, total - free)


class VramTaken(Exception):
    """Less VRAM is free than a step was planned with: `available_bytes`."""

    def __init__(self, available_bytes: int, needed_bytes: int) -> None:
        self.available_bytes = available_bytes
        super().__init__(
            f"{available_bytes / 1e9:.1f} GB of VRAM are free now and {needed_bytes / 1e9:.1f} GB are "
            "needed: other programs have taken some since the run was planned"
        )


def free_vram(device: str) -> int | None:
    """Bytes that tensors may still take: free by the driver, or unused in torch's allocator.

    None on a CPU, where memory is unified, and where the driver does not report it.
    """
    if device in ("cpu", "mps"):
        return None
    try:
        free, total = torch.accelerator.get_memory_info(device)
    except (RuntimeError, NotImplementedError):
        return None
    unused = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return int(free + unused) if total else None


def wake(device: str, dtype: str = "float32") -> None:
    """Use an accelerator as networks do, so that the memory of its first use is not counted as theirs.

    The first convolution, product and attention allocate a context, kernels, and the libraries'
    handles and workspaces, which remain until the process ends.

    Args:
        device: nothing is done on `cpu`.
        dtype: the compute type of the network; float32 is used as well, since a part of every network
            is.
    """
    if device == "cpu":
        return
    for name in dict.fromkeys(("float32", dtype)):
        use_once(device, getattr(torch, name))
    torch.accelerator.synchronize(device)


@torch.no_grad()  # type: ignore[untyped-decorator]
def use_once(device: str, dtype: torch.dtype) -> None:
    """A convolution, a norm, a product and attention of a few numbers, as in the UNets."""
    options: Any = {"device": device, "dtype": dtype}
    picture = functional.conv2d(
        torch.ones(2, 32, 16, 16, **options), torch.ones(64, 32, 3, 3, **options), padding=1
    )
    picture = functional.silu(functional.group_norm(picture, 32))
    rows = functional.layer_norm(picture.flatten(2).transpose(1, 2), (64,))
    rows = functional.linear(rows, torch.ones(64, 64, **options), torch.ones(64, **options))
    heads = rows.unsqueeze(1)
    functional.scaled_dot_product_attention(heads, heads, heads)
    torch.bmm(rows, rows.transpose(1, 2)).softmax(-1)


def release_memory(device: str = "cpu") -> MemoryReading:
    """Collect garbage, empty the allocators' caches, trim the heap; returns what is in use then."""
    gc.collect()
    if device != "cpu":
        torch.accelerator.synchronize(device)
        empty_caches(device)
    trim_heap()
    return read_memory(device)


def prove_release(
    watch: Watch, before: MemoryReading, after: MemoryReading, weight_bytes: int
) -> Release:
    """Compare the readings before a component was loaded and after it was released."""
    left, allowed = after - before, max(int(RELEASE_SHARE * weight_bytes), RELEASE_BYTES)
    # cuBLAS' workspaces are tensors of torch and remain: up to 32 MB.
    alone = after.vram_allocated - max(0, left.vram_allocated) <= RELEASE_BYTES
    return Release(
        watch.alive(),
        max(0, left.ram_anon),
        max(0, left.vram_allocated),
        allowed,
        max(0, left.vram_reserved) if alone else 0,
        max(0, left.vram_used - left.vram_reserved),
    )


class Sampler(threading.Thread):
    """Reads memory `1 / interval_s` times a second and passes each reading on, until stopped."""

    def __init__(
        self, device: str, record: Callable[[MemoryReading], None], interval_s: float = 0.04
    ) -> None:
        super().__init__(name="memory-sampler", daemon=True)
        self._device, self._record, self._interval_s = device, record, interval_s
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(self._interval_s):
            self._record(read_memory(self._device))

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()
