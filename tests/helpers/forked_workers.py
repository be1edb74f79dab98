"""Workers that start in milliseconds: `fork_server.py` has imported for them what takes seconds.

`install()` puts `start` in the place where the package starts its workers. Some workers start as they do
for users, by `python -m lowmem_if.engine.worker`, because forking would not give the same:
with an accelerator, on another system than Linux, with other variables that libraries read when they
are loaded, and in tests marked `worker(start="python")`.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lowmem_if.engine import worker_process
from lowmem_if.engine.worker.environment import worker_environment
from lowmem_if.engine.worker_process import WORKER

SCRIPTS = tuple(str(Path(__file__).with_name(name)) for name in ("faulty_worker.py", "killable.py"))
PR_SET_CHILD_SUBREAPER = 36
READ_WHEN_LOADED = (
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "MALLOC_",
    "LD_",
    "PYTHON",
    "HF_",
    "TORCH",
    "CUDA",
)
SET_BY_THE_SERVER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
WITHOUT_MARKER = (
    "this test starts a worker process: mark it with @pytest.mark.worker, or its module with "
    '"pytestmark = pytest.mark.worker", so that `make quick` leaves it out'
)


class ForkServer:
    """The server process, from its start to its end."""

    def __init__(self) -> None:
        self.environment = worker_environment(os.environ)
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = str(Path(__file__).with_name("fork_server.py"))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", script, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, env=self.environment, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        if self._socket.recv(100) != b"ready":
            raise AssertionError("the fork server has not started; its last words are above")

    def fork(
        self, arguments: Sequence[str], environment: Mapping[str, str], standard: Sequence[int]
    ) -> int:
        """Fork a worker, a child of this process; its process id."""
        request = {
            "arguments": [*arguments], "environment": dict(environment), "folder": str(Path.cwd())
        }  # fmt: skip
        with self._lock:
            _adopt(True)
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], standard)
                return int(self._socket.recv(100))
            finally:
                _adopt(False)

    def knows(self, environment: Mapping[str, str]) -> bool:
        """Whether its libraries have read the same variables as a process of this environment would."""
        read = (_read_when_loaded(each) for each in (environment, self.environment))
        return next(read) == next(read)

    def end(self) -> None:
        """End the server; its workers are not its children."""
        self._socket.close()
        self._process.wait(timeout=30)


class Forked(subprocess.Popen[Any]):
    """A process that the server forks, in everything else like any other child."""

    def _execute_child(  # what Popen calls to start the process, on every POSIX
        self, args: Any, executable: Any, preexec: Any, close: Any, passed: Any, cwd: Any, env: Any,
        startup: Any, flags: Any, shell: Any, p2cread: int, p2cwrite: int, c2pread: int,
        c2pwrite: int, errread: int, errwrite: int, *_rest: Any,
    ) -> None:  # fmt: skip
        given = zip((0, 1, 2), (p2cread, c2pwrite, errwrite), strict=True)
        standard = [number if descriptor == -1 else descriptor for number, descriptor in given]
        environment = os.environ if env is None else env
        self.pid = server().fork(args[1:], environment, standard)
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite
        )


_server: ForkServer | None = None
_marker: pytest.Mark | None = None
_quick = False


def server() -> ForkServer:
    """The server of this test process, started when it is first needed."""
    global _server
    if _server is None:
        _server = ForkServer()
    return _server


def end_server() -> None:
    """End the server, if there is one."""
    global _server
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
    _quick = "not worker" in item.config.getoption("markexpr")
    if _marker is not None and "start" not in _marker.kwargs and can_fork():
        server()


def install() -> None:
    """From now on the package starts its workers by `start`."""
    replaced = ModuleType("subprocess")
    replaced.__dict__.update(subprocess.__dict__, Popen=start)
    worker_process.subprocess = replaced


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a worker in place of `subprocess.Popen`; stand-ins (`python -c`) start as they are.

    A test that lacks the marker fails in the quick lane, which it would slow down.
    """
    arguments = command[1:]
    if tuple(arguments) != WORKER and arguments[0] not in SCRIPTS:
        return subprocess.Popen(command, **options)
    if _marker is None and _quick:
        pytest.fail(WITHOUT_MARKER)
    environment = options.get("env") or os.environ
    real = _marker is not None and "start" in _marker.kwargs
    if real or not can_fork() or not server().knows(environment):
        return subprocess.Popen(command, **options)
    return Forked(command, **options)


def _read_when_loaded(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_WHEN_LOADED) and name not in SET_BY_THE_SERVER
    }


def _adopt(whether: bool) -> None:
    """Let orphans among this process's descendants become its children, or no longer."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, int(whether), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
