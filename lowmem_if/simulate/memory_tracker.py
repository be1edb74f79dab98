"""Track which memory is used: every storage from its creation to its end, and the peaks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from lowmem_if.simulate.caching_allocator import CachingAllocator

ANONYMOUS, PINNED, MAPPED = "anonymous", "pinned", "mapped"
"""The kinds of host memory.

A process's own; pinned for an accelerator; pages of a mapped file, which can be dropped at any time.
"""


@dataclass(slots=True)
class MemoryUse:
    """Bytes in one kind of memory, now and at most."""

    now: int = 0
    most: int = 0

    def add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


@dataclass(slots=True)
class MemoryTracker:
    """The bytes in use by place: a kind of host memory, or an accelerator by its name.

    Attributes:
        usages: the bytes of the storages themselves.
        allocators: models of torch's caching allocator, for accelerators.
        taken: called with the number of each storage on an accelerator whose block was in use before,
            and with the streams that may not be done with it.
        gone: called with the number of each storage that is freed; returns such streams.
    """

    usages: dict[str, MemoryUse] = field(default_factory=dict)
    allocators: dict[str, CachingAllocator] = field(default_factory=dict)
    taken: Callable[[int, dict[str, int]], None] = lambda _storage, _used: None
    gone: Callable[[int], dict[str, int]] = lambda _storage: {}
    _kind: str = ANONYMOUS
    _known: dict[int, weakref.ref[Any]] = field(default_factory=dict)

    def usage(self, place: str) -> MemoryUse:
        """The usage of a place, created on first use."""
        return self.usages.setdefault(place, MemoryUse())

    def allocator(self, device: str) -> CachingAllocator:
        """The model of an accelerator's allocator."""
        return self.allocators.setdefault(device, CachingAllocator())

    @contextmanager
    def entering(self, kind: str) -> Iterator[None]:
        """Inside, new host tensors are of this kind of memory."""
        before, self._kind = self._kind, kind
        try:
            yield
        finally:
            self._kind = before

    def see(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, unless it is known, until the storage is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or tensor.device.type == "meta":
            return
        size = storage.nbytes()
        place = self._kind if tensor.device.type == "cpu" else str(tensor.device)
        block = self.allocator(place).take(size) if tensor.device.type != "cpu" and size else None
        if block is not None and block.used:
            self.taken(key, block.used)
        if place == PINNED:
            size = pinned_bytes(size)
        self.usage(place).add(size)

        def leave(_reference: Any) -> None:
            del self._known[key]
            used = self.gone(key)
            self.usages[place].now -= size
            if block is not None:
                block.used = used
                self.allocators[place].give_back(block)

        self._known[key] = weakref.ref(storage, leave)

    def begin_phase(self) -> None:
        """Begin a new phase: forget the peaks so far."""
        for usage in self.usages.values():
            usage.most = usage.now
        for allocator in self.allocators.values():
            allocator.most_allocated = allocator.allocated
            allocator.most_reserved = allocator.reserved


def pinned_bytes(size: int) -> int:
    """Pinned memory is handed out in powers of two (torch's CachingHostAllocator)."""
    return 1 << (size - 1).bit_length() if size else 0
