"""One block of memory that is handed out in parts, so that streamed weights never touch fresh pages."""

from __future__ import annotations

ALIGNMENT = 256
"""The alignment of every part, in bytes: no kernel asks for more."""


def aligned(size: int) -> int:
    """The bytes that a tensor of `size` bytes takes in an arena."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Arena:
    """Offsets in a block of memory of `size` bytes; the caller owns the memory itself."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._taken: list[tuple[int, int]] = []

    def take(self, size: int) -> int | None:
        """The offset of `size` free bytes (first fit); None if there is no gap of that size."""
        size, start = aligned(size), 0
        for index, (taken, end) in enumerate([*self._taken, (self.size, self.size)]):
            if taken - start >= size:
                self._taken.insert(index, (start, start + size))
                return start
            start = end
        return None

    def give_back(self, offset: int) -> None:
        """Free what `take` returned at this offset."""
        self._taken = [part for part in self._taken if part[0] != offset]
