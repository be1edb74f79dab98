"""The identity of files: a digest of their content that does not read large files completely.

Small files are read completely. For large ones the digest covers the length, both ends and evenly spread
samples: another training run, revision or number type changes practically every sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lowmem_if.cascade.safetensors_header import unreadable

_WHOLE_BYTES = 32 * 2**20
_SAMPLES, _SAMPLE_BYTES = 64, 64 * 2**10


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """A hexadecimal digest of the contents of `files` and their paths below `root`.

    A file elsewhere counts by the names of its folder and its own: where it is does not matter.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            size = file.stat().st_size
            digest.update(f"{_name(file, root)}:{size}\n".encode())
            for piece in _pieces(file, size):
                digest.update(piece)
        except OSError as error:
            raise unreadable(file, error) from error
    return digest.hexdigest()


def _name(file: Path, root: Path) -> str:
    if file.is_relative_to(root):
        return file.relative_to(root).as_posix()
    return f"{file.parent.name}/{file.name}"


def _pieces(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        if size <= _WHOLE_BYTES:
            yield stream.read()
            return
        for k in range(_SAMPLES):
            stream.seek((size - _SAMPLE_BYTES) * k // (_SAMPLES - 1))
            yield stream.read(_SAMPLE_BYTES)
