"""Processes that start in milliseconds: `fork_server.py` has imported for them what takes seconds.

`forked_workers.py` decides which processes of the tests start so. A notebook's kernel imports this
module alone, see `in_kernel`. One server serves all processes of a test run: `ADDRESS` names its socket.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lowmem_if.engine import worker_process
from lowmem_if.engine.worker.environment import worker_environment

ADDRESS = "LOWMEM_IF_TESTS_FORK_SERVER"
ROOT = str(Path(__file__).parents[2])
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
START_S = 120


class ForkServer:
    """The server process, from its start to its end; its address is in the environment meanwhile."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="fork-")  # a socket's path may not be long
        address = f"{self._folder}/server"
        script = str(Path(__file__).with_name("fork_server.py"))
        theirs, self._lifeline = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", script, address, str(theirs)],
            stdin=subprocess.DEVNULL, env=worker_environment(os.environ), pass_fds=[theirs],
        )  # fmt: skip
        os.close(theirs)
        os.environ[ADDRESS] = address

    def end(self) -> None:
        """End the server; its workers are not its children."""
        os.environ.pop(ADDRESS, None)
        os.close(self._lifeline)
        self._process.wait(timeout=30)
        shutil.rmtree(self._folder)


class Connection:
    """A connection to the server that `ADDRESS` names."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket = _connected(os.environ[ADDRESS])
        self._environment: dict[str, str] = json.loads(self._socket.recv(2**20))

    def fork(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        descriptors: Sequence[int],
    ) -> int:
        """Fork a worker with these standard descriptors and a pipe for its end; its process id."""
        request = {
            "arguments": [*map(str, arguments)], "environment": dict(environment), "folder": str(folder)
        }  # fmt: skip
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            return int(self._socket.recv(100))

    def knows(self, environment: Mapping[str, str]) -> bool:
        """Whether its libraries have read the same variables as a process of this environment would."""
        ours, theirs = (_read_when_loaded(each) for each in (environment, self._environment))
        return ours == theirs


class Forked(subprocess.Popen[Any]):
    """A process that the server forks, in everything else like any other child."""

    running: set[Forked] = set()  # noqa: RUF012  of this process
    cpu_s = 0.0
    """Seconds of CPU of all that have ended."""

    def _execute_child(  # what Popen calls to start the process, on every POSIX
        self, args: Any, executable: Any, preexec: Any, close: Any, passed: Any, cwd: Any, env: Any,
        startup: Any, flags: Any, shell: Any, p2cread: int, p2cwrite: int, c2pread: int,
        c2pwrite: int, errread: int, errwrite: int, *_rest: Any,
    ) -> None:  # fmt: skip
        given = zip((0, 1, 2), (p2cread, c2pwrite, errwrite), strict=True)
        standard = [number if descriptor == -1 else descriptor for number, descriptor in given]
        self._end, theirs = os.pipe()
        environment = os.environ if env is None else env
        self.pid = connection().fork(
            args[1:], environment, Path(cwd or Path.cwd()), [*standard, theirs]
        )
        os.close(theirs)
        self._child_created = True
        Forked.running.add(self)
        self._close_pipe_fds(  # type: ignore[attr-defined]
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite
        )

    def _internal_poll(self, *_given: Any, **_more: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                self._read_end(block=False)
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode

    def _try_wait(self, flags: int) -> tuple[int, int]:
        """What `os.waitpid` would return."""
        status = self._read_end(block=not flags & os.WNOHANG)
        return (0, 0) if status is None else (self.pid, status)

    def _read_end(self, *, block: bool) -> int | None:
        """Note how the process ended, when it has."""
        if not block and not select.select([self._end], [], [], 0)[0]:
            return None
        status, used = os.read(self._end, 100).split()
        os.close(self._end)
        Forked.running.discard(self)
        Forked.cpu_s += float(used)
        self.returncode = os.waitstatus_to_exitcode(int(status))
        return int(status)


_connection: Connection | None = None


def connection() -> Connection:
    """This process's connection, made when it is first needed."""
    global _connection
    if _connection is None:
        _connection = Connection()
    return _connection


def disconnect() -> None:
    """Forget the connection."""
    global _connection
    _connection = None


def in_kernel() -> None:
    """In a notebook's kernel: fork the workers that the package starts."""

    def start(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        return Forked(command, **options)

    replace_start(start)


def replace_start(start: Any) -> None:
    """From now on the package starts its workers by `start`."""
    replaced = ModuleType("subprocess")
    replaced.__dict__.update(subprocess.__dict__, Popen=start)
    worker_process.subprocess = replaced


def _connected(address: str) -> socket.socket:
    """A connection; it waits until the server has imported everything."""
    end = time.monotonic() + START_S
    while True:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            line.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            line.close()
            if time.monotonic() > end:
                raise AssertionError(
                    "the fork server has not started; its last words are above"
                ) from None
            time.sleep(0.05)
        else:
            return line


def _read_when_loaded(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_WHEN_LOADED)
        and name not in SET_BY_THE_SERVER
        and (name, value) != ("PYTHONPATH", ROOT)  # where the server finds the package, too
    }
