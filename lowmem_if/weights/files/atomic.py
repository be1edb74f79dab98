"""Files and folders that are either there whole or not there at all, whatever kills the process."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowmem_if.system.file_operations import remove, remove_tree, replace

_PARTIAL = ".partial"


def write_bytes(file: Path, content: bytes) -> None:
    """Write beside `file`, then rename over it; on failure `file` is as it was before."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        replace(partial, file)
    finally:
        remove(partial)


def is_partial(file: Path) -> bool:
    """Whether a file is one that a killed writer left behind."""
    return file.name.startswith(".") and file.name.endswith(_PARTIAL)


def remove_partials(folder: Path) -> None:
    """Delete what killed writers left behind in a folder and below it."""
    for partial in folder.rglob(f".*{_PARTIAL}"):
        remove(partial)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, beside `folder`, which must not be there; it gets that name at the end.

    On failure nothing is left. Whoever could fill the same folder meanwhile must be kept out.
    """
    partial = folder.with_name(f".{folder.name}{_PARTIAL}")
    partial.mkdir()
    try:
        yield partial
        replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder: to others it is there whole or, from the first moment, not at all."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_PARTIAL}")
    replace(folder, partial)
    remove_tree(partial)


def remove_partial_folders(folder: Path) -> None:
    """Delete the half-filled and half-deleted folders that killed processes left in a folder."""
    for partial in folder.glob(f".*{_PARTIAL}"):
        remove_tree(partial)
