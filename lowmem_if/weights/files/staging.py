"""Copy from a file to an accelerator through two pinned buffers that are reused.

While one buffer is copied to the device, the other is filled. Pinned memory is rounded up to a power
of two and is scarce under WSL and in containers. So there are two buffers, never a pinned model. Where
even these cannot be pinned, ordinary memory does the same work more slowly.
"""

from __future__ import annotations

from typing import Any

import torch

from lowmem_if.cascade.transfer_sizes import STAGING_BUFFERS, STAGING_BYTES
from lowmem_if.weights.files.stored import Stored
from lowmem_if.weights.files.tensor_reader import Reader
from lowmem_if.weights.out_of_memory import is_shortage


class Staging:
    """Reads tensors into an accelerator's memory; every copy is ordered on its own stream.

    That stream does not wait for the computing stream by itself. The caller makes it wait for earlier
    computing with the same memory, by an event or by `follow_computing`.
    """

    def __init__(self, reader: Reader, device: str) -> None:
        self.reader = reader
        self._device = device
        self.stream: Any = copy_stream(device)
        self._buffers = [
            _host_buffer(pinned=self.stream is not None) for _ in range(STAGING_BUFFERS)
        ]
        self._sent: list[Any] = [None, None]
        self._turn = 0

    def read(self, stored: Stored, out: torch.Tensor, first: int = 0) -> None:
        """Fill `out`, contiguous on the device; returns when every byte has arrived.

        `out` may be fresh from the allocator: copies begin after all that is ordered on the computing
        stream.
        """
        self.follow_computing()
        self.send(stored, out, first)
        for sent in filter(None, self._sent):
            sent.synchronize()

    def follow_computing(self) -> None:
        """Let copies from now on wait for everything that was ordered on the computing stream so far.

        The allocator hands out a freed block at once, since the stream that it belongs to is in order.
        On another stream a copy could overwrite what a kernel still reads. Copies into an arena wait
        for the events of its groups instead: this would make them wait for the group in use, too.
        """
        if self.stream is not None:
            self.stream.wait_stream(torch.accelerator.current_stream(self._device))

    def send(self, stored: Stored, out: torch.Tensor, first: int = 0) -> None:
        """Fill `out` in the order of `stream`; the copy may still run when this returns."""
        flat = out.reshape(-1)
        step = STAGING_BYTES // flat.dtype.itemsize
        for start in range(0, flat.numel(), step):
            part = flat[start : start + step]
            host = self._next().view(flat.dtype)[: part.numel()]
            self.reader.read(stored, host, first + start)
            self._copy(part, host)

    def _next(self) -> torch.Tensor:
        """The buffer to be filled next, once its last content has arrived."""
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
        self._sent[self._turn] = sleeping_event(self.stream, self._device)


def copy_stream(device: str) -> Any:
    """A stream apart from the computing one; None where torch has none (Apple GPUs)."""
    return torch.Stream(device=device) if device.partition(":")[0] in ("cuda", "xpu") else None


def sleeping_event(stream: Any, device: str) -> Any:
    """An event recorded on a stream; waiting for it does not occupy a CPU core.

    Waiting for CUDA spins by default. torch's generic event takes `blocking` but ignores it (2.13). So
    the event is CUDA's own, and so is the view of the stream that it is recorded on.
    """
    if device.partition(":")[0] != "cuda":
        return stream.record_event()
    event = torch.cuda.Event(blocking=True)
    event.record(
        torch.cuda.Stream(
            stream_id=stream.stream_id,
            device_index=stream.device_index,
            device_type=stream.device_type,
        )
    )
    return event


def _host_buffer(*, pinned: bool) -> torch.Tensor:
    try:
        return torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:
        # WSL and containers allow little pinned memory, and drivers word their refusal differently.
        if not pinned or not (is_shortage(error) or "pin" in str(error).lower()):
            raise
        return torch.empty(STAGING_BYTES, dtype=torch.uint8)
