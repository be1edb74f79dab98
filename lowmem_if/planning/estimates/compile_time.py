"""What `torch.compile` saves and takes: a UNet is compiled only where that pays for the steps to come.

How much quicker a compiled step is was published for IF's own UNets (diffusers' torch 2.0 benchmark,
one picture; of each group of cards the least is taken here): stage 1 went from 17.0 to 24.6 steps a
second on a T4 and from 69.1 to 124.6 on a 4090, stage 2 from 2.45 to 2.47 and, on a 3090, from 8.9 to
11.2. The upscaler was measured there with pictures too small; a Stable Diffusion UNet stands in for it.
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
"""For each shape of what a UNet draws: assumed; on two CPU cores the demo's stage 1 took 184 s."""


def speedup(machine: Machine, component: str) -> float:
    """How many times as fast a compiled step of a component is; 1: it gains nothing, or nobody knows."""
    if machine.kind == "cuda" and machine.capability < (7, 0):
        return 1.0  # Triton, which compiles for cards, wants 7.0
    group = "turing" if machine.kind == "cuda" and machine.capability == TURING else machine.kind
    return _SPEEDUPS.get(group, {}).get(component, 1.0)


def compile_seconds(device: str, jobs: Sequence[Workload], batch: int) -> float:
    """Once for every shape: each job has its own, and what is left over after full batches."""
    shapes = {
        (job.area, count)
        for job in jobs
        for count in (min(job.images, batch), job.images % batch)
        if count
    }
    return len(shapes) * COMPILE_S[device.partition(":")[0]]
