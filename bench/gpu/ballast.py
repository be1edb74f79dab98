"""A process that holds a part of a card's memory, so that a large card is as full as a small one.

    python -m bench.gpu.ballast DEVICE LEAVE_BYTES

It takes all but LEAVE_BYTES of what is free and answers each line on its standard input with the bytes
that all processes hold on the card, its own context included. It ends when its input closes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from bench.gpu.setup import ROOT

_PIECE = 2**30


class Ballast:
    """A running ballast.

    Attributes:
        taken_bytes: of the card's memory, beside the context.
        free_bytes: left after that.
    """

    def __init__(self, process: subprocess.Popen[str] | None = None) -> None:
        self._process = process
        first = {"taken": 0, "free": 0} if process is None else json.loads(self._answer())
        self.taken_bytes, self.free_bytes = first["taken"], first["free"]

    def used_bytes(self) -> int:
        """Bytes that all processes hold on the card now; 0 without a card."""
        if self._process is None:
            return 0
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(json.loads(self._answer())["used"])

    def _answer(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the ballast has ended; the part's log says why")
        return line


@contextmanager
def holding(device: str, leave_bytes: float = sys.maxsize) -> Iterator[Ballast]:
    """Leave only so many bytes free on the card; the default takes nothing and only reads.

    On a CPU there is no ballast: the plan's own budget is all that is small there.
    """
    if device == "cpu":
        yield Ballast()
        return
    command = [sys.executable, "-m", "bench.gpu.ballast", device, str(int(leave_bytes))]
    pipe: Any = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Ballast(process)
        finally:
            process.kill()


def bytes_to_take(free_bytes: int, leave_bytes: int) -> int:
    """How much to allocate so that `leave_bytes` stay free; nothing where less is free anyway."""
    return max(0, free_bytes - leave_bytes)


def serve(lines: Iterable[str], answers: IO[str], memory: Callable[[], tuple[int, int]]) -> None:
    """Answer each line with what is in use; `memory` gives (free, total)."""
    for _line in lines:
        free, total = memory()
        answers.write(json.dumps({"used": total - free}) + "\n")
        answers.flush()


def main(device: str, leave: str) -> None:
    """Take memory, say how much, and answer until the input closes."""
    import torch

    def memory() -> tuple[int, int]:
        free, total = torch.accelerator.get_memory_info(device)
        return int(free), int(total)

    torch.ones(1, device=device)  # the context, before what is free is read
    todo, pieces = bytes_to_take(memory()[0], int(leave)), []
    taken = todo
    while todo:
        pieces.append(torch.empty(min(_PIECE, todo), dtype=torch.uint8, device=device))
        todo -= len(pieces[-1])
    sys.stdout.write(json.dumps({"taken": taken, "free": memory()[0]}) + "\n")
    sys.stdout.flush()
    serve(sys.stdin, sys.stdout, memory)


if __name__ == "__main__":
    main(*sys.argv[1:])
