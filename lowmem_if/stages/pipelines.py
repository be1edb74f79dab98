"""What the stages share: placing a diffusers pipeline, seeding it, drawing, and letting go of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines import deepfloyd_if
from PIL import Image

from lowmem_if.cascade.strategies import MODEL_OFFLOAD, RESIDENT, SEQUENTIAL_OFFLOAD, STREAM
from lowmem_if.planning.plan import Step
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.sampling import Sampling
from lowmem_if.stages.compiling import compile_unet, forget_compiled
from lowmem_if.stages.finite import checked
from lowmem_if.stages.noise import float32_noise
from lowmem_if.stages.previews import Watching, watched
from lowmem_if.stages.style import styled
from lowmem_if.weights.loading import load_diffusers_model, stream_diffusers_model

OnStep = Callable[[int], None]
"""Called with the number of denoising steps done."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures that one call of a pipeline draws: of one mode, one strength and one shape.

    Attributes:
        images, masks: what the tasks begin with, upright RGB and grey; empty where they have none.
        on_step: called with the number of denoising steps done, of all tiles.
        style: embeddings (n, 77, width) of the styles to draw in, None for none.
        tile: side of the tiles that the user's own pictures are enlarged in, 0: whole.
        watching: who looks at the pictures in the making, if anybody does.
    """

    tasks: Sequence[ImageSpec]
    sampling: Sampling
    on_step: OnStep
    images: Sequence[Image.Image] = ()
    masks: Sequence[Image.Image] = ()
    tile: int = 0
    style: torch.Tensor | None = None
    watching: Watching | None = None

    @property
    def mode(self) -> str:
        return self.tasks[0].mode

    @property
    def seeds(self) -> list[int]:
        return [task.seed for task in self.tasks]


class DrawingStage:
    """A pipeline and its networks in memory, under the step's strategy; freed by `close()`."""

    def __init__(
        self, pipeline: Any, modules: list[torch.nn.Module], step: Step, streams: ExitStack
    ) -> None:
        self.modules = modules
        self._pipeline, self._streams = pipeline, streams.pop_all()
        self._others: dict[type[Any], Any] = {}
        self._step = step
        self._compiled = step.config.speedup > 1
        place(pipeline, step)
        if self._compiled:
            compile_unet(pipeline.unet)

    def _draw(self, batch: Batch, kind: type[Any], **inputs: Any) -> torch.Tensor:
        """The pictures as tensors on the CPU, one for each task, drawn by a pipeline of class `kind`."""
        pipeline = self._as(kind)
        watching = batch.watching if self.watchable else None
        style = nullcontext() if batch.style is None else styled(pipeline.unet, batch.style)
        watched_steps = watched(pipeline.scheduler, watching, self._look)
        with style, float32_noise(pipeline), watched_steps, checked(pipeline):
            pictures = pipeline(
                guidance_scale=batch.sampling.guidance_scale,
                # One CPU generator for each image, and noise in float32: a seed means the same picture
                # on every device, in every batch and number type.
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in batch.seeds],
                output_type="pt",
                callback=lambda index, _timestep, _picture: batch.on_step(index + 1),
                **schedule(batch.sampling),
                **inputs,
            ).images
        return pictures.cpu()

    def _as(self, kind: type[Any]) -> Any:
        """The stage's networks as another pipeline; they are loaded only once.

        Under model offload a pipeline sends back only what it has hooked itself. Its hooks replace those
        of the pipeline before, on the same networks.
        """
        if kind is type(self._pipeline):
            return self._pipeline
        if kind not in self._others:
            other = kind(**self._pipeline.components, requires_safety_checker=False)
            if self._step.config.strategy == MODEL_OFFLOAD:
                place(other, self._step)
            else:
                other.set_progress_bar_config(disable=True)
            self._others[kind] = other
        return self._others[kind]

    def _shape(self, task: ImageSpec) -> dict[str, int]:
        """The pipeline's arguments for a picture that is no square; none for a square."""
        width, height = task.proportions
        if width == height:
            return {}
        side = self._pipeline.unet.config.sample_size
        # As diffusers' img2img pipelines size a picture: its longer side in whole eights.
        longer = round(side / 8 * max(width, height) / min(width, height)) * 8
        return (
            {"width": longer, "height": side}
            if width > height
            else {"width": side, "height": longer}
        )

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
        self._pipeline, self._others, self.modules = None, {}, []
        if self._compiled:
            forget_compiled()


def take_unet(folder: Path, step: Step, streams: ExitStack) -> Any:
    """The UNet of a folder, in memory or streaming; what streams is closed with `streams`."""
    options: Any = {"dtype": step.config.storage_dtype, "device": loading_device(step)}
    # At 0 nothing is merged, so a bfloat16 copy of the weights may serve.
    options["lora"] = [one for one in step.lora if one.scale]
    if step.config.strategy != STREAM:
        return load_diffusers_model(folder, UNet2DConditionModel, **options)
    options["resident_bytes"] = step.config.resident_bytes
    streamed = stream_diffusers_model(folder, UNet2DConditionModel, **options)
    return streams.enter_context(streamed).module


def loading_device(step: Step) -> str:
    """Where weights are loaded to: offload strategies start from RAM."""
    return step.config.device if step.config.strategy in (RESIDENT, STREAM) else "cpu"


def place(pipeline: Any, step: Step) -> None:
    """Give the pipeline the step's strategy; its own progress bar stays silent."""
    pipeline.set_progress_bar_config(disable=True)
    if step.config.strategy == MODEL_OFFLOAD:
        pipeline.enable_model_cpu_offload(device=step.config.device)
    elif step.config.strategy == SEQUENTIAL_OFFLOAD:
        pipeline.enable_sequential_cpu_offload(device=step.config.device)


def let_go(pipeline: Any) -> None:
    """Take diffusers' and accelerate's hooks off, so that nothing holds the modules any more."""
    if pipeline is not None:
        pipeline.remove_all_hooks()


def schedule(sampling: Sampling) -> dict[str, Any]:
    """The pipeline arguments for the number or the list of timesteps, and how many of them are done."""
    strength = {} if sampling.strength is None else {"strength": sampling.strength}
    if sampling.timesteps:
        return strength | {"timesteps": getattr(deepfloyd_if, f"{sampling.timesteps}_timesteps")}
    return strength | {"num_inference_steps": sampling.steps}
