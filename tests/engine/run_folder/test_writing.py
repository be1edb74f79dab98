"""The lock of a run folder: kept from others, and given by dying processes in good time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lowmem_if.engine.run_folder import writing
from lowmem_if.engine.run_folder.writing import in_use, lock
from lowmem_if.errors import RunFolderError

HOLDS = """
import sys, time
from pathlib import Path
from lowmem_if.engine.run_folder.writing import lock
with lock(Path(sys.argv[1])) as descriptor:
    import os, subprocess
    if sys.argv[2] == "child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"], pass_fds=[descriptor])
    print("locked", flush=True)
    time.sleep(60)
"""


def holder(file: Path, child: str = "") -> subprocess.Popen[str]:
    """A process that has locked a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(file), child], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="locks are not inherited there")
def test_a_killed_processs_child_is_waited_for(tmp_path: Path) -> None:
    """The child holds the lock longer than a living process would be waited for."""
    process = holder(tmp_path / ".lock", "child")
    end(process)
    assert in_use(tmp_path / ".lock")
    began = time.monotonic()
    with lock(tmp_path / ".lock"):
        assert time.monotonic() - began > 0.5
    assert not in_use(tmp_path / ".lock")


def test_a_living_process_keeps_its_lock(tmp_path: Path) -> None:
    """The answer comes within a little more than a second."""
    process = holder(tmp_path / ".lock")
    began = time.monotonic()
    with pytest.raises(RunFolderError, match="in use by another run"), lock(tmp_path / ".lock"):
        pass
    assert time.monotonic() - began < 5
    assert in_use(tmp_path / ".lock")
    end(process)
    with lock(tmp_path / ".lock"):
        pass


def test_a_lock_that_nobody_signed_is_believed_to_be_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run folders of earlier versions have an empty lock file."""
    monkeypatch.setattr(writing, "PATIENCE_S", 0.0)
    with lock(tmp_path / ".lock"):
        (tmp_path / ".lock").write_bytes(b"")
        with pytest.raises(RunFolderError, match="in use"), lock(tmp_path / ".lock"):
            pass


def test_threads_that_start_processes_disturb_no_lock(tmp_path: Path) -> None:
    """A process that was just forked holds all descriptors until it runs its program."""
    stop = threading.Event()

    def start_processes() -> None:
        while not stop.is_set():
            subprocess.run([sys.executable, "-S", "-c", ""], check=True)

    other = threading.Thread(target=start_processes)
    other.start()
    try:
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            with lock(tmp_path / ".lock"):
                pass
    finally:
        stop.set()
        other.join()


def test_looking_at_a_folder_makes_no_lock(tmp_path: Path) -> None:
    """`runs` only reads."""
    assert not in_use(tmp_path / ".lock")
    assert not (tmp_path / ".lock").exists()
