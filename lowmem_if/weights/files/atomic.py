"""Files and folders that exist completely or not at all, whatever kills the process."""

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
    """Write a partial file, then rename it to `file`; on failure `file` is unchanged."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        replace(partial, file)
    finally:
        remove(partial)


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A partial file to write; at the end it is renamed to `file`, on failure it is removed."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        replace(partial, file)
    finally:
        remove(partial)


def is_partial(file: Path) -> bool:
    """Whether a file is the partial file of a writer that was killed."""
    return file.name.startswith(".") and file.name.endswith(_PARTIAL)


def remove_partials(folder: Path) -> None:
    """Delete the partial files of killed writers in a folder and below it."""
    for partial in folder.rglob(f".*{_PARTIAL}"):
        remove(partial)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A partial folder to fill; at the end it is renamed to `folder`, which must not exist.

    On failure it is deleted. The caller makes sure that nothing else fills the same folder meanwhile.
    """
    partial = folder.with_name(f".{folder.name}{_PARTIAL}")
    partial.mkdir()
    try:
        yield partial
        replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder: other processes see all of it or, from the first moment, nothing."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_PARTIAL}")
    replace(folder, partial)
    remove_tree(partial)


def remove_partial_folders(folder: Path) -> None:
    """Delete the partial folders of killed processes in a folder."""
    for partial in folder.glob(f".*{_PARTIAL}"):
        remove_tree(partial)
