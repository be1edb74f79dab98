"""Who holds how many bytes where: every storage from its making to its end, and the peaks on the way."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from lowmem_if.simulate.caching_allocator import CachingAllocator

ANONYMOUS, PINNED, MAPPED = "anonymous", "pinned", "mapped"
"""The kinds of host memory: a process's own; locked for an accelerator; pages of a file, which the
system may take back at any time."""


@dataclass(slots=True)
class MemoryUse:
    """Bytes of one place, now and at most."""

    now: int = 0
    most: int = 0

    def add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


@dataclass(slots=True)
class MemoryTracker:
    """Live bytes by place: a kind of host memory, or an accelerator by its name.

    Attributes:
        accounts: the bytes of the storages themselves.
        allocators: what torch's caching allocator makes of those on an accelerator.
        taken: called with the number of each storage on an accelerator whose block was in use before,
            and with the streams that may not be done with it.
        gone: called with the number of each storage that dies; returns such streams.
    """

    accounts: dict[str, MemoryUse] = field(default_factory=dict)
    allocators: dict[str, CachingAllocator] = field(default_factory=dict)
    taken: Callable[[int, dict[str, int]], None] = lambda _storage, _used: None
    gone: Callable[[int], dict[str, int]] = lambda _storage: {}
    _kind: str = ANONYMOUS
    _known: dict[int, weakref.ref[Any]] = field(default_factory=dict)

    def account(self, place: str) -> MemoryUse:
        """The account of a place, opened on first use."""
        return self.accounts.setdefault(place, MemoryUse())

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
        """Enter a tensor's storage, unless it is known; it leaves when the storage dies."""
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
        self.account(place).add(size)

        def leave(_reference: Any) -> None:
            del self._known[key]
            used = self.gone(key)
            self.accounts[place].now -= size
            if block is not None:
                block.used = used
                self.allocators[place].give_back(block)

        self._known[key] = weakref.ref(storage, leave)

    def begin_phase(self) -> None:
        """Forget the peaks so far: from here on they are those of a new phase."""
        for account in self.accounts.values():
            account.most = account.now
        for allocator in self.allocators.values():
            allocator.most_allocated = allocator.allocated
            allocator.most_reserved = allocator.reserved


def pinned_bytes(size: int) -> int:
    """Pinned memory is handed out in powers of two (torch's CachingHostAllocator)."""
    return 1 << (size - 1).bit_length() if size else 0
