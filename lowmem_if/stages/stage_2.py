"""Stage 2: the UNet that enlarges 64 to 256 pixels, by diffusers' own super-resolution pipelines."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self

import torch
from diffusers import (
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFSuperResolutionPipeline,
)

from lowmem_if.cascade.modes import INPAINT, VARY
from lowmem_if.stages.pipelines import DrawingStage, load_unet, stage_scheduler
from lowmem_if.stages.stage import ImageInputs, OnStep, StageConfig
from lowmem_if.weights.small_parts import load_scheduler


class Stage2(DrawingStage):
    """The stage 2 UNet in memory."""

    @classmethod
    def load(cls, config: StageConfig) -> Self:
        with ExitStack() as streams:
            unet = load_unet(config, streams)
            pipeline = IFSuperResolutionPipeline(
                None, None, unet, stage_scheduler(config.folder("scheduler"), config.step),
                load_scheduler(config.folder("image_noising_scheduler")), None, None, None,
                requires_safety_checker=False,
            )  # fmt: skip
            return cls(pipeline, [unet], config.step, streams)

    def run(self, inputs: ImageInputs, on_step: OnStep) -> torch.Tensor:
        """Images (n, 3, 256, 256) in about [-1, 1], from stage 1's (n, 3, 64, 64) or the user's own.

        The shorter side is 256 pixels; the longer one is that of the tasks' proportions.
        """
        arguments: dict[str, Any] = {
            "image": list(inputs.images) if inputs.pictures is None else inputs.pictures,
            "prompt_embeds": inputs.embeds,
            "negative_prompt_embeds": inputs.negative_embeds,
            "noise_level": inputs.sampling.noise_level,
        }
        if inputs.mode == VARY:
            arguments["original_image"] = list(inputs.images)
            return self._draw(inputs, on_step, IFImg2ImgSuperResolutionPipeline, **arguments)
        if inputs.mode == INPAINT:
            arguments |= {"original_image": list(inputs.images), "mask_image": list(inputs.masks)}
            return self._draw(inputs, on_step, IFInpaintingSuperResolutionPipeline, **arguments)
        arguments |= self._shape(inputs.tasks[0])
        return self._draw(inputs, on_step, IFSuperResolutionPipeline, **arguments)
