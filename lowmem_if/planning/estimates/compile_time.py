"""Estimate what `torch.compile` saves and costs: a UNet is compiled only if that saves time in total.

The speedups are from diffusers' torch 2.0 benchmark of IF's own UNets, with one image. This module uses
the smallest speedup in each group of cards. Stage 1 rose from 17.0 to 24.6 steps per second on a T4, and
from 69.1 to 124.6 on a 4090. Stage 2 rose from 2.45 to 2.47 on a T4, and from 8.9 to 11.2 on a 3090. The
benchmark's images are too small for the upscaler, so the figures of a Stable Diffusion UNet are used.
"""

from __future__ import annotations

from collections.abc import Sequence

from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, UPSCALER
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.estimates.workload import Workload

TURING = (7, 5)
_SPEEDUPS = {
    "turing": {STAGE_1: 1.4, STAGE_2: 1.0, UPSCALER: 1.1},
    "cuda": {STAGE_1: 1.8, STAGE_2: 1.2, UPSCALER: 1.15},
    "cpu": {STAGE_1: 1.0, STAGE_2: 1.0, UPSCALER: 1.0},
}

COMPILE_S = {"cuda": 120.0, "cpu": 200.0}
"""Assumed seconds to compile a UNet for one input shape (the demo's stage 1 on two CPU cores: 184 s)."""


def speedup(machine: Machine, component: str) -> float:
    """Factor by which compiling makes a component's step faster; 1: no gain, or not known."""
    if machine.kind == "cuda" and machine.capability < (7, 0):
        return 1.0  # Triton, which compiles for cards, needs 7.0
    group = "turing" if machine.kind == "cuda" and machine.capability == TURING else machine.kind
    return _SPEEDUPS.get(group, {}).get(component, 1.0)


def compile_seconds(device: str, workloads: Sequence[Workload], batch: int) -> float:
    """Seconds to compile for every input shape: full batches and the last batch of each workload."""
    shapes = {
        (workload.area, count)
        for workload in workloads
        for count in (min(workload.images, batch), workload.images % batch)
        if count
    }
    return len(shapes) * COMPILE_S[device.partition(":")[0]]
