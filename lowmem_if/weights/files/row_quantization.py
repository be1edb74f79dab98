"""Matrices as whole numbers of 8 or 4 bits with scales: how they are made, and computed with again.

A matrix is quantised row by row. 8-bit numbers have one float32 scale for each row, 4-bit numbers one
bfloat16 scale for each group of a row. Two 4-bit numbers share a byte: one of the first half of the
padded row, one of its second half, so that both halves are unpacked without interleaving.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch

from lowmem_if.cascade.quantised_layers import GROUP, INT8
from lowmem_if.weights.files.stored import CONVOLUTION_AXES, Stored
from lowmem_if.weights.files.tensor_reader import BLOCK, Reads

_MOST_8, _MOST_4 = 127, 7


def code_bytes(rows: int, width: int, storage: str) -> int:
    """Bytes of the codes of a matrix (rows, width)."""
    return rows * (width if storage == INT8 else _half(width))


def empty_rows(
    rows: int, width: int, storage: str, device: str, memory: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for the (codes, scales) of a matrix (rows, width).

    Args:
        memory: `code_bytes` for the codes, on the device; None: fresh memory.
    """
    if memory is None:
        size = code_bytes(rows, width, storage)
        memory = torch.empty(size, dtype=torch.uint8, device=device)
    if storage == INT8:
        scales = torch.empty((rows, 1), dtype=torch.float32, device=device)
        return memory.view(torch.int8).view(rows, width), scales
    groups = 2 * _half(width) // GROUP
    scales = torch.empty((rows, groups), dtype=torch.bfloat16, device=device)
    return memory.view(rows, _half(width)), scales


def read_rows(
    reader: Reads, stored: Stored, block: int, device: str
) -> Iterator[tuple[int, torch.Tensor]]:
    """Some rows of a weight at a time: (the first one's number, float32 numbers (rows, width)).

    The axes of a convolution's row are height, width and input channels, whatever the file's order.

    Args:
        block: numbers that are read at once, if a row is not longer.
    """
    rows, width = stored.shape[0], prod(stored.shape[1:])
    count = min(rows, max(1, block // width))
    scratch = torch.empty((count, *stored.header.shape[1:]), device=device)
    for top in range(0, rows, count):
        numbers = scratch[: min(count, rows - top)]
        reader.read(stored, numbers, top * width)
        if not stored.channels_last:
            numbers = inputs_last(numbers)
        yield top, numbers.reshape(-1, width)


def inputs_last(weight: torch.Tensor) -> torch.Tensor:
    """A weight with a convolution's input channels as its last axis, as a view."""
    return weight.permute(0, 2, 3, 1) if weight.dim() == CONVOLUTION_AXES else weight


def quantise_rows(
    numbers: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, storage: str
) -> None:
    """Quantise float32 numbers (rows, width) into `codes` and `scales` of `empty_rows`."""
    if storage == INT8:
        scales.copy_(numbers.abs().amax(1, keepdim=True) / _MOST_8)
        codes.copy_(_divided(numbers, scales).round_())
        return
    rows, width = numbers.shape
    half = _half(width)
    padded = torch.nn.functional.pad(numbers, (0, 2 * half - width)).view(rows, -1, GROUP)
    scales.copy_(padded.abs().amax(2) / _MOST_4)
    steps = _divided(padded, scales.float()[:, :, None]).round_().clamp_(-_MOST_4 - 1, _MOST_4)
    low, high = (steps + 8).to(torch.uint8).view(rows, 2, half).unbind(1)
    codes.copy_(low | high << 4)


def dequantise_rows(
    codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor, storage: str
) -> None:
    """Fill `out`, whose first axis are the rows, with the numbers; each is rounded once.

    Args:
        out: of any float type and any strides; its other axes are those of a row, in order.
    """
    rows, width = out.shape[0], out[0].numel()
    if storage == INT8 and codes.device.type != "cpu":  # one kernel, which casts on its way
        shape = (rows,) + (1,) * (out.dim() - 1)
        torch.mul(codes.view(out.shape), scales.view(shape), out=out)
        return
    count = max(1, BLOCK // width)
    in_place = storage == INT8 and out.dtype == torch.float32 and out.is_contiguous()
    scratch = None if in_place else torch.empty(min(rows, count), width, device=out.device)
    for top in range(0, rows, count):
        part = out[top : top + count]
        numbers = part.view(len(part), width) if scratch is None else scratch[: len(part)]
        if storage == INT8:
            numbers.copy_(codes[top : top + count]).mul_(scales[top : top + count])
        else:
            _from_nibbles(codes[top : top + count], scales[top : top + count], numbers)
        if scratch is not None:
            part.copy_(numbers.view(part.shape))


def _from_nibbles(codes: torch.Tensor, scales: torch.Tensor, numbers: torch.Tensor) -> None:
    rows, half = codes.shape
    steps = torch.empty((rows, 2, half), dtype=torch.float32, device=codes.device)
    steps[:, 0].copy_(codes & 15)
    steps[:, 1].copy_(codes >> 4)
    scaled = steps.sub_(8).view(rows, -1, GROUP).mul_(scales[:, :, None])
    numbers.copy_(scaled.view(rows, -1)[:, : numbers.shape[1]])


def _divided(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Numbers over their scales; a row of zeros has a scale of zero."""
    return numbers / torch.where(scales == 0, 1, scales)


def _half(width: int) -> int:
    """Half the width of a row of 4-bit numbers, in whole groups."""
    return -(-width // (2 * GROUP)) * GROUP
