"""Write safetensors files piece by piece: their headers and names, and the disk that they need."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from lowmem_if.cascade.safetensors_header import ITEM_BYTES


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written; `dtype` as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def header_bytes(tensors: Iterable[NewTensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The safetensors header: length, then JSON padded to a multiple of eight bytes."""
    table, offset = {}, 0
    for tensor in tensors:
        end = offset + tensor.size_bytes
        table[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt", **(metadata or {})}, **table}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_bytes(tensors: tuple[NewTensor, ...]) -> int:
    """The size of the file with these tensors."""
    return len(header_bytes(tensors)) + sum(tensor.size_bytes for tensor in tensors)


def weight_file_names(stem: str, variant: str, count: int) -> tuple[str, ...]:
    """The names that the libraries give to the `count` weight files (shards) of a network.

    Args:
        stem: `model` (transformers) or `diffusion_pytorch_model` (diffusers).
        variant: as in `fp16`; empty for the plain files.
    """
    begin = f"{stem}.{variant}" if variant else stem
    if count == 1:
        return (f"{begin}.safetensors",)
    return tuple(f"{begin}-{k:05}-of-{count:05}.safetensors" for k in range(1, count + 1))


def index_file(
    stem: str, variant: str, files: Mapping[str, tuple[NewTensor, ...]]
) -> tuple[str, str]:
    """Name and content of the JSON file that says which shard holds which tensor."""
    tensors = [tensor for shard in files.values() for tensor in shard]
    index = {
        "metadata": {"total_size": sum(tensor.size_bytes for tensor in tensors)},
        "weight_map": {tensor.name: name for name, shard in files.items() for tensor in shard},
    }
    end = f".{variant}" if variant else ""
    return f"{stem}.safetensors.index{end}.json", json.dumps(index, indent=1)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk where a folder is, or would be made."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free
