"""The worker with a fault in it: python faulty_worker.py FAULT COUNTER.

COUNTER is a file that grows by a byte a start, so that tests see how often a worker was started.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lowmem_if.engine.worker import command_loop, executor
from lowmem_if.stages.stage_1 import Stage1
from lowmem_if.stages.stage_2 import Stage2
from lowmem_if.stages.upscaler import Upscaler
from lowmem_if.weights.allocator import SegmentsFail


def put(cls: type, method: str, by: Callable[..., Any]) -> None:
    """Replace a method that is there."""
    assert callable(getattr(cls, method))
    setattr(cls, method, by)


def out_of_memory_unless_in_strips() -> None:
    """The upscaler runs out of memory until its VAE decodes in strips."""
    draw = Upscaler.run

    def limited(self: Any, *args: Any) -> torch.Tensor:
        if self._step.config.decoding == "whole":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
        return draw(self, *args)

    put(Upscaler, "run", limited)


def out_of_memory_always() -> None:
    """Stage 1 runs out of memory whatever is tried."""

    def fail(self: Any, *args: Any) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    put(Stage1, "run", fail)


def out_of_memory_beside_stage_1() -> None:
    """Stage 2 runs out of memory while stage 1 is loaded."""
    draw, loaded, close = Stage2.run, Stage1.__init__, Stage1.close
    here = set()

    def load(self: Any, *args: Any) -> None:
        loaded(self, *args)
        here.add(id(self))

    def leave(self: Any) -> None:
        here.discard(id(self))
        close(self)

    def limited(self: Any, *args: Any) -> torch.Tensor:
        if here:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")
        return draw(self, *args)

    put(Stage1, "__init__", load)
    put(Stage1, "close", leave)
    put(Stage2, "run", limited)


def killed_in_the_second_run() -> None:
    """The kernel kills the first process when it draws in stage 1 once more."""
    if Path(sys.argv[2]).stat().st_size > 1:
        return
    draw, runs = Stage1.run, []

    def limited(self: Any, *args: Any) -> torch.Tensor:
        runs.append(1)
        if len(runs) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(self, *args)

    put(Stage1, "run", limited)


def killed_in_stage_1() -> None:
    """The kernel kills the process in stage 1."""
    put(Stage1, "run", lambda self, *args: os.kill(os.getpid(), signal.SIGKILL))


def killed_in_stage_1_at_first() -> None:
    """The kernel kills the first process in stage 1, and no other."""
    if Path(sys.argv[2]).stat().st_size == 1:
        killed_in_stage_1()


def killed_at_the_first_start() -> None:
    """The kernel kills the first process before it does anything."""
    if Path(sys.argv[2]).stat().st_size == 1:
        killed_at_every_start()


def killed_at_every_start() -> None:
    """The kernel kills every process before it does anything."""
    os.kill(os.getpid(), signal.SIGKILL)


def bitsandbytes_exits_at_first() -> None:
    """bitsandbytes finds no memory in stage 1 of the first process, and ends it from C++."""
    if Path(sys.argv[2]).stat().st_size > 1:
        return

    def end(self: Any, *args: Any) -> torch.Tensor:
        os.write(2, b"Error out of memory at line 341 in file /src/csrc/ops.cu\n")
        os._exit(1)

    put(Stage1, "run", end)


def segments_fail() -> None:
    """The driver refuses torch's expandable segments, if they are set."""

    def refused(device: str, environment: Mapping[str, str] = os.environ) -> None:
        if "expandable_segments:True" in os.environ.get("PYTORCH_ALLOC_CONF", ""):
            raise SegmentsFail("CUDA driver error: unknown error")

    executor.try_segments = refused


def touches_a_lost_page() -> None:
    """A mapped file has become shorter, and stage 1 reads where it ended."""
    put(Stage1, "run", lambda self, *args: os.kill(os.getpid(), signal.SIGBUS))


def bug() -> None:
    """Something of ours is wrong."""

    def fail(self: Any, *args: Any) -> torch.Tensor:
        raise ZeroDivisionError("a fault made for a test")

    put(Stage1, "run", fail)


def waits() -> None:
    """Stage 1 never ends."""
    put(Stage1, "run", lambda self, *args: time.sleep(600))


if __name__ == "__main__":
    fault, counter = sys.argv[1], Path(sys.argv[2])
    with counter.open("a") as stream:
        stream.write("x")
    globals()[fault]()
    command_loop.main()
