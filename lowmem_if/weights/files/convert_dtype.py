"""Write a copy of a safetensors file with its floating numbers in bfloat16, some megabytes at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from lowmem_if.cascade.safetensors_header import ITEM_BYTES, read_header
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.safetensors_writer import NewTensor, header_bytes
from lowmem_if.weights.files.stored import TORCH_DTYPES

_BLOCK_BYTES = 8 * 2**20
"""Bytes that are written at once."""


def cast_tensors(source: Path) -> tuple[NewTensor, ...]:
    """The tensors of the copy of `source`, in the order of their bytes.

    Wide numbers are first, as the format's own writer orders them, so that each begins at a multiple of
    its size. Otherwise the order is that of the source.

    Raises:
        CheckpointError: the source is missing or broken.
    """
    found = sorted(read_header(source).items(), key=lambda entry: entry[1].offset)
    tensors = [
        NewTensor(name, "BF16" if header.is_floating else header.dtype, header.shape)
        for name, header in found
    ]
    return tuple(sorted(tensors, key=lambda tensor: -ITEM_BYTES[tensor.dtype]))


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
            stored = checkpoint.stored(tensor.name)
            block = scratch.view(TORCH_DTYPES[tensor.dtype])
            for first in range(0, stored.header.numbers, len(block)):
                part = block[: stored.header.numbers - first]
                reader.read(stored, part, first)
                yield stream.write(part.view(torch.uint8).numpy().data)
        checkpoint.check()
        stream.flush()
        os.fsync(stream.fileno())
