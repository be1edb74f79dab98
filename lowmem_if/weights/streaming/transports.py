"""How a unit's weights get to where it computes, and leave again: three ways, one for each machine.

- `MappedTransport`: a CPU that computes in the file's own types uses the mapped file in place.
- `CastTransport`: a CPU that computes in other types, or with LoRAs, casts into memory that it reuses.
- `DeviceTransport`: an accelerator gets copies through pinned buffers, beside its computing.

`streaming.py` calls `bring` on a thread of its own, `views` on the computing one, and `room` and `leave`
on either, one at a time.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Protocol

import torch

from lowmem_if.errors import CheckpointError
from lowmem_if.system.process_memory import DONT_NEED, POPULATE_READ, advise
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.staging import Staging
from lowmem_if.weights.files.tensor_reader import Reader
from lowmem_if.weights.modules.lora_merge import NOTHING, Merges, reader_of
from lowmem_if.weights.modules.meta_init import Slot
from lowmem_if.weights.streaming.arena import Arena, aligned
from lowmem_if.weights.streaming.offload_groups import OffloadGroup, size_of

READ_AHEAD_BYTES = 32 * 2**20
"""Pages of a mapped file are asked for in windows of this size."""


class Transport(Protocol):
    """What `streaming.py` needs of a way."""

    def room(self, unit: OffloadGroup, *, force: bool = False) -> bool:
        """Set room aside for a unit; whether there was any, which there always is by `force`."""

    def bring(self, unit: OffloadGroup) -> None:
        """Bring the weights of a unit that has room, or order it after what it must wait for."""

    def views(self, unit: OffloadGroup) -> list[torch.Tensor]:
        """The weights of a unit that was brought, one for each slot, for computing from now on."""

    def leave(self, unit: OffloadGroup) -> None:
        """All computing with the unit has been ordered: its room may be used again after that."""

    def close(self) -> None:
        """Let go of all memory."""


class MappedTransport:
    """Weights are views of the mapped file; what comes and goes are pages.

    Args:
        window_bytes: of pages to have mapped in for units that come and go.
        caches: which units' pages the system may keep when they leave.
        between: called between reads; what it raises ends the bringing.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        window_bytes: int,
        caches: Callable[[OffloadGroup], bool],
        between: Callable[[], None],
    ) -> None:
        self._checkpoint, self._caches, self._between = checkpoint, caches, between
        self._free = window_bytes
        self._reader = Reader(checkpoint, between)

    def room(self, unit: OffloadGroup, *, force: bool = False) -> bool:
        if not force and self._free < _mapped_bytes(unit):
            return False
        self._free -= _mapped_bytes(unit)
        return True

    def bring(self, unit: OffloadGroup) -> None:
        for slot in unit.slots if _mapped_bytes(unit) else ():
            flat = self._checkpoint.view(slot.stored).reshape(-1).view(torch.uint8)
            for start in range(0, flat.numel(), READ_AHEAD_BYTES):
                self._between()
                self._populate(slot, flat[start : start + READ_AHEAD_BYTES], start)

    def views(self, unit: OffloadGroup) -> list[torch.Tensor]:
        return [self._checkpoint.view(slot.stored) for slot in unit.slots]

    def leave(self, unit: OffloadGroup) -> None:
        self._free += _mapped_bytes(unit)
        for slot in unit.slots:
            _advise(self._checkpoint.view(slot.stored), DONT_NEED)
            if not self._caches(unit):
                self._checkpoint.drop_cache(slot.stored)

    def close(self) -> None:
        """Nothing is held but the checkpoint's mapping."""

    def _populate(self, slot: Slot, pages: torch.Tensor, start: int) -> None:
        code = _advise(pages, POPULATE_READ)
        if code == errno.EFAULT:
            path = self._checkpoint.paths[slot.stored.file]
            raise CheckpointError(
                f"{path}: it has become shorter while it was in use; fetch or copy it again"
            )
        if code:  # an older system: what is read is cached, too
            scratch = torch.empty(pages.numel() // slot.dtype.itemsize, dtype=slot.dtype)
            self._reader.read(slot.stored, scratch, start // slot.dtype.itemsize)


def _mapped_bytes(unit: OffloadGroup) -> int:
    """Of an embedding only the few rows are read that are looked up, when they are."""
    return 0 if isinstance(unit.modules[0], torch.nn.Embedding) else unit.size_bytes


class _ArenaTransport:
    """Weights lie in one piece of memory that units take turns in."""

    def __init__(self, window_bytes: int, device: str) -> None:
        self._device = device
        self._arena = Arena(aligned(window_bytes))
        self._memory = torch.empty(self._arena.size, dtype=torch.uint8, device=device)
        self._rooms: dict[OffloadGroup, tuple[int | None, torch.Tensor]] = {}

    def room(self, unit: OffloadGroup, *, force: bool = False) -> bool:
        size = unit.size_bytes
        offset = self._arena.take(size)
        if offset is not None:
            self._rooms[unit] = offset, self._memory[offset : offset + size]
        elif force:  # what is in use lies in the middle: once in a while, memory of its own
            self._rooms[unit] = None, torch.empty(size, dtype=torch.uint8, device=self._device)
        return offset is not None or force

    def _views(self, unit: OffloadGroup) -> list[torch.Tensor]:
        _, memory = self._rooms[unit]
        views, start = [], 0
        for slot in unit.slots:
            flat = memory[start : start + size_of(slot)].view(slot.dtype)
            views.append(flat.reshape(slot.stored.shape))
            start += aligned(size_of(slot))
        return views

    def _free(self, unit: OffloadGroup) -> tuple[int, int] | None:
        """Give a unit's room back; the part of the arena that it was."""
        offset, memory = self._rooms.pop(unit)
        if offset is None:
            return None
        self._arena.give_back(offset)
        return offset, offset + memory.numel()

    def close(self) -> None:
        self._rooms = {}
        self._memory = torch.empty(0)


class CastTransport(_ArenaTransport):
    """Weights are cast from the file into the arena, with what is merged into them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        window_bytes: int,
        caches: Callable[[OffloadGroup], bool],
        between: Callable[[], None],
        merges: Merges = NOTHING,
    ) -> None:
        super().__init__(window_bytes, "cpu")
        self._checkpoint, self._caches = checkpoint, caches
        self._reader = reader_of(checkpoint, merges, between)

    def bring(self, unit: OffloadGroup) -> None:
        for slot, view in zip(unit.slots, self._views(unit), strict=True):
            self._reader.read(slot.stored, view)
            if not self._caches(unit):
                self._checkpoint.drop_cache(slot.stored)

    def views(self, unit: OffloadGroup) -> list[torch.Tensor]:
        return self._views(unit)

    def leave(self, unit: OffloadGroup) -> None:
        self._free(unit)


class DeviceTransport(_ArenaTransport):
    """Weights are copied into an arena on an accelerator, in the order of a stream of their own.

    The computing stream waits for a unit's copies, and copies over a unit wait for its computing.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        window_bytes: int,
        caches: Callable[[OffloadGroup], bool],
        between: Callable[[], None],
        device: str,
        merges: Merges = NOTHING,
    ) -> None:
        super().__init__(window_bytes, device)
        self._checkpoint, self._caches = checkpoint, caches
        self._staging = Staging(reader_of(checkpoint, merges, between), device)
        self._staging.follow_computing()  # the arena may lie where a freed tensor is still read
        self._arrived: dict[OffloadGroup, Any] = {}
        self._left: list[tuple[int, int, Any]] = []

    def bring(self, unit: OffloadGroup) -> None:
        self._wait_for_those_who_left(unit)
        for slot, view in zip(unit.slots, self._views(unit), strict=True):
            self._staging.send(slot.stored, view)
            if not self._caches(unit):
                self._checkpoint.drop_cache(slot.stored)
        if self._staging.stream is not None:
            self._arrived[unit] = self._staging.stream.record_event()

    def views(self, unit: OffloadGroup) -> list[torch.Tensor]:
        if unit in self._arrived:
            torch.accelerator.current_stream(self._device).wait_event(self._arrived.pop(unit))
        return self._views(unit)

    def leave(self, unit: OffloadGroup) -> None:
        part = self._free(unit)
        if part is not None and self._staging.stream is not None:
            done = torch.accelerator.current_stream(self._device).record_event()
            self._left = [(*part, done), *(old for old in self._left if not old[2].query())]

    def _wait_for_those_who_left(self, unit: OffloadGroup) -> None:
        offset, memory = self._rooms[unit]
        if self._staging.stream is None:
            return
        if offset is None:
            self._staging.follow_computing()  # fresh from the allocator
            return
        for start, end, done in self._left:
            if start < offset + memory.numel() and offset < end:
                self._staging.stream.wait_event(done)

    def close(self) -> None:
        if self._staging.stream is not None:
            self._staging.stream.synchronize()
        self._arrived, self._left = {}, []
        super().close()


def _advise(view: torch.Tensor, advice: int) -> int:
    """Advice on the pages of a view; 0, or why the system did not take it (errno)."""
    return advise(view.data_ptr(), view.numel() * view.itemsize, advice)
