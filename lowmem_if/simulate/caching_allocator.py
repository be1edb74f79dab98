"""A model of torch's CUDA caching allocator: what it allocates and what it reserves from the driver.

After c10/cuda/CUDACachingAllocator.cpp of torch 2.13 with its default settings: blocks are rounded to
512 bytes; those up to 1 MiB come from segments of 2 MiB, others below 10 MiB from segments of 20 MiB,
larger ones from segments of their own, rounded to 2 MiB. A free block is chosen by best fit, and split
if enough is left; free neighbours are joined. There is one stream: the copy streams allocate nothing.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

_MIB = 2**20
BLOCK_BYTES = 512
_SMALL_BYTES, _SMALL_SEGMENT_BYTES = _MIB, 2 * _MIB
_MIDDLE_BYTES, _MIDDLE_SEGMENT_BYTES, _LARGE_GRAIN_BYTES = 10 * _MIB, 20 * _MIB, 2 * _MIB


@dataclass(slots=True, eq=False)
class _Block:
    """A part of a segment, free or allocated, with its neighbours.

    Attributes:
        used: streams that may still use the earlier content, and the number of their last use.
    """

    size: int
    small: bool
    number: int
    before: _Block | None = None
    after: _Block | None = None
    free: bool = False
    used: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class CachingAllocator:
    """Bytes in use (`allocated`) and held from the driver (`reserved`), now and at most."""

    allocated: int = 0
    reserved: int = 0
    most_allocated: int = 0
    most_reserved: int = 0
    _pools: dict[bool, list[tuple[int, int, _Block]]] = field(
        default_factory=lambda: {True: [], False: []}
    )
    _count: int = 0

    def take(self, size: int) -> _Block:
        """Allocate a block for `size` bytes; `give_back` frees it."""
        rounded = block_bytes(size)
        block = self._best_fit(rounded) or self._new_segment(rounded)
        self._split(block, rounded)
        self.allocated += block.size
        self.most_allocated = max(self.most_allocated, self.allocated)
        self.most_reserved = max(self.most_reserved, self.reserved)
        return block

    def give_back(self, block: _Block) -> None:
        """Free a block: it is kept for later, joined with its free neighbours."""
        self.allocated -= block.size
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._unpool(neighbour)
                block = _joined(block, neighbour)
        self._pool(block)

    def empty_cache(self) -> None:
        """Return every segment without a used block to the driver."""
        for pool in self._pools.values():
            for _, _, block in list(pool):
                if block.before is None and block.after is None:
                    self._unpool(block)
                    self.reserved -= block.size

    def _best_fit(self, size: int) -> _Block | None:
        for _, _, block in self._pools[size <= _SMALL_BYTES]:
            if block.size >= size:
                self._unpool(block)
                return block
        return None

    def _new_segment(self, size: int) -> _Block:
        segment = _segment_bytes(size)
        self.reserved += segment
        return self._block(segment, small=size <= _SMALL_BYTES)

    def _split(self, block: _Block, size: int) -> None:
        left = block.size - size
        if left < BLOCK_BYTES if block.small else left <= _SMALL_BYTES:
            return
        rest = self._block(left, small=block.small)
        rest.used = dict(block.used)
        rest.before, rest.after = block, block.after
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        self._pool(rest)

    def _block(self, size: int, *, small: bool) -> _Block:
        self._count += 1
        return _Block(size, small, self._count)

    def _pool(self, block: _Block) -> None:
        block.free = True
        insort(self._pools[block.small], (block.size, block.number, block))

    def _unpool(self, block: _Block) -> None:
        block.free = False
        self._pools[block.small].remove((block.size, block.number, block))


def block_bytes(size: int) -> int:
    """The bytes that a tensor of `size` bytes takes in a block."""
    return -(-max(size, 1) // BLOCK_BYTES) * BLOCK_BYTES


def _segment_bytes(size: int) -> int:
    if size <= _SMALL_BYTES:
        return _SMALL_SEGMENT_BYTES
    if size < _MIDDLE_BYTES:
        return _MIDDLE_SEGMENT_BYTES
    return -(-size // _LARGE_GRAIN_BYTES) * _LARGE_GRAIN_BYTES


def _joined(one: _Block, other: _Block) -> _Block:
    """Two neighbours as one block."""
    first, second = (one, other) if one.after is other else (other, one)
    first.size += second.size
    for stream, count in second.used.items():
        first.used[stream] = max(count, first.used.get(stream, 0))
    first.after = second.after
    if second.after is not None:
        second.after.before = first
    return first
