"""A source of weights that reads no file: it counts what would be read, and where it would be kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch.utils._python_dispatch import _disable_current_modes

from lowmem_if.simulate.fake_streams import HOST
from lowmem_if.simulate.memory_tracker import MAPPED
from lowmem_if.simulate.tracing import Trace
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.stored import Stored
from lowmem_if.weights.files.tensor_reader import BLOCK_BESIDE_COMPUTING, Reader
from lowmem_if.weights.source import WeightSource
from lowmem_if.weights.streaming.offload_groups import OffloadGroup
from lowmem_if.weights.streaming.prefetch import LoadOnDemand

FILE = "file"
"""The origin of bytes that are read, in `Trace.moved`."""


def dry_source(trace: Trace) -> WeightSource:
    """Checkpoints with fake weights, which are loaded and streamed on the calling thread alone.

    A trace sees one thread only.
    """
    return WeightSource(
        open=lambda files: _DryCheckpoint(files, trace),
        building=_real_tensors,
        most_threads=1,
        prefetch=LoadAhead,
    )


def _real_tensors() -> AbstractContextManager[None]:
    """Networks are built on the meta device anyway; bitsandbytes' layers cannot hold fake tensors."""
    modes: AbstractContextManager[None] = _disable_current_modes()
    return modes


class _DryCheckpoint(Checkpoint):
    """The real headers, and fake tensors in place of the bytes."""

    def __init__(self, files: tuple[Path, ...], trace: Trace) -> None:
        super().__init__(files)
        self._trace = trace

    def view(self, stored: Stored) -> torch.Tensor:
        with self._trace.tracker.entering(MAPPED):
            tensor = torch.empty(stored.header.shape, dtype=stored.dtype)
            return tensor.permute(0, 3, 1, 2) if stored.channels_last else tensor

    def reader(
        self, between: Callable[[], None] = lambda: None, block: int = BLOCK_BESIDE_COMPUTING
    ) -> Reader:
        return _DryReader(self, between, block, self._trace)

    def drop_cache(self, stored: Stored) -> None:
        """Nothing is cached."""


class _DryReader(Reader):
    """Takes a reader's scratch memory and reads nothing."""

    def __init__(
        self, checkpoint: Checkpoint, between: Callable[[], None], block: int, trace: Trace
    ) -> None:
        super().__init__(checkpoint, between, block)
        self._trace = trace

    def read(self, stored: Stored, out: torch.Tensor, first: int = 0) -> None:  # noqa: ARG002
        self._trace.moved[FILE, "cpu"] += out.numel() * stored.dtype.itemsize
        self._trace.timeline.use(out, stream=HOST, writes=True)


class LoadAhead(LoadOnDemand):
    """Loads what a thread would have loaded by now if reading took no time: all there is memory for."""

    def next(self) -> OffloadGroup | None:
        return self._schedule.wanted() or self._schedule.upcoming()
