"""One tensor in one safetensors file, with a few words of metadata; written atomically."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lowmem_if.errors import CheckpointError
from lowmem_if.planning.headers import read_header
from lowmem_if.weights.atomic import write_bytes

_NAME = "tensor"


def save_tensor(file: Path, tensor: torch.Tensor, **metadata: str) -> None:
    """Write `tensor` (any device) with `metadata`."""
    content = {_NAME: tensor.detach().contiguous().cpu()}
    write_bytes(file, save(content, metadata=metadata))


def load_tensor(file: Path, **expected: str) -> torch.Tensor | None:
    """The tensor on the CPU; None if there is no sound file with the `expected` metadata."""
    try:
        read_header(file)
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            if any(metadata.get(key) != value for key, value in expected.items()):
                return None
            tensor: torch.Tensor = content.get_tensor(_NAME)
            return tensor
    except (CheckpointError, SafetensorError, OSError):
        return None
