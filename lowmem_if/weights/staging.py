"""From a file to an accelerator through two pinned buffers that are used again and again.

While one buffer's bytes travel, the other is filled. Pinned memory is rounded up to a power of two and
scarce under WSL and in containers: there are two buffers, never a pinned model, and where even they
cannot be had, ordinary memory does the same work more slowly.
"""

from __future__ import annotations

from typing import Any

import torch

from lowmem_if.weights.checkpoint import Stored
from lowmem_if.weights.reading import Reader
from lowmem_if.weights.shortages import is_shortage

STAGING_BYTES = 32 * 2**20
"""Of each of the two buffers: a power of two, which is what pinned memory is rounded to."""


class Staging:
    """Reads tensors into an accelerator's memory; every copy is ordered on its own stream."""

    def __init__(self, reader: Reader, device: str) -> None:
        self.reader = reader
        self.stream: Any = copy_stream(device)
        self._buffers = [_host_buffer(pinned=self.stream is not None) for _ in range(2)]
        self._sent: list[Any] = [None, None]
        self._turn = 0

    def read(self, stored: Stored, out: torch.Tensor, first: int = 0) -> None:
        """Fill `out`, contiguous on the device; returns when every byte has been sent and arrived."""
        self.send(stored, out, first)
        if self.stream is not None:
            self.stream.synchronize()

    def send(self, stored: Stored, out: torch.Tensor, first: int = 0) -> None:
        """Fill `out` in the order of `stream`; it may still be on its way when this returns."""
        flat = out.reshape(-1)
        step = STAGING_BYTES // flat.dtype.itemsize
        for start in range(0, flat.numel(), step):
            part = flat[start : start + step]
            host = self._next().view(flat.dtype)[: part.numel()]
            self.reader.read(stored, host, first + start)
            self._copy(part, host)

    def _next(self) -> torch.Tensor:
        """The buffer whose turn it is, once its last content has arrived."""
        self._turn = 1 - self._turn
        if self._sent[self._turn] is not None:
            self._sent[self._turn].synchronize()
        return self._buffers[self._turn]

    def _copy(self, part: torch.Tensor, host: torch.Tensor) -> None:
        if self.stream is None:
            part.copy_(host)
            return
        with self.stream:
            part.copy_(host, non_blocking=True)
        self._sent[self._turn] = self.stream.record_event()


def copy_stream(device: str) -> Any:
    """A stream beside the computing one; None where torch has none (Apple GPUs)."""
    return torch.Stream(device=device) if device.partition(":")[0] in ("cuda", "xpu") else None


def _host_buffer(*, pinned: bool) -> torch.Tensor:
    try:
        return torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:
        # WSL and containers allow little pinned memory, and the driver words its refusal variously.
        if not pinned or not (is_shortage(error) or "pin" in str(error).lower()):
            raise
        return torch.empty(STAGING_BYTES, dtype=torch.uint8)
