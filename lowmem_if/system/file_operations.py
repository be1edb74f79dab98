"""Open, replace, lock and read files: the same results on every system."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PATIENCE_S = 1.0
"""For how long Windows may refuse a file that another program has open."""

_FIRST_WAIT_S = 0.01
_SEEKING = threading.Lock()
_T = TypeVar("_T")


def patiently(act: Callable[[], _T]) -> _T:
    """Call `act`; on Windows call it again for a second while it raises `PermissionError`.

    Virus scanners, indexers and readers open a file for some milliseconds. Meanwhile Windows does not
    permit replacing, renaming or deleting it. POSIX systems do, so there an error is final.
    """
    if sys.platform != "win32":
        return act()
    end, wait = time.monotonic() + PATIENCE_S, _FIRST_WAIT_S
    while True:
        try:
            return act()
        except PermissionError:
            if time.monotonic() + wait > end:
                raise
        time.sleep(wait)
        wait *= 2


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder; a file with the target's name is replaced."""
    patiently(lambda: source.replace(target))


def remove(file: Path) -> None:
    """Delete a file, if it exists."""
    patiently(lambda: file.unlink(missing_ok=True))


def remove_tree(folder: Path) -> None:
    """Delete a folder and everything in it."""
    patiently(lambda: shutil.rmtree(folder))


def read_at(descriptor: int, target: memoryview, offset: int) -> int:
    """Read bytes of a file from `offset` on into `target`; returns how many."""
    if sys.platform == "win32":
        with _SEEKING:  # there is no positioned read
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(target))
        target[: len(data)] = data
        return len(data)
    return os.preadv(descriptor, [target], offset)


def drop_cached(descriptor: int, offset: int = 0, size: int = 0) -> None:
    """Tell the system that these bytes will not be read again soon; size 0: to the end.

    Only Linux has such an advice. Elsewhere the pages remain cached until they are evicted.
    """
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def open_status(descriptor: int, path: Path) -> os.stat_result:
    """The status of a file that was just opened, for comparing with later readings of its path.

    On Windows `fstat` and `stat` may name the same file by different numbers (Python 3.12 reads them by
    different calls), so the path is used there: no program can replace the file while it is open.
    """
    return path.stat() if sys.platform == "win32" else os.fstat(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process, without waiting; False if another process holds the lock.

    The lock ends with the process, however it ends. On POSIX, a process that inherits the descriptor
    holds it, too.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)  # it locks from here on
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks (some network and cloud drives) is no reason not to run.
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True


def unlock(descriptor: int) -> None:
    """Release the lock before the descriptor is closed.

    Windows releases the lock of a closed file, but not at once. On POSIX closing is enough, and
    unlocking would take the lock from a worker that has inherited the descriptor.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        except OSError:
            return  # a file system without locks: there is none to release
