"""Writing into a run folder: the lock, and plain words for what the disk refuses."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowmem_if.errors import RunFolderError
from lowmem_if.system.file_operations import try_lock, unlock


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, an `OSError` becomes a `RunFolderError` that says why `path` cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            words = "the disk is full: free some space and continue with `lowmem-if resume`"
        else:
            words = f"it cannot be written ({error.strerror}): give --out another folder"
        raise RunFolderError(f"{path}: {words}") from error


@contextmanager
def lock(file: Path) -> Iterator[int]:
    """Hold the lock file of a run folder.

    Yields the descriptor that holds the lock: a process that inherits it holds the folder, too.

    Raises:
        RunFolderError: another run holds it, or it cannot be written.
    """
    with writing(file.parent):
        stream = file.open("a+b")
    with stream:
        if not try_lock(stream.fileno()):
            raise RunFolderError(f"{file.parent} is in use by another run: wait for it to end")
        try:
            yield stream.fileno()
        finally:
            unlock(stream.fileno())
