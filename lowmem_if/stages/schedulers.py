"""The noise scheduler of a stage, as its checkpoint has it or as the request changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DPMSolverMultistepScheduler

from lowmem_if.planning.plan import Step
from lowmem_if.request.noise_scheduler import DPM_SOLVER
from lowmem_if.weights.loading import load_scheduler

_LAMBDA_MIN = -5.1
"""Where the solver stops looking at the noisy end of a cosine schedule, whose logarithm has none there;
IF's own configurations carry it."""


def baked_in(step: Step) -> tuple[object, ...]:
    """What of a step's samplings is made into its scheduler once; the rest is said at every drawing."""
    sampling = step.sampling
    return () if sampling is None else (sampling.scheduler, sampling.thresholding)


def stage_scheduler(folder: Path, step: Step) -> Any:
    """The scheduler in `folder`, as the step's sampling has it: in every mode the same."""
    scheduler, sampling = load_scheduler(folder), step.sampling
    assert sampling is not None
    if sampling.thresholding is not None:
        names = ("dynamic_thresholding_ratio", "sample_max_value")
        own = dict(zip(names, sampling.thresholding, strict=False))
        scheduler = type(scheduler).from_config(scheduler.config, thresholding=True, **own)
    if sampling.scheduler != DPM_SOLVER:
        return scheduler
    # It keeps `variance_type` and takes the noise's channels apart from the variance's by itself.
    least = scheduler.config.get("lambda_min_clipped", _LAMBDA_MIN)
    return DPMSolverMultistepScheduler.from_config(scheduler.config, lambda_min_clipped=least)
