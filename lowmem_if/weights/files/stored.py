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


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: the file's number in its checkpoint, its first byte, number type and shape."""

    file: int
    header: TensorHeader

    @property
    def dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.header.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.header.shape

    @property
    def size_bytes(self) -> int:
        return self.header.size_bytes
