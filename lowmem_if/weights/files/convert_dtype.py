"""Write a copy of a safetensors file with its floating numbers in bfloat16, some megabytes at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from lowmem_if.cascade.safetensors_header import ITEM_BYTES, TensorHeader, read_header
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.safetensors_writer import NewTensor, header_bytes
from lowmem_if.weights.files.stored import (
    CHANNELS_LAST,
    CONVOLUTION_AXES,
    TORCH_DTYPES,
    Stored,
    inputs_last_shape,
)
from lowmem_if.weights.files.tensor_reader import Reader

_BLOCK_BYTES = 8 * 2**20
"""Bytes that are written at once."""


def cast_tensors(source: Path) -> tuple[NewTensor, ...]:
    """The tensors of the copy of `source`, in the order of their bytes.

    Convolutions' weights have their channels last, as they are computed with. Wide numbers are first, as
    the format's own writer orders them, so that each begins at a multiple of its size. Otherwise the
    order is that of the source.

    Raises:
        CheckpointError: the source is missing or broken.
    """
    found = sorted(read_header(source).items(), key=lambda entry: entry[1].offset)
    tensors = [_cast(name, header) for name, header in found]
    return tuple(sorted(tensors, key=lambda tensor: -ITEM_BYTES[tensor.dtype]))


def _cast(name: str, header: TensorHeader) -> NewTensor:
    if not header.is_floating:
        return NewTensor(name, header.dtype, header.shape)
    if len(header.shape) != CONVOLUTION_AXES or name.endswith(CHANNELS_LAST):
        return NewTensor(name, "BF16", header.shape)
    return NewTensor(name + CHANNELS_LAST, "BF16", inputs_last_shape(header.shape))


def cast_file(source: Path, target: Path) -> Iterator[int]:
    """Write `target`, which must not exist; yields the number of bytes after each write.

    At the end the file is on the disk, not only in the system's cache.

    Raises:
        CheckpointError: the source cannot be read, or has changed meanwhile.
        OSError: the target cannot be written.
    """
    tensors = cast_tensors(source)
    with Checkpoint((source,)) as checkpoint, target.open("xb") as stream:
        reader, scratch = checkpoint.reader(), torch.empty(_BLOCK_BYTES, dtype=torch.uint8)
        yield stream.write(header_bytes(tensors))
        for tensor in tensors:
            stored = checkpoint.stored(tensor.name.removesuffix(CHANNELS_LAST))
            block = scratch.view(TORCH_DTYPES[tensor.dtype])
            reorders = tensor.name.endswith(CHANNELS_LAST) and not stored.channels_last
            parts = _reordered if reorders else in_order
            for part in parts(reader, stored, block):
                yield stream.write(part.reshape(-1).view(torch.uint8).numpy().data)
        checkpoint.check()
        stream.flush()
        os.fsync(stream.fileno())


def in_order(reader: Reader, stored: Stored, block: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor's numbers as they follow one another in the file, a block at a time, in its type."""
    for first in range(0, stored.header.numbers, len(block)):
        part = block[: stored.header.numbers - first]
        reader.read(stored, part, first)
        yield part


def _reordered(reader: Reader, stored: Stored, block: torch.Tensor) -> Iterator[torch.Tensor]:
    """Some output channels at a time, at least one, with the input channels last."""
    outer, inner, height, width = stored.shape
    row = inner * height * width
    count = max(1, len(block) // max(1, row))
    block = block if len(block) >= row else torch.empty(row, dtype=block.dtype)
    for top in range(0, outer, count):
        part = block[: min(count, outer - top) * row]
        reader.read(stored, part, top * row)
        yield part.view(-1, inner, height, width).permute(0, 2, 3, 1).contiguous()
