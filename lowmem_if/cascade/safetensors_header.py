"""Read the headers of safetensors files, without torch and without reading tensor bytes.

Format (huggingface/safetensors README): 8 bytes little-endian header length, a JSON object
name -> {dtype, shape, data_offsets}, then the tensor bytes without gaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lowmem_if.errors import CheckpointError
from lowmem_if.system.paths import right_to_read, too_long

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
TENSOR_NAME = "tensor"
"""The name of the only tensor in the files of a run folder."""

_MAX_HEADER_BYTES = 100_000_000
"""The reference implementation refuses longer headers."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of a file: `dtype` in safetensors' spelling, `shape`, and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    offset: int = 0

    @property
    def numbers(self) -> int:
        return prod(self.shape)

    @property
    def is_floating(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def read_headers(files: Iterable[Path]) -> dict[str, TensorHeader]:
    """The tensors of several files (the shards of one module), by name.

    Raises:
        CheckpointError: a file is missing, empty or truncated, or its header is not valid.
    """
    tensors: dict[str, TensorHeader] = {}
    for file in files:
        tensors.update(read_header(file))
    return tensors


def are_bfloat16(tensors: Iterable[TensorHeader]) -> bool:
    """Whether every tensor of floating-point numbers is bfloat16."""
    return all(tensor.dtype == "BF16" for tensor in tensors if tensor.is_floating)


def read_header(file: Path) -> dict[str, TensorHeader]:
    """The tensors of one safetensors file, by name; the file must be as long as they need."""
    return read_header_and_metadata(file)[0]


def read_header_and_metadata(file: Path) -> tuple[dict[str, TensorHeader], dict[str, str]]:
    """The tensors of one safetensors file, by name, and the metadata in its header."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            check_length(file, length, size)
            return parse_header(file, stream.read(length), size)
    except OSError as error:
        raise unreadable(file, error) from error


def check_length(file: Path, length: int, size: int) -> None:
    """Raise `CheckpointError` unless a file of `size` bytes can have a header of `length` bytes."""
    if size < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
        raise _broken(file, f"it is {size} bytes long and has no safetensors header")


def parse_header(
    file: Path, text: bytes, size: int
) -> tuple[dict[str, TensorHeader], dict[str, str]]:
    """The tensors and the metadata in a header, for a file of `size` bytes.

    Raises:
        CheckpointError: the header is not valid, or is not for a file of this size.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _broken(file, "its header is not a table of tensors")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _broken(file, "its metadata is not a table of texts")
    tensors = _checked(file, header, data_offset=8 + len(text), data_bytes=size - 8 - len(text))
    return tensors, metadata


def _checked(
    file: Path, header: dict[str, Any], *, data_offset: int, data_bytes: int
) -> dict[str, TensorHeader]:
    tensors = {}
    spans = []
    for name, entry in header.items():
        try:
            start, end = entry["data_offsets"]
            shape = tuple(map(int, entry["shape"]))
            tensor = TensorHeader(entry["dtype"], shape, end - start, data_offset + start)
            expected = tensor.numbers * ITEM_BYTES[tensor.dtype]
            sane = start >= 0 and all(side >= 0 for side in tensor.shape)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _broken(file, f"the header entry of {name!r} is not valid") from error
        if tensor.size_bytes != expected or not sane:
            raise _broken(file, f"{name!r} has {tensor.size_bytes} bytes instead of {expected}")
        if end > data_bytes:
            raise _broken(
                file, f"it is truncated: {name!r} ends {end - data_bytes} bytes after its end"
            )
        spans.append((start, end))
        tensors[name] = tensor
    _check_gapless(file, sorted(spans), data_bytes)
    return tensors


def _check_gapless(file: Path, spans: list[tuple[int, int]], data_bytes: int) -> None:
    """Check that tensors neither overlap nor leave gaps, which the format forbids."""
    reached = 0
    for start, end in spans:
        if start != reached:
            raise _broken(file, f"a tensor begins at byte {start} instead of {reached}")
        reached = end
    if reached != data_bytes:
        raise _broken(file, f"its tensors need {reached} bytes, and it has {data_bytes}")


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Why a file or folder cannot be read, and what to do."""
    if why := too_long(path):
        return CheckpointError(f"{path}: {why}")
    if isinstance(error, FileNotFoundError):
        return _broken(path, "it is missing")
    if isinstance(error, PermissionError):
        closed = (folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK))
        return CheckpointError(f"{next(closed, path)}: it may not be read; {right_to_read()}")
    return _broken(path, f"it cannot be read ({error.strerror})")


def _broken(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file}: {what}; fetch or copy the file again")
