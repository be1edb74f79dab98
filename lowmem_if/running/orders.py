"""What a worker is told through its standard input: an order a line, with the lock of its run folder.

The lock is a descriptor, which a socket can pass on: as long as anybody may still write, our worker too
if we are killed, nobody else gets the folder. A pipe (Windows) cannot; there the lock is ours alone.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

_LINE_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Order:
    """Work on the run in `folder`, or without one: let go of all that stays loaded.

    Attributes:
        directory: that paths are relative to; empty: where the worker is.
        preview_every: steps after which pictures in the making are written; 0: never.
        keeps: whether components stay loaded afterwards.
        alone: components that nothing else may stay loaded beside.
    """

    folder: str = ""
    directory: str = ""
    preview_every: int = 0
    keeps: bool = False
    alone: tuple[str, ...] = ()

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def from_line(line: str) -> Order:
        content = json.loads(line)
        return Order(**content | {"alone": tuple(content["alone"])})


class OrderLine:
    """The way to one worker. When it closes, or this process dies, the worker leaves.

    Attributes:
        far_end: the worker's standard input; to be closed here once the worker has it.
    """

    def __init__(self) -> None:
        if sys.platform == "win32":
            self.far_end, self._pipe = os.pipe()
        else:
            self._socket, far = socket.socketpair()
            self.far_end = far.detach()

    def give(self, order: Order, lock: int | None = None) -> None:
        """Tell the worker what to do; one that is gone hears nothing, and its silence is the answer."""
        line = order.to_line().encode()
        with suppress(BrokenPipeError, ConnectionResetError):
            if sys.platform == "win32":
                os.write(self._pipe, line)
            elif lock is None:
                self._socket.sendall(line)
            else:
                sent = socket.send_fds(self._socket, [line], [lock])
                self._socket.sendall(line[sent:])

    def close(self) -> None:
        """Send the worker away."""
        if sys.platform == "win32":
            os.close(self._pipe)
        else:
            self._socket.close()


def received(descriptor: int) -> Iterator[tuple[Order, int | None]]:
    """The orders that come in, each with its lock's descriptor, until whoever gives them is gone."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        with open(descriptor, encoding="utf-8", closefd=False) as lines:
            yield from ((Order.from_line(line), None) for line in lines)
        return
    with socket.socket(fileno=os.dup(descriptor)) as line_in:
        while True:
            line = b""
            locks: list[int] = []
            while not line.endswith(b"\n"):
                part, passed, _flags, _address = socket.recv_fds(line_in, _LINE_BYTES, 1)
                if not part:
                    return
                line, locks = line + part, locks + passed
            yield Order.from_line(line.decode()), next(iter(locks), None)
