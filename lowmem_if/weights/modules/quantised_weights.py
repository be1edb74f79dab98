"""The 8-bit or 4-bit weights of a UNet: kept as they are, and made numbers when a layer computes."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from threading import local
from typing import Any

import torch

from lowmem_if.errors import CheckpointError
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.row_quantization import (
    code_bytes,
    dequantise_rows,
    empty_rows,
    inputs_last,
    quantise_rows,
    read_rows,
)
from lowmem_if.weights.files.staging import Staging
from lowmem_if.weights.files.stored import Stored
from lowmem_if.weights.files.tensor_reader import BLOCK
from lowmem_if.weights.modules.lora_merge import Merges, reader_of
from lowmem_if.weights.modules.materialize import in_parallel, thread_count, torch_threads
from lowmem_if.weights.modules.meta_init import Slot

_DEVICE_BLOCK = 16 * BLOCK
"""Numbers that an accelerator quantises at once; each copy to it is waited for."""


class QuantisedWeights:
    """The quantised weights of one network on a device: codes of those that are kept, scales of all.

    The axes of a convolution's row are height, width and input channels, whatever its layout.
    """

    def __init__(self, storage: str, device: str) -> None:
        self._storage, self._device = storage, device
        self._codes: dict[Stored, torch.Tensor] = {}
        self._scales: dict[Stored, torch.Tensor] = {}

    def keep(
        self,
        wanted: Iterable[Slot],
        checkpoint: Checkpoint,
        merges: Merges,
        most_threads: int | None = None,
    ) -> None:
        """Read weights, merge LoRAs into them, and keep them on the device as whole numbers.

        Raises:
            CheckpointError: a file cannot be read, or is shorter than before.
        """
        threads, on_cpu = local(), self._device == "cpu"
        wanted = list(wanted)
        sizes = [code_bytes(*_rows(slot.stored), self._storage) for slot in wanted]
        # One block: hundreds of them would each be rounded up, to 2 MB on a CPU with huge pages.
        block = torch.empty(sum(sizes), dtype=torch.uint8, device=self._device)
        memory = {slot.stored: part for slot, part in zip(wanted, block.split(sizes), strict=True)}

        def load(slot: Slot) -> None:
            if not hasattr(threads, "reader"):
                reader = reader_of(checkpoint, merges, block=BLOCK)
                threads.reader = reader if on_cpu else Staging(reader, self._device)
            numbers = BLOCK if on_cpu else _DEVICE_BLOCK
            self._read(slot.stored, threads.reader, numbers, memory[slot.stored])

        # As in `fill`: each loader computes with one thread.
        with torch_threads(1):
            in_parallel(load, wanted, thread_count(most_threads) if on_cpu else 1)

    def read_scales(self, wanted: Iterable[Slot], checkpoint: Checkpoint) -> None:
        """Read the scales of weights that are not kept.

        Raises:
            CheckpointError: the files have no 8-bit numbers, or cannot be read.
        """
        reader = checkpoint.reader()
        for stored in (slot.stored for slot in wanted):
            if stored.scales is None:
                raise CheckpointError(
                    f"{checkpoint.paths[0].parent}: these are no {self._storage} weights to stream: "
                    f"write a copy with `lowmem-if fetch CASCADE --convert {self._storage}`, "
                    f"or pin resident:{self._storage}"
                )
            scales = torch.empty((stored.shape[0], 1))
            reader.read(stored.scales, scales)
            self._scales[stored] = scales.to(self._device)

    def fill(self, slot: Slot, out: torch.Tensor, codes: torch.Tensor | None = None) -> None:
        """Fill `out`, in any layout, with a weight's numbers.

        Args:
            codes: the whole numbers; None: they are kept.
        """
        stored = slot.stored
        codes = self._codes[stored] if codes is None else codes.view(len(codes), -1)
        dequantise_rows(codes, self._scales[stored], inputs_last(out), self._storage)

    def _read(self, stored: Stored, reader: Any, block: int, memory: torch.Tensor) -> None:
        """Keep a weight in `memory`: as the file has it, or quantised some rows at a time."""
        codes, scales = empty_rows(*_rows(stored), self._storage, self._device, memory)
        if stored.scales is not None:
            reader.read(stored, codes)
            reader.read(stored.scales, scales)
        else:
            for top, numbers in read_rows(reader, stored, block, self._device):
                part = slice(top, top + len(numbers))
                quantise_rows(numbers, codes[part], scales[part], self._storage)
        self._codes[stored], self._scales[stored] = codes, scales


def _rows(stored: Stored) -> tuple[int, int]:
    """A weight as a matrix: rows, and numbers in each."""
    return stored.shape[0], prod(stored.shape[1:])
