"""Runs that are killed at a chosen event: this process's side of `killable.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from forked_workers import start

from lowmem_if.engine.worker.environment import worker_environment

KILLABLE = Path(__file__).with_name("killable.py")
NEVER = 10**6


def work_until(
    path: Path, last: int = NEVER, copies: Path | None = None
) -> tuple[int, list[tuple[str, str]]]:
    """Work on a run in a process that dies at its `last` event.

    Args:
        copies: gets a copy of the run folder at each event, named by the event's number.

    Returns:
        its exit code, and the (kind, component) of each event.
    """
    own = {"LOWMEM_IF_CACHE": f"{path}-cache"}
    more = [] if copies is None else [str(copies)]
    with start(
        [sys.executable, str(KILLABLE), str(path), str(last), *more],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        env=worker_environment(os.environ) | own,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
    return process.returncode, [(kind, component) for kind, component in events]
