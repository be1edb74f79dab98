"""Weights from files without reading them: only how much would be read, and where it would lie."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from threading import Condition
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import _disable_current_modes

from lowmem_if.simulate.fake_streams import HOST
from lowmem_if.simulate.memory_tracker import MAPPED
from lowmem_if.simulate.tracing import Trace
from lowmem_if.weights import loading
from lowmem_if.weights.files import tensor_reader
from lowmem_if.weights.files.checkpoint import Checkpoint, Stored
from lowmem_if.weights.files.tensor_reader import Reader
from lowmem_if.weights.modules import materialize, meta_init
from lowmem_if.weights.modules.meta_init import Slot
from lowmem_if.weights.streaming import streamer
from lowmem_if.weights.streaming.offload_groups import OffloadGroup
from lowmem_if.weights.streaming.streamer import Streamed

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
        trace.timeline.use(out, stream=HOST, writes=True)

    with contextlib.ExitStack() as patches:
        for owner, name, substitute in (
            (Checkpoint, "view", view),
            (Checkpoint, "drop_cache", lambda _checkpoint, _stored: None),
            (tensor_reader, "_bytes_of", lambda _flat: memoryview(b"")),
            (Reader, "read", read),
            (loading, "diffusers_skeleton", _real(meta_init.diffusers_skeleton)),
            (loading, "transformers_skeleton", _real(meta_init.transformers_skeleton)),
            (loading, "quantised_skeleton", _real(meta_init.quantised_skeleton)),
            (materialize, "_in_parallel", _one_by_one),
            (streamer, "threading", _NO_THREADS),
            (Streamed, "_wait_for", _bring_now),
        ):
            patches.enter_context(patch.object(owner, name, substitute))
        yield


def _real(build: Callable[..., Any]) -> Callable[..., Any]:
    """Skeletons are on the meta device anyway, and bitsandbytes' cannot be made of fake tensors."""

    def built(*args: Any) -> Any:
        with _disable_current_modes():
            return build(*args)

    return built


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


def _bring_now(streamed: Any, unit: OffloadGroup) -> None:
    """What the bringing thread would have done by now if reading took no time: all there is room for."""
    streamed._asked = unit
    while (wanted := streamed._wanted_now() or streamed._upcoming()) is not None:
        streamed._lane.bring(wanted)
        streamed._here.add(wanted)
    streamed._asked = None
