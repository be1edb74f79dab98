"""This process's own memory as the system counts it, and advice about its pages."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from pathlib import Path

import psutil

DONT_NEED, POPULATE_READ = 4, 22
"""Numbers of Linux's `madvise`. The second is new in 5.14: it reads the pages now, and a
missing page is an error, not a SIGBUS."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's `mallopt`."""

_LARGE_BLOCK_BYTES = 2**20


class _Usage(ctypes.Structure):
    """macOS's `struct rusage_info_v0` (bsd/sys/resource.h of xnu)."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("times_wakeups_pageins", ctypes.c_uint64 * 5),
        ("wired_size", ctypes.c_uint64),
        ("resident_size", ctypes.c_uint64),
        ("phys_footprint", ctypes.c_uint64),
        ("start_and_exit", ctypes.c_uint64 * 2),
    )


def own_memory() -> tuple[int, int]:
    """(own, file) bytes: memory of this process alone, and pages of mapped files in memory.

    Linux: RssAnon and RssFile. Windows: the private commit, which is limited even if some of it was
    paged out. macOS: the physical footprint, which Activity Monitor shows as Memory; it includes
    compressed pages and what Metal has allocated. Elsewhere the resident set counts as own.
    """
    if sys.platform == "linux":
        return _linux_memory()
    if sys.platform == "win32":
        info = psutil.Process().memory_info()
        # vms is the private commit there; `private`, the same number, is deprecated since psutil 8.
        return info.vms, max(0, info.rss - info.vms)
    if sys.platform == "darwin" and (usage := _mac_usage()):
        own = int(usage.phys_footprint)
        return own, max(0, int(usage.resident_size) - own)
    return psutil.Process().memory_info().rss, 0


def trim_heap() -> None:
    """Return freed memory to the system; glibc keeps it until `malloc_trim` is called."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl has none
            libc.malloc_trim(0)


def keep_heap_small() -> None:
    """Let large blocks leave the heap as soon as they are freed, from now on in this process.

    glibc raises the size from which it maps blocks on their own, up to 32 MB, and keeps smaller ones in
    the heap. In a process of its own the worker sets the same by environment variables. An opened stage
    1 of I-M that streamed with 0.85 GB predicted needed 1.05 GB before, and 0.75 GB after (docs/log.md).
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
                libc.mallopt(parameter, _LARGE_BLOCK_BYTES)


def advise(address: int, size: int, advice: int) -> int:
    """Call Linux's `madvise` for all pages of some memory; 0, or why it was refused (errno).

    It is called by ctypes, which lets other threads run meanwhile; Python's own `mmap.madvise` does not.
    On other systems the result is ENOSYS.
    """
    if sys.platform != "linux":
        return errno.ENOSYS
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    size += address - start
    done = libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_int(advice))
    return ctypes.get_errno() if done else 0


def _linux_memory() -> tuple[int, int]:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return psutil.Process().memory_info().rss, 0
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return 1024 * int(kilobytes.get("RssAnon", 0)), 1024 * int(kilobytes.get("RssFile", 0))


def _mac_usage() -> _Usage | None:
    """What macOS reports about this process; None if it reports nothing."""
    usage = _Usage()
    refused = ctypes.CDLL(None).proc_pid_rusage(os.getpid(), 0, ctypes.byref(usage))
    return None if refused else usage
