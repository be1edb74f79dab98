"""A process's own memory, as each system counts it."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from other_systems import On

from lowmem_if.system import process_memory
from lowmem_if.weights import memory_readings as torch_memory

ROOT = Path(__file__).parents[2]


def test_memory_is_the_private_commit_on_windows(on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped files are not in it, whatever of them is in memory."""
    on("win32", process_memory)
    info = SimpleNamespace(rss=900, vms=700)
    monkeypatch.setattr(
        process_memory,
        "psutil",
        SimpleNamespace(Process=lambda: SimpleNamespace(memory_info=lambda: info)),
    )
    assert process_memory.own_memory() == (700, 200)
    assert process_memory.advise(4096, 100, process_memory.DONT_NEED) == errno.ENOSYS
    monkeypatch.setattr(process_memory.ctypes, "CDLL", None)  # there is no libc to ask
    process_memory.trim_heap()


class LibSystem:
    """macOS's answer about a process; refuses with a code."""

    def __init__(self, code: int = 0) -> None:
        self.code = code

    def proc_pid_rusage(self, process: int, flavor: int, usage: Any) -> int:
        assert (process, flavor) == (os.getpid(), 0)
        if not self.code:
            usage._obj.phys_footprint, usage._obj.resident_size = 500, 800
        return self.code


def test_memory_is_the_physical_footprint_on_macos(on: On, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Apple's own layout of the answer; the resident set where there is no answer."""
    assert (
        process_memory._Usage.phys_footprint.offset == 16 + 7 * 8
    )  # uuid and seven numbers before it
    assert ctypes.sizeof(process_memory._Usage) == 16 + 10 * 8
    on("darwin", process_memory)
    monkeypatch.setattr(process_memory.ctypes, "CDLL", lambda name: LibSystem())
    assert process_memory.own_memory() == (500, 300)
    monkeypatch.setattr(process_memory.ctypes, "CDLL", lambda name: LibSystem(1))
    assert process_memory.own_memory()[0] > 10_000_000


def test_an_apple_gpus_memory_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metal's buffers are in the footprint; the cache is emptied by the call that every torch has."""
    emptied = []
    monkeypatch.setattr(torch_memory, "own_memory", lambda: (500, 0))
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 100)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 200)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: emptied.append("accelerator"))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    reading = torch_memory.release_memory("mps")
    assert (reading.ram_anon, reading.vram_allocated, reading.vram_used) == (300, 100, 200)
    assert emptied == ["mps"]


@pytest.mark.worker
def test_a_small_heap_returns_large_blocks_at_once() -> None:
    """In a process of its own, since the setting lasts: 8 MB below a block in use leave the heap."""
    code = """
import sys
import torch
from lowmem_if.system.process_memory import keep_heap_small, own_memory
for size in range(1, 30):  # glibc's threshold for mapped blocks follows what is freed
    torch.ones(size * 2**18)
if sys.argv[1] == "small":
    keep_heap_small()
blocks = [torch.ones(2 * 2**18) for _ in range(40)]
before = own_memory()[0]
del blocks[:-1]
print(before - own_memory()[0])
"""
    returned = {
        way: int(subprocess.run([sys.executable, "-c", code, way], capture_output=True, text=True,
                                check=True, cwd=ROOT).stdout)
        for way in ("small", "usual")
    }  # fmt: skip
    assert returned["small"] > 70_000_000
    assert returned["usual"] < 40_000_000
