"""Workers that are killed at a chosen event: this process's side of `killable.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NEVER = 10**6


class Killable:
    """Workers that die when they are told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def work(self, path: Path, last: int = NEVER) -> tuple[int, list[tuple[str, str]]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path} {last}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer["code"], [(kind, component) for kind, component in answer["events"]]


@contextmanager
def killable_workers() -> Iterator[Killable]:
    """A process that forks such workers."""
    script = Path(__file__).with_name("killable.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        # One thread: a fork has no use for its parent's.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        yield Killable(process)
        assert process.stdin is not None
        process.stdin.close()
