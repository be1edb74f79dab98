"""Writing into a run folder: the lock, and plain words for what the disk refuses.

The lock file holds the number of the process that locked it last. A worker that outlives a killed
process for some seconds, until its memory is free, still holds the lock: that is worth waiting for. So
is a process that another thread has just forked, which has all descriptors for some milliseconds.
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

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


PATIENCE_S = 1.0
"""For how long a lock is tried that a living process may hold."""

DYING_S = 15.0
"""For how long a lock is tried whose process was killed."""

_WAIT_S = 0.02


@contextmanager
def lock(file: Path) -> Iterator[int]:
    """Hold the lock file of a run folder.

    Yields the descriptor that holds the lock: a process that inherits it holds the folder, too.

    Raises:
        RunFolderError: another run holds it, also after some time, or it cannot be written.
    """
    with writing(file.parent):
        stream = file.open("a+b", buffering=0)
    with stream:
        if not _lock_patiently(stream):
            raise RunFolderError(f"{file.parent} is in use by another run: wait for it to end")
        try:
            _write_owner(stream)
            yield stream.fileno()
        finally:
            unlock(stream.fileno())


def in_use(file: Path) -> bool:
    """Whether a process holds the lock file of a run folder now; nothing is written."""
    try:
        stream = file.open("r+b", buffering=0)
    except OSError:  # there is none, or this user may not lock it
        return False
    with stream:
        if not try_lock(stream.fileno()):
            return True
        unlock(stream.fileno())
    return False


def _lock_patiently(stream: io.FileIO) -> bool:
    """Lock the file; False if another process holds it for longer than a dying one would."""
    began = time.monotonic()
    while not try_lock(stream.fileno()):
        waited = time.monotonic() - began
        if waited > DYING_S or (waited > PATIENCE_S and _owner_lives(stream)):
            return False
        time.sleep(_WAIT_S)
    return True


def _write_owner(stream: io.FileIO) -> None:
    """Note this process. A full disk is no reason not to lock."""
    with suppress(OSError):
        stream.truncate(0)
        stream.write(f" {os.getpid()}".encode())


def _owner_lives(stream: io.FileIO) -> bool:
    """Whether the process that locked the file is alive; True if none is noted."""
    try:
        stream.seek(1)  # Windows refuses to read the locked first byte
        return bool(psutil.pid_exists(int(stream.read())))
    except (OSError, ValueError):
        return True
