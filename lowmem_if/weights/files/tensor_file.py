"""One tensor in one safetensors file, with some metadata."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lowmem_if.cascade.safetensors_header import TENSOR_NAME, read_header
from lowmem_if.errors import CheckpointError


def tensor_bytes(tensor: torch.Tensor, **metadata: str) -> bytes:
    """The content of a safetensors file that holds `tensor` (from any device) and `metadata`."""
    content: bytes = save({TENSOR_NAME: tensor.detach().contiguous().cpu()}, metadata=metadata)
    return content


def is_sound(file: Path) -> bool:
    """Whether the file holds a tensor for `load_tensor`, by its header and its length."""
    try:
        return TENSOR_NAME in read_header(file)
    except CheckpointError:
        return False


def load_tensor(file: Path, **expected: str) -> torch.Tensor | None:
    """The tensor on the CPU; None if there is no sound file with the `expected` metadata."""
    try:
        read_header(file)
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            if any(metadata.get(key) != value for key, value in expected.items()):
                return None
            tensor: torch.Tensor = content.get_tensor(TENSOR_NAME)
            return tensor
    except (CheckpointError, SafetensorError, OSError):
        return None
