"""A channel from a process to its child, which can pass open files where the system permits it.

POSIX: a socket pair. Windows: a pipe, which passes no files.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from collections.abc import Iterator

_LINE_BYTES = 2**16


class Channel:
    """The parent's end. When it is closed, or the parent ends, the child reads the end of the channel.

    Attributes:
        far_end: the child's end, a descriptor; the parent closes it once the child has it.
    """

    def __init__(self) -> None:
        if sys.platform == "win32":
            self.far_end, self._pipe = os.pipe()
        else:
            self._socket, far = socket.socketpair()
            self.far_end = far.detach()

    def send(self, line: bytes, descriptor: int | None = None) -> None:
        """Send a line, and a descriptor where that is possible; no error if the child has ended."""
        try:
            self._send(line, descriptor)
        except OSError as error:
            if not says_closed(error):
                raise

    def _send(self, line: bytes, descriptor: int | None) -> None:
        if sys.platform == "win32":
            while line:
                line = line[os.write(self._pipe, line) :]
        elif descriptor is None:
            self._socket.sendall(line)
        else:
            sent = socket.send_fds(self._socket, [line], [descriptor])
            self._socket.sendall(line[sent:])

    def close(self) -> None:
        """Close the channel: the child reads its end."""
        if sys.platform == "win32":
            os.close(self._pipe)
        else:
            self._socket.close()


def received(descriptor: int) -> Iterator[tuple[bytes, int | None]]:
    """The lines that arrive at the child's end, each with the descriptor sent with it."""
    if sys.platform == "win32" or not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        with open(descriptor, "rb", closefd=False) as lines:
            yield from ((line, None) for line in lines)
        return
    with socket.socket(fileno=os.dup(descriptor)) as line_in:
        while True:
            line = b""
            passed: list[int] = []
            while not line.endswith(b"\n"):
                part, more, _flags, _address = socket.recv_fds(line_in, _LINE_BYTES, 1)
                if not part:
                    return
                line, passed = line + part, passed + more
            yield line, next(iter(passed), None)


def take_input() -> int:
    """Move standard input to another descriptor, which is returned; descriptor 0 is empty from now on.

    On Windows a library that requests the standard handles while it is loaded waits for a thread that
    reads one of them, for ever if nothing arrives (cpython issue 78961, numpy issue 24290). On all
    systems it prevents processes that libraries start from reading our input.
    """
    descriptor = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return descriptor


def says_closed(error: OSError) -> bool:
    """Whether writing failed because the reader has closed its end; Windows reports EINVAL then."""
    if isinstance(error, BrokenPipeError | ConnectionResetError):
        return True
    return sys.platform == "win32" and error.errno == errno.EINVAL and error.filename is None
