"""How a group's weights get from the file to where it computes: three ways, one for each machine.

- `MappedTransport`: a CPU that computes in the file's own types uses the mapped file in place.
- `CastTransport`: a CPU that computes in other types, or with LoRAs, casts into memory that it reuses.
- `DeviceTransport`: an accelerator gets copies through pinned buffers, while it computes.

`load` may be called on a thread of its own, `tensors` on the computing thread, and `reserve` and
`release` on either, one at a time.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lowmem_if.cascade.transfer_sizes import LEAST_WINDOW_BYTES, WINDOW_UNITS
from lowmem_if.errors import CheckpointError
from lowmem_if.system.process_memory import DONT_NEED, POPULATE_READ, advise
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.staging import Staging
from lowmem_if.weights.files.tensor_reader import read_in_layout
from lowmem_if.weights.modules.lora_merge import NOTHING, Merges, reader_of
from lowmem_if.weights.modules.meta_init import Slot
from lowmem_if.weights.streaming.arena import Arena, aligned
from lowmem_if.weights.streaming.offload_groups import OffloadGroup, size_of
from lowmem_if.weights.streaming.page_cache import cacheable

READ_AHEAD_BYTES = 32 * 2**20
"""Pages of a mapped file are read ahead in windows of this size."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """What every transport needs.

    Attributes:
        checkpoint: the open weight files.
        window_bytes: of memory, or of mapped pages, for groups that are loaded and unloaded.
        keeps_cached: whether the system may keep a group's pages cached after it is unloaded.
        between: called between reads; what it raises ends the loading.
        merges: what LoRAs add to the weights.
    """

    checkpoint: Checkpoint
    window_bytes: int
    keeps_cached: Callable[[OffloadGroup], bool]
    between: Callable[[], None]
    merges: Merges = NOTHING

    def drop_cache(self, group: OffloadGroup, slot: Slot) -> None:
        """Tell the system that a weight's pages are not needed, unless they may stay cached."""
        if not self.keeps_cached(group):
            self.checkpoint.drop_cache(slot.stored)


class Transport(Protocol):
    """Moves groups between the file and memory."""

    def reserve(self, group: OffloadGroup, *, force: bool = False) -> bool:
        """Reserve memory for a group; returns whether there was any. With `force` there always is."""

    def load(self, group: OffloadGroup) -> None:
        """Load the weights of a group with reserved memory, or order the copies on a stream."""

    def tensors(self, group: OffloadGroup) -> list[torch.Tensor]:
        """The weights of a loaded group, one for each slot, for computing from now on."""

    def release(self, group: OffloadGroup) -> None:
        """Free a group's memory: all computing with the group has been ordered."""

    def close(self) -> None:
        """Free all memory."""


def is_as_stored(slot: Slot) -> bool:
    """Whether a mapped file can be computed with as it is."""
    stored = slot.stored
    return bool(slot.dtype == stored.dtype) and stored.header.offset % stored.dtype.itemsize == 0


class MappedTransport:
    """Weights are views of the mapped file; what is loaded and unloaded are its pages."""

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        self._free = settings.window_bytes
        self._reader = settings.checkpoint.reader(settings.between)

    def reserve(self, group: OffloadGroup, *, force: bool = False) -> bool:
        if not force and self._free < _mapped_bytes(group):
            return False
        self._free -= _mapped_bytes(group)
        return True

    def load(self, group: OffloadGroup) -> None:
        for slot in group.slots if _mapped_bytes(group) else ():
            view = slot.stored.in_file_order(self._settings.checkpoint.view(slot.stored))
            flat = view.reshape(-1).view(torch.uint8)
            for start in range(0, flat.numel(), READ_AHEAD_BYTES):
                self._settings.between()
                self._populate(slot, flat[start : start + READ_AHEAD_BYTES], start)

    def tensors(self, group: OffloadGroup) -> list[torch.Tensor]:
        return [self._settings.checkpoint.view(slot.stored) for slot in group.slots]

    def release(self, group: OffloadGroup) -> None:
        self._free += _mapped_bytes(group)
        for slot in group.slots:
            _advise(self._settings.checkpoint.view(slot.stored), DONT_NEED)
            self._settings.drop_cache(group, slot)

    def close(self) -> None:
        """Nothing is held but the checkpoint's mapping."""

    def _populate(self, slot: Slot, pages: torch.Tensor, start: int) -> None:
        code = _advise(pages, POPULATE_READ)
        if code == errno.EFAULT:
            path = self._settings.checkpoint.paths[slot.stored.file]
            raise CheckpointError(
                f"{path}: it has become shorter while it was in use; fetch or copy it again"
            )
        if code:  # an older system: reading puts the pages into the cache, too
            scratch = torch.empty(pages.numel() // slot.dtype.itemsize, dtype=slot.dtype)
            self._reader.read(slot.stored, scratch, start // slot.dtype.itemsize)


def _mapped_bytes(group: OffloadGroup) -> int:
    """What a group takes of the window: an embedding nothing, only the rows looked up are read."""
    return 0 if isinstance(group.modules[0], torch.nn.Embedding) else group.size_bytes


class _ArenaTransport:
    """Weights are kept in one block of memory that all groups share."""

    def __init__(self, window_bytes: int, device: str) -> None:
        self._device = device
        self._arena = Arena(aligned(window_bytes))
        self._memory = torch.empty(self._arena.size, dtype=torch.uint8, device=device)
        self._reserved: dict[OffloadGroup, tuple[int | None, torch.Tensor]] = {}
        self._tensors: dict[OffloadGroup, list[torch.Tensor]] = {}

    def reserve(self, group: OffloadGroup, *, force: bool = False) -> bool:
        size = group.size_bytes
        offset = self._arena.take(size)
        if offset is not None:
            self._reserved[group] = offset, self._memory[offset : offset + size]
        elif force:  # a group in use splits the free memory: this one gets memory of its own
            self._reserved[group] = (
                None,
                torch.empty(size, dtype=torch.uint8, device=self._device),
            )
        return offset is not None or force

    def tensors(self, group: OffloadGroup) -> list[torch.Tensor]:
        return self._tensors[group]

    def _cut(self, group: OffloadGroup) -> list[torch.Tensor]:
        """Cut a group's memory into its weights, for loading now and for computing later."""
        _, memory = self._reserved[group]
        tensors, start = [], 0
        for slot in group.slots:
            flat = memory[start : start + size_of(slot)].view(slot.dtype)
            tensors.append(slot.shaped(flat))
            start += aligned(size_of(slot))
        self._tensors[group] = tensors
        return tensors

    def _free(self, group: OffloadGroup) -> tuple[int, int] | None:
        """Free a group's memory; returns where in the arena it was."""
        offset, memory = self._reserved.pop(group)
        self._tensors.pop(group, None)
        if offset is None:
            return None
        self._arena.give_back(offset)
        return offset, offset + memory.numel()

    def close(self) -> None:
        self._reserved, self._tensors = {}, {}
        self._memory = torch.empty(0)


class CastTransport(_ArenaTransport):
    """Weights are cast from the file into the arena, with what LoRAs add to them."""

    def __init__(self, settings: StreamSettings) -> None:
        super().__init__(settings.window_bytes, "cpu")
        self._settings = settings
        self._reader = reader_of(settings.checkpoint, settings.merges, settings.between)

    def load(self, group: OffloadGroup) -> None:
        for slot, tensor in zip(group.slots, self._cut(group), strict=True):
            read_in_layout(self._reader, slot.stored, tensor)
            self._settings.drop_cache(group, slot)

    def release(self, group: OffloadGroup) -> None:
        self._free(group)


class DeviceTransport(_ArenaTransport):
    """Weights are copied into an arena on an accelerator, in the order of a stream of their own.

    The computing stream waits for a group's copies, and copies over a group wait for its computing.
    """

    def __init__(self, settings: StreamSettings, device: str) -> None:
        super().__init__(settings.window_bytes, device)
        self._settings = settings
        reader = reader_of(settings.checkpoint, settings.merges, settings.between)
        self._staging = Staging(reader, device)
        self._staging.follow_computing()  # kernels may still read a freed tensor where the arena is
        self._copied: dict[OffloadGroup, Any] = {}
        self._released: list[tuple[int, int, Any]] = []

    def load(self, group: OffloadGroup) -> None:
        self._wait_for_released(group)
        for slot, tensor in zip(group.slots, self._cut(group), strict=True):
            self._staging.send(slot.stored, tensor)
            self._settings.drop_cache(group, slot)
        if self._staging.stream is not None:
            self._copied[group] = self._staging.stream.record_event()

    def tensors(self, group: OffloadGroup) -> list[torch.Tensor]:
        if group in self._copied:
            torch.accelerator.current_stream(self._device).wait_event(self._copied.pop(group))
        return super().tensors(group)

    def release(self, group: OffloadGroup) -> None:
        part = self._free(group)
        if part is not None and self._staging.stream is not None:
            done = torch.accelerator.current_stream(self._device).record_event()
            self._released = [
                (*part, done),
                *(old for old in self._released if not old[2].query()),
            ]

    def _wait_for_released(self, group: OffloadGroup) -> None:
        """Let copies wait for the computing with what was in the same memory before."""
        offset, memory = self._reserved[group]
        if self._staging.stream is None:
            return
        if offset is None:
            self._staging.follow_computing()  # fresh from the allocator
            return
        for start, end, done in self._released:
            if start < offset + memory.numel() and offset < end:
                self._staging.stream.wait_event(done)

    def close(self) -> None:
        if self._staging.stream is not None:
            self._staging.stream.synchronize()
        self._copied, self._released = {}, []
        super().close()


def transport_of(
    groups: list[OffloadGroup],
    checkpoint: Checkpoint,
    device: str,
    *,
    mapped: bool,
    between: Callable[[], None],
    merges: Merges,
) -> Transport:
    """The way to a device, with room for some of the groups at a time.

    Args:
        mapped: whether a CPU computes with the mapped files as they are.
        between, merges: as in `StreamSettings`.
    """
    sizes = [group.size_bytes for group in groups]
    window = max(WINDOW_UNITS * max(sizes, default=0), min(LEAST_WINDOW_BYTES, sum(sizes)))
    cached = cacheable(groups, window)
    settings = StreamSettings(checkpoint, window, cached.__contains__, between, merges)
    if device != "cpu":
        return DeviceTransport(settings, device)
    return MappedTransport(settings) if mapped else CastTransport(settings)


def _advise(view: torch.Tensor, advice: int) -> int:
    """Give the system advice on the pages of a view; 0, or why the system refused it (errno)."""
    return advise(view.data_ptr(), view.numel() * view.itemsize, advice)
