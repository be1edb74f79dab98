"""Which processes of the tests are forked by `fork_server.py`, and which start as they do for users.

`install()` puts `start` in the place where the package starts its workers. Some workers start by
`python -m lowmem_if.engine.worker` even so, because forking would not give the same:
with an accelerator, on another system than Linux, with other variables that libraries read when they
are loaded, and in tests marked `worker(start="python")`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fork_client import ADDRESS, Forked, ForkServer, connection, disconnect, replace_start

from lowmem_if.engine.worker.environment import worker_environment
from lowmem_if.engine.worker_process import WORKER

SCRIPTS = tuple(str(Path(__file__).with_name(name)) for name in ("faulty_worker.py", "killable.py"))
WITHOUT_MARKER = (
    "this test starts a worker process: mark it with @pytest.mark.worker, or its module with "
    '"pytestmark = pytest.mark.worker", so that `make quick` leaves it out'
)

_server: ForkServer | None = None
_marker: pytest.Mark | None = None
_quick = False


def begin_session(config: pytest.Config) -> None:
    """Start the server for all test processes at once, before they exist."""
    if config.getoption("numprocesses", None) and not _is_quick(config) and sys.platform == "linux":
        start_server()


def start_server() -> None:
    """Start the server, if there is none."""
    global _server
    if ADDRESS not in os.environ:
        _server = ForkServer()


def end_server() -> None:
    """End the server, if this process has started one."""
    global _server
    disconnect()
    if _server is not None:
        _server.end()
    _server = None


def can_fork() -> bool:
    """Whether forked workers are the same as started ones here."""
    import torch

    return sys.platform == "linux" and not torch.cuda.is_available()


def begin_test(item: pytest.Item) -> None:
    """Note whether a test may start workers; one that may finds the server running."""
    global _marker, _quick
    _marker = item.get_closest_marker("worker")
    _quick = _is_quick(item.config)
    if _marker is not None and "start" not in _marker.kwargs and can_fork():
        start_server()
        connection()


def install() -> None:
    """From now on the package starts its workers by `start`."""
    replace_start(start)


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a worker in place of `subprocess.Popen`; stand-ins (`python -c`) start as they are.

    A test that lacks the marker fails in the quick lane, which it would slow down.
    """
    arguments = command[1:]
    if tuple(arguments) != WORKER and arguments[0] not in SCRIPTS:
        return subprocess.Popen(command, **options)
    return start_python(command, **options)


def start_python(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start any Python process that imports torch, as `start` does; its environment is a worker's."""
    options = {"env": worker_environment(os.environ)} | options
    if _marker is None and _quick:
        pytest.fail(WITHOUT_MARKER)
    real = _marker is not None and "start" in _marker.kwargs
    if real or not can_fork():
        return subprocess.Popen(command, **options)
    start_server()
    if not connection().knows(options["env"] or os.environ):
        return subprocess.Popen(command, **options)
    return Forked(command, **options)


def run_python(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with captured text, by `start_python`."""
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with start_python(command, **piped | options) as process:
        out, errors = process.communicate()
    return subprocess.CompletedProcess([*command], process.returncode, out, errors)


def _is_quick(config: pytest.Config) -> bool:
    return "not worker" in config.getoption("markexpr")
