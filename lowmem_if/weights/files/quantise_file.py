"""Write a copy of a UNet's weight file with its matrices as 8-bit numbers, some megabytes at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from lowmem_if.cascade.quantised_layers import INT8, is_quantised
from lowmem_if.cascade.safetensors_header import ITEM_BYTES, read_header
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.convert_dtype import in_order
from lowmem_if.weights.files.row_quantization import empty_rows, quantise_rows, read_rows
from lowmem_if.weights.files.safetensors_writer import NewTensor, header_bytes
from lowmem_if.weights.files.stored import (
    CHANNELS_LAST,
    CODES,
    SCALES,
    TORCH_DTYPES,
    Stored,
    inputs_last_shape,
)
from lowmem_if.weights.files.tensor_reader import BLOCK, Reader

_BLOCK_BYTES = 8 * 2**20


def quantised_tensors(source: Path) -> tuple[NewTensor, ...]:
    """The tensors of the copy of `source`, in the order of their bytes.

    First those that stay as they are, wide numbers first, then the 8-bit numbers, then their scales,
    which are known when those have been written.

    Raises:
        CheckpointError: the source is missing or broken.
    """
    found = sorted(read_header(source).items(), key=lambda entry: entry[1].offset)
    plain, codes, scales = [], [], []
    for name, header in found:
        if not (
            header.is_floating and is_quantised(name.removesuffix(CHANNELS_LAST), header.shape)
        ):
            plain.append(NewTensor(name, header.dtype, header.shape))
            continue
        own = name.removesuffix(CHANNELS_LAST)
        shape = header.shape if name != own else inputs_last_shape(header.shape)
        codes.append(NewTensor(own + CODES, "I8", shape))
        scales.append(NewTensor(own + SCALES, "F32", (header.shape[0],)))
    plain.sort(key=lambda tensor: -ITEM_BYTES[tensor.dtype])
    return (*plain, *codes, *scales)


def quantise_file(source: Path, target: Path) -> Iterator[int]:
    """Write `target`, which must not exist; yields the number of bytes after each write.

    At the end the file is on the disk, not only in the system's cache.

    Raises:
        CheckpointError: the source cannot be read, or has changed meanwhile.
        OSError: the target cannot be written.
    """
    tensors, scales = quantised_tensors(source), dict[str, torch.Tensor]()
    with Checkpoint((source,)) as checkpoint, target.open("xb") as stream:
        reader = checkpoint.reader(block=BLOCK)
        scratch = torch.empty(_BLOCK_BYTES, dtype=torch.uint8)
        yield stream.write(header_bytes(tensors))
        for tensor in tensors:
            own = tensor.name.removesuffix(CODES).removesuffix(SCALES)
            if tensor.name.endswith(CODES):
                stored = checkpoint.stored(own)
                _, scales[own] = empty_rows(stored.shape[0], 1, INT8, "cpu")
                parts = _codes(reader, stored, scales[own])
            elif tensor.name.endswith(SCALES):
                parts = iter((scales.pop(own),))
            else:
                stored = checkpoint.stored(own.removesuffix(CHANNELS_LAST))
                parts = in_order(reader, stored, scratch.view(TORCH_DTYPES[tensor.dtype]))
            for part in parts:
                yield stream.write(part.reshape(-1).view(torch.uint8).numpy().data)
        checkpoint.check()
        stream.flush()
        os.fsync(stream.fileno())


def _codes(reader: Reader, stored: Stored, scales: torch.Tensor) -> Iterator[torch.Tensor]:
    for top, numbers in read_rows(reader, stored, BLOCK, "cpu"):
        rows, width = numbers.shape
        codes, _ = empty_rows(rows, width, INT8, "cpu")
        quantise_rows(numbers, codes, scales[top : top + rows], INT8)
        yield codes
