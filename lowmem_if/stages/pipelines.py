"""What the stages share: placing a diffusers pipeline, seeding it, drawing, and letting go of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines import deepfloyd_if

from lowmem_if.planning.plan import Step
from lowmem_if.planning.request import Sampling
from lowmem_if.planning.strategies import MODEL_OFFLOAD, RESIDENT, SEQUENTIAL_OFFLOAD, STREAM
from lowmem_if.stages.previews import Watching, watched
from lowmem_if.weights.loading import load_diffusers_model, stream_diffusers_model

OnStep = Callable[[int], None]
"""Called with the number of denoising steps done."""


class DrawingStage:
    """A pipeline and its networks in memory, under the step's strategy; freed by `close()`."""

    def __init__(
        self, pipeline: Any, modules: list[torch.nn.Module], step: Step, streams: ExitStack
    ) -> None:
        assert step.sampling is not None
        self.modules = modules
        self.watching: Watching | None = None
        self._pipeline, self._streams = pipeline, streams.pop_all()
        self._sampling = step.sampling
        place(pipeline, step)

    def _draw(self, seeds: Sequence[int], on_step: OnStep, **inputs: Any) -> torch.Tensor:
        """The pipeline's pictures as tensors on the CPU, one for each seed."""
        with watched(self._pipeline.scheduler, self.watching, self._look):
            pictures = self._pipeline(
                guidance_scale=self._sampling.guidance_scale,
                # One CPU generator an image: seeds mean the same on every device and in every batch.
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="pt",
                callback=lambda index, _timestep, _picture: on_step(index + 1),
                **schedule(self._sampling),
                **inputs,
            ).images
        return pictures.cpu()

    @property
    def watchable(self) -> bool:
        """Whether pictures in the making can be looked at."""
        return True

    def _look(self, guess: torch.Tensor) -> torch.Tensor:
        """What a step's guess, in about [-1, 1], looks like in [0, 1]."""
        return (guess / 2 + 0.5).clamp(0, 1)

    def close(self) -> None:
        let_go(self._pipeline)
        self._streams.close()
        self._pipeline, self.modules = None, []


def take_unet(folder: Path, step: Step, streams: ExitStack) -> Any:
    """The UNet of a folder, in memory or streaming; what streams is closed with `streams`."""
    options: Any = {"dtype": step.storage_dtype, "device": loading_device(step)}
    if step.strategy != STREAM:
        return load_diffusers_model(folder, UNet2DConditionModel, **options)
    options["resident_bytes"] = step.resident_bytes
    streamed = stream_diffusers_model(folder, UNet2DConditionModel, **options)
    return streams.enter_context(streamed).module


def loading_device(step: Step) -> str:
    """Where weights are loaded to: offload strategies start from RAM."""
    return step.device if step.strategy in (RESIDENT, STREAM) else "cpu"


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


def schedule(sampling: Sampling) -> dict[str, Any]:
    """The pipeline arguments for the number or the list of timesteps."""
    if sampling.timesteps:
        return {"timesteps": getattr(deepfloyd_if, f"{sampling.timesteps}_timesteps")}
    return {"num_inference_steps": sampling.steps}
