"""Stage 1: the base UNet that draws images of 64 pixels from embeddings, by diffusers' own pipelines."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

import torch
from diffusers import IFImg2ImgPipeline, IFInpaintingPipeline, IFPipeline

from lowmem_if.cascade.modes import INPAINT, VARY
from lowmem_if.stages.pipelines import DrawingStage, load_unet, stage_scheduler
from lowmem_if.stages.stage import ImageInputs, OnStep, StageConfig


class Stage1(DrawingStage):
    """The stage 1 UNet in memory."""

    @classmethod
    def load(cls, config: StageConfig) -> Self:
        with ExitStack() as streams:
            unet = load_unet(config, streams)
            scheduler = stage_scheduler(config.folder("scheduler"), config.step)
            pipeline = IFPipeline(
                None, None, unet, scheduler, None, None, None, requires_safety_checker=False
            )
            return cls(pipeline, [unet], config.step, streams)

    def run(self, inputs: ImageInputs, on_step: OnStep) -> torch.Tensor:
        """Images (n, 3, 64, 64) in about [-1, 1], from embeddings (n, 77, width).

        The shorter side is 64 pixels; the longer one is that of the tasks' proportions.
        """
        texts = {
            "prompt_embeds": inputs.embeds,
            "negative_prompt_embeds": inputs.negative_embeds,
        }
        images, masks = list(inputs.images), list(inputs.masks)
        if inputs.mode == VARY:
            return self._draw(inputs, on_step, IFImg2ImgPipeline, image=images, **texts)
        if inputs.mode == INPAINT:
            return self._draw(
                inputs, on_step, IFInpaintingPipeline, image=images, mask_image=masks, **texts
            )
        shape = self._shape(inputs.tasks[0])
        return self._draw(inputs, on_step, IFPipeline, **shape, **texts)
