"""Where a tensor is stored, and what its numbers are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowmem_if.cascade.safetensors_header import TensorHeader

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


CONVOLUTION_AXES = 4
"""The axes of a convolution's weight: output channels, input channels, height, width."""

CHANNELS_LAST = ":channels_last"
"""The end of the names, in our own copies, of convolutions' weights whose channels are last there."""

CODES, SCALES = ":int8", ":scales"
"""The ends of the names, in our own 8-bit copies, of a weight's whole numbers and its rows' scales."""


def inputs_last_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight with a convolution's input channels as its last axis."""
    if len(shape) != CONVOLUTION_AXES:
        return shape
    outer, inner, height, width = shape
    return outer, height, width, inner


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: the file's number in its checkpoint, its first byte, number type and shape.

    With `channels_last` the file has the axes (out, height, width, in), and `shape` is the usual one.
    `scales` are those of the rows, (out,), of a weight in our 8-bit copies.
    """

    file: int
    header: TensorHeader
    channels_last: bool = False
    scales: Stored | None = None

    @property
    def dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.header.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        if not self.channels_last:
            return self.header.shape
        outer, height, width, inner = self.header.shape
        return outer, inner, height, width

    def in_file_order(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the usual shape with the axes as they are in the file, as a view."""
        return tensor.permute(0, 2, 3, 1) if self.channels_last else tensor

    @property
    def size_bytes(self) -> int:
        return self.header.size_bytes
