"""What the drawing stages share: placing a diffusers pipeline, seeding it, and letting go of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.pipelines import deepfloyd_if

from lowmem_if.planning.plan import Step
from lowmem_if.planning.request import Sampling
from lowmem_if.planning.strategies import MODEL_OFFLOAD, RESIDENT, SEQUENTIAL_OFFLOAD

OnStep = Callable[[int], None]
"""Called with the number of denoising steps done."""


def loading_device(step: Step) -> str:
    """Where weights are loaded to: offload strategies start from RAM."""
    return step.device if step.strategy == RESIDENT else "cpu"


def place(pipeline: Any, step: Step) -> None:
    """Give the pipeline the step's strategy; its own progress bar stays silent."""
    pipeline.set_progress_bar_config(disable=True)
    if step.strategy == MODEL_OFFLOAD:
        pipeline.enable_model_cpu_offload(device=step.device)
    elif step.strategy == SEQUENTIAL_OFFLOAD:
        pipeline.enable_sequential_cpu_offload(device=step.device)


def let_go(pipeline: Any) -> None:
    """Take diffusers' and accelerate's hooks off, so that nothing holds the modules any more."""
    if pipeline is not None:
        pipeline.remove_all_hooks()


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator for each image: seeds mean the same on every device and in every batch."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def schedule(sampling: Sampling) -> dict[str, Any]:
    """The pipeline arguments for the number or the list of timesteps."""
    if sampling.timesteps:
        return {"timesteps": getattr(deepfloyd_if, f"{sampling.timesteps}_timesteps")}
    return {"num_inference_steps": sampling.steps}


def step_callback(on_step: OnStep) -> Callable[..., None]:
    """diffusers' callback protocol: called with index, timestep and picture after each step."""
    return lambda index, _timestep, _picture: on_step(index + 1)
