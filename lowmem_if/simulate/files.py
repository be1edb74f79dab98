"""Weights from files without reading them: only how much would be read, and where it would lie."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from threading import Condition
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import accelerate
import torch

from lowmem_if.simulate.ledger import MAPPED, UNTOUCHED
from lowmem_if.simulate.tracing import Trace
from lowmem_if.weights import filling, reading, skeletons, streaming
from lowmem_if.weights.checkpoint import Checkpoint, Stored
from lowmem_if.weights.reading import Reader
from lowmem_if.weights.skeletons import Slot
from lowmem_if.weights.streaming import Streamed
from lowmem_if.weights.units import Unit

FILE = "file"
"""Where bytes come from that are read, in `Trace.moved`."""


@contextlib.contextmanager
def unread_files(trace: Trace) -> Iterator[None]:
    """Inside, checkpoints give fake weights; loaders and streams work on the calling thread, in turn."""

    def view(_checkpoint: Checkpoint, stored: Stored) -> torch.Tensor:
        with trace.ledger.entering(MAPPED):
            return torch.empty(stored.shape, dtype=stored.dtype)

    def read(_reader: Reader, stored: Stored, out: torch.Tensor, _first: int = 0) -> None:
        trace.moved[FILE, "cpu"] += out.numel() * stored.dtype.itemsize

    @contextlib.contextmanager
    def init_empty_weights() -> Iterator[None]:
        # The libraries make each weight and leave it at once, untouched: no page of it is ever there.
        with trace.ledger.entering(UNTOUCHED), accelerate.init_empty_weights():
            yield

    with contextlib.ExitStack() as patches:
        for owner, name, substitute in (
            (Checkpoint, "view", view),
            (Checkpoint, "drop_cache", lambda _checkpoint, _stored: None),
            (reading, "_bytes_of", lambda _flat: memoryview(b"")),
            (Reader, "read", read),
            (skeletons, "init_empty_weights", init_empty_weights),
            (filling, "_in_parallel", _one_by_one),
            (streaming, "threading", _NO_THREADS),
            (Streamed, "_wait_for", _bring_now),
        ):
            patches.enter_context(patch.object(owner, name, substitute))
        yield


def _one_by_one(act: Callable[[Slot], None], todo: list[Slot], _threads: int) -> None:
    for slot in todo:
        act(slot)


class _NeverStarted:
    """A thread that does nothing: what it would do is done when it is waited for."""

    def __init__(self, **_options: Any) -> None:
        pass

    def start(self) -> None:
        """Leave all work to `_bring_now`."""

    def is_alive(self) -> bool:
        return False


_NO_THREADS = SimpleNamespace(Condition=Condition, Thread=_NeverStarted)


def _bring_now(streamed: Any, unit: Unit) -> None:
    """What the bringing thread would have done by now if reading took no time: all there is room for."""
    streamed._asked = unit
    while (wanted := streamed._wanted_now() or streamed._upcoming()) is not None:
        streamed._lane.bring(wanted)
        streamed._here.add(wanted)
    streamed._asked = None
