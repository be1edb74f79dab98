"""How a process ended, by its exit code, in words."""

from __future__ import annotations

import signal
from dataclasses import dataclass

_STATUSES = {
    0xC0000005: "access violation",
    0xC0000006: "a page could not be read",
    0xC0000017: "not enough memory",
    0xC000001D: "illegal instruction",
    0xC00000FD: "stack overflow",
    0xC000012D: "the page file is full",
    0xC0000135: "a DLL was not found",
    0xC000013A: "Ctrl-C",
    0xC0000142: "a DLL could not be started",
    0xC0000374: "heap corruption",
    0xC0000409: "abort",
}
"""Windows: the statuses that end a process (ntstatus.h)."""

_NO_MEMORY, _LOST_PAGE = (0xC0000017, 0xC000012D), 0xC0000006
_FIRST_ERROR = 0xC0000000


@dataclass(frozen=True, slots=True)
class Ending:
    """A process that its system ended.

    Attributes:
        words: the signal or status: `SIGSEGV`, or `0xC0000005 (access violation)`.
        of_memory: a sentence if it ended because memory ran out; else empty.
        of_lost_file: whether a mapped file became shorter or could not be read.
    """

    words: str
    of_memory: str = ""
    of_lost_file: bool = False


def ending(code: int) -> Ending | None:
    """The ending that an exit code of `subprocess` means; None if the program itself chose the code.

    A signal is negative (POSIX); a status of Windows has its two highest bits set.
    """
    if code < 0:
        return _by_signal(-code)
    if code < _FIRST_ERROR:
        return None
    name = _STATUSES.get(code)
    words = f"0x{code:08X} ({name})" if name else f"0x{code:08X}"
    short = f"Windows ended the worker: {words}" if code in _NO_MEMORY else ""
    return Ending(words, short, code == _LOST_PAGE)


def _by_signal(number: int) -> Ending:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    short = "the system killed the worker" if name == "SIGKILL" else ""
    return Ending(name, short, name == "SIGBUS")
