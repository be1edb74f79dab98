"""A way from one process to its child, which can pass an open file along where the system can.

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
    """The parent's end. When it closes, or the parent dies, the child's end comes to its end.

    Attributes:
        far_end: the child's end, a descriptor; to be closed here once the child has it.
    """

    def __init__(self) -> None:
        if sys.platform == "win32":
            self.far_end, self._pipe = os.pipe()
        else:
            self._socket, far = socket.socketpair()
            self.far_end = far.detach()

    def send(self, line: bytes, descriptor: int | None = None) -> None:
        """Send a line, and a descriptor where that is possible; a child that is gone is no error."""
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
        """Let the child's end come to its end."""
        if sys.platform == "win32":
            os.close(self._pipe)
        else:
            self._socket.close()


def received(descriptor: int) -> Iterator[tuple[bytes, int | None]]:
    """The lines that come in at the child's end, each with the descriptor that came along."""
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
    """Move standard input to a descriptor of its own, which is returned; 0 reads nothing from now on.

    On Windows a library that asks for the standard handles while it is loaded waits for a thread that
    reads one of them, for ever if nothing comes (cpython issue 78961, numpy issue 24290). Everywhere
    else it keeps what libraries start from reading what is not theirs.
    """
    descriptor = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return descriptor


def says_closed(error: OSError) -> bool:
    """Whether writing failed because nobody reads any more: EINVAL is what Windows says then."""
    if isinstance(error, BrokenPipeError | ConnectionResetError):
        return True
    return sys.platform == "win32" and error.errno == errno.EINVAL and error.filename is None
