"""LoRAs merged into a network's weights while they are read: W + scale * alpha / rank * (up @ down).

Sums are made in float32 and rounded once, to the type that is computed in. A weight is merged one
block of rows at a time. How it is cut into blocks depends on the weight's shape alone, each product is
made by one thread, and everything happens in host memory. So the bits are the same whether a weight is
loaded once or at every pass, or is copied to an accelerator in pieces (how BLAS rounds depends on a
product's shape). Several LoRAs are added one after the other, in the given order.

Only the two matrices of the current weight are held of a LoRA's file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from lowmem_if.cascade.lora.adapter import BLOCK, Lora
from lowmem_if.cascade.lora.lora_fit import Misfit, fitted
from lowmem_if.cascade.lora.lora_keys import Pair, read_pairs
from lowmem_if.errors import LoraError
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.stored import Stored
from lowmem_if.weights.files.tensor_reader import BLOCK_BESIDE_COMPUTING, Reader
from lowmem_if.weights.modules.meta_init import Slot


@dataclass(frozen=True, slots=True)
class Change:
    """What one LoRA adds to one weight: `factor` times the product of two matrices of a file."""

    file: Checkpoint
    down: Stored
    up: Stored
    factor: float


class Merges:
    """What LoRAs add to which weights; a context manager that closes their files, or `close()` it."""

    def __init__(self) -> None:
        self._files: list[Checkpoint] = []
        self._changes: dict[Stored, list[Change]] = {}

    @classmethod
    def into(cls, wanted: Iterable[Slot], lora: Sequence[Lora]) -> Merges:
        """What these LoRAs add to the weights that fill these slots.

        Raises:
            LoraError: one belongs to another network.
            CheckpointError: its file is missing or broken.
        """
        merges = cls()
        weights = {name: slot.stored for slot in wanted for name in slot.names} if lora else {}
        with ExitStack() as undo:
            undo.callback(merges.close)
            for one in lora:
                merges._add(one, weights)
            undo.pop_all()
        return merges

    def _add(self, lora: Lora, weights: dict[str, Stored]) -> None:
        path = Path(lora.path)
        try:
            pairs = fitted(read_pairs(path), {name: s.shape for name, s in weights.items()})
        except Misfit as why:
            raise LoraError(f"{path} does not fit the UNet that it was planned for: {why}") from why
        file = Checkpoint((path,))
        self._files.append(file)
        for name, pair in pairs.items():
            if factor := lora.scale * _multiplier(file, pair):
                change = Change(file, file.stored(pair.down), file.stored(pair.up), factor)
                self._changes.setdefault(weights[name], []).append(change)

    def __bool__(self) -> bool:
        return bool(self._changes)

    def of(self, stored: Stored) -> Sequence[Change]:
        """What is added to a weight; nothing for most."""
        return self._changes.get(stored, ())

    def check(self) -> None:
        """Check that all files are still the ones that were opened.

        Raises:
            CheckpointError: one was changed, replaced or removed.
        """
        for file in self._files:
            file.check()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        self._changes = {}

    def __enter__(self) -> Merges:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


NOTHING = Merges()
"""No LoRA adds anything."""


def reader_of(
    checkpoint: Checkpoint,
    merges: Merges,
    between: Callable[[], None] = lambda: None,
    block: int = BLOCK_BESIDE_COMPUTING,
) -> Reader:
    """A reader of a network's weights with what LoRAs add to them."""
    if not merges:
        return checkpoint.reader(between, block)
    return MergingReader(checkpoint, merges, between, block)


class MergingReader(Reader):
    """Reads weights with what LoRAs add to them; each thread has its own.

    Its scratch memory is that of a `Reader`, two blocks of `BLOCK` numbers in float32, and the matrices
    of one weight.
    """

    def __init__(
        self, checkpoint: Checkpoint, merges: Merges, between: Callable[[], None], block: int
    ) -> None:
        super().__init__(checkpoint, between, block)
        self._merges = merges
        self._held: Stored | None = None
        self._matrices: list[tuple[torch.Tensor, torch.Tensor, float]] = []
        self._scratch = torch.empty((2, 0))

    def read(self, stored: Stored, out: torch.Tensor, first: int = 0) -> None:
        """Fill `out`, contiguous on the CPU, with numbers of the weight from number `first` on.

        Raises:
            CheckpointError: a file cannot be read or has become shorter.
        """
        if not self._merges.of(stored):
            super().read(stored, out, first)
            return
        flat, width = out.reshape(-1), prod(stored.shape[1:])
        for top, bottom in _blocks(stored.shape[0], width):
            start, end = max(first, top * width), min(first + flat.numel(), bottom * width)
            if start < end:
                merged = self._merged(stored, top, bottom, width).view(-1)
                part = merged[start - top * width : end - top * width]
                flat[start - first : end - first].copy_(part)

    def _merged(self, stored: Stored, top: int, bottom: int, width: int) -> torch.Tensor:
        """Rows of a weight with all that is added to them, in float32."""
        numbers = (bottom - top) * width
        if self._scratch.shape[1] < numbers:
            self._scratch = torch.empty((2, numbers))
        weight, added = (flat[:numbers].view(-1, width) for flat in self._scratch)
        super().read(stored, weight, top * width)
        for down, up, factor in self._matrices_for(stored):
            torch.mm(up[top:bottom], down, out=added)
            weight.add_(added.mul_(factor))
        return weight

    def _matrices_for(self, stored: Stored) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        if self._held != stored:
            self._matrices = []  # free the last weight's before loading this one's
            for change in self._merges.of(stored):
                down, up = (self._matrix(change.file, part) for part in (change.down, change.up))
                self._matrices.append((down, up, change.factor))
            self._held = stored
        return self._matrices

    def _matrix(self, file: Checkpoint, stored: Stored) -> torch.Tensor:
        matrix = torch.empty((stored.shape[0], prod(stored.shape[1:])))
        file.reader(self._between).read(stored, matrix)
        return matrix


def _blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """The first row of each block and the first row after it; blocks are of about equal size.

    BLAS would multiply a block of few rows in another way than the rest.
    """
    count = min(rows, -(-rows * width // BLOCK))
    for number in range(count):
        yield rows * number // count, rows * (number + 1) // count


def _multiplier(file: Checkpoint, pair: Pair) -> float:
    """What a pair's product is multiplied with, by its alpha."""
    if pair.alpha is None:
        return pair.factor
    alpha = torch.empty(1, dtype=torch.float32)
    file.reader().read(file.stored(pair.alpha), alpha)
    return float(alpha) / pair.rank
