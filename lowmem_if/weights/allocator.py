"""torch's allocator on an accelerator: a trial of its expandable segments, its limit, its caches."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from lowmem_if.weights.library_differences import empty_pinned_cache

_TRIAL_BYTES = 32 * 2**20
"""Larger than the allocator's segments for small blocks."""


class SegmentsFail(Exception):
    """The driver refuses torch's expandable segments; the text is its message."""


def try_segments(device: str, environment: Mapping[str, str] = os.environ) -> None:
    """Allocate once on a CUDA device if segments are set to expand.

    vGPUs and some containers have the driver and refuse the calls that expandable segments need
    (unsloth 1446, pytorch 192330). An ordinary shortage of memory has another text and is raised as it
    is.

    Raises:
        SegmentsFail: the driver refuses.
    """
    if device.partition(":")[0] != "cuda" or not _are_set(environment):
        return
    try:
        torch.empty(_TRIAL_BYTES, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        if not _is_refusal(str(error)):
            raise
        raise SegmentsFail(str(error).strip().splitlines()[0]) from error


def _are_set(environment: Mapping[str, str]) -> bool:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    settings = ",".join(environment.get(name, "") for name in names)
    return "expandable_segments:true" in settings.replace(" ", "").lower()


def _is_refusal(text: str) -> bool:
    """Whether this is the text of a failed driver call ("CUDA driver error: ...")."""
    return "driver error" in text.lower() or "operation not supported" in text.lower()


def used_accelerator() -> str:
    """The kind of accelerator that this process has used already; `cpu` if none.

    It may hold memory, and asking it costs nothing. The first use of another one allocates a context.
    """
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if current is None:
        return "cpu"
    is_initialized = getattr(getattr(torch, current.type), "is_initialized", lambda: True)
    return current.type if is_initialized() else "cpu"


def sees(device: str) -> bool:
    """Whether torch sees an accelerator of this kind here; always for `cpu`."""
    kind = device.partition(":")[0]
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return kind == "cpu" or (current is not None and current.type == kind)


def limit(device: str, usable_bytes: int, total_bytes: int) -> None:
    """Limit how much of a CUDA device torch's allocator may hold.

    At the limit it first returns its free blocks to the driver, and then raises `OutOfMemoryError`. A
    driver that lends RAM instead of failing would let it do neither.
    """
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, max(0.0, usable_bytes / total_bytes)), device
    )


def empty_caches(device: str) -> None:
    """Return the unused memory of an accelerator's allocator and of the one for pinned memory."""
    empty_cache(device)
    kind = device.partition(":")[0]
    if kind in ("cuda", "xpu"):  # nothing is pinned for others
        empty_pinned_cache(kind)


def empty_cache(device: str) -> None:
    """Return the free blocks of the accelerator's allocator to the driver."""
    if device == "mps":
        torch.mps.empty_cache()  # up to torch 2.12 `torch.accelerator` asserts there (pytorch 186430)
    elif device != "cpu":
        torch.accelerator.empty_cache()
