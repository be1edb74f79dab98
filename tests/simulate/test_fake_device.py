"""The truth check: a dry run's bytes are those of a real run, and hold torch's own measurement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lowmem_if.cascade.catalog import DEMO
from lowmem_if.simulate.fake_device import dry_run
from lowmem_if.simulate.memory_tracker import ANONYMOUS, MemoryTracker
from lowmem_if.simulate.networks import Known, known_networks, prepared, resident, traced
from lowmem_if.simulate.tracing import Trace

SMALL = [known for known in known_networks() if known.cascade == DEMO]
SMALL_CHANGE = 4096
"""Bytes of numbers that torch makes for itself: seeds, single numbers as tensors."""

SIDES = {"unet": 64, "vae": 48}


def run_of(known: Known, device: str = "cpu") -> Any:
    side = SIDES.get(known.folder)
    module = resident(known.network, torch.float32, device)
    return prepared(known, module, batch=2, side=side)


class Bounding(Trace):
    """Also what a convolution could take at most inside: its input, weight and output once more."""

    most = 0

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        super()._count(func, args, kwargs, out)
        if func is torch.ops.aten.convolution.default:
            copies = sum(t.numel() * t.element_size() for t in (*args[:2], out))
            self.most = max(self.most, self.tracker.usage(ANONYMOUS).now + copies)


@pytest.mark.slow
@pytest.mark.parametrize("known", SMALL, ids=lambda known: known.network.folder)
def test_a_dry_run_takes_the_bytes_of_a_real_one(known: Known) -> None:
    """To the byte: the same tracker over real tensors, in float32 on the CPU, two pictures at once."""
    with dry_run(kernel="fused") as trace:
        simulated = traced(trace, ANONYMOUS, run_of(known))
    real = Trace(MemoryTracker())
    with torch.no_grad(), real:
        measured = traced(real, ANONYMOUS, run_of(known))
    assert simulated == measured
    assert measured.activation_bytes > 0


@pytest.mark.parametrize("known", SMALL, ids=lambda known: known.network.folder)
def test_torchs_own_measurement_lies_between_the_bounds(known: Known) -> None:
    """What torch's allocator reports is no less than the tracker saw, and no more than what
    convolutions could take inside on top of that (oneDNN copies weights and pictures)."""
    bounds = Bounding(MemoryTracker())
    with torch.no_grad(), bounds:
        run = run_of(known)
        before = bounds.tracker.usage(ANONYMOUS).now
        least = traced(bounds, ANONYMOUS, run).activation_bytes
    most = max(least, bounds.most - before)
    with (
        torch.no_grad(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        kept = run()
    del kept
    assert least <= profiled_peak(profiler) + SMALL_CHANGE <= most + 2 * SMALL_CHANGE


def profiled_peak(profiler: Any) -> int:
    """The most bytes that were allocated beyond those at the beginning."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
