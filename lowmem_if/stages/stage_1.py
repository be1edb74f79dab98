"""Stage 1: the base UNet that draws 64 pixel pictures from embeddings, by diffusers' own pipelines."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from diffusers import IFImg2ImgPipeline, IFInpaintingPipeline, IFPipeline

from lowmem_if.cascade.modes import INPAINT, VARY
from lowmem_if.planning.plan import Step
from lowmem_if.stages.pipelines import Batch, DrawingStage, take_unet
from lowmem_if.stages.schedulers import stage_scheduler


class Stage1(DrawingStage):
    """The stage 1 UNet in memory."""

    def __init__(self, root: Path, step: Step) -> None:
        with ExitStack() as streams:
            unet = take_unet(root / "unet", step, streams)
            pipeline = IFPipeline(
                None, None, unet, stage_scheduler(root / "scheduler", step), None, None, None,
                requires_safety_checker=False,
            )  # fmt: skip
            super().__init__(pipeline, [unet], step, streams)

    def draw(
        self, batch: Batch, embeds: torch.Tensor, negative_embeds: torch.Tensor | None
    ) -> torch.Tensor:
        """Pictures (n, 3, 64, 64) in about [-1, 1], from embeddings (n, 77, width).

        The shorter side is 64 pixels; the longer one as the batch's pictures have it.
        """
        texts = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
        images, masks = list(batch.images), list(batch.masks)
        if batch.mode == VARY:
            return self._draw(batch, IFImg2ImgPipeline, image=images, **texts)
        if batch.mode == INPAINT:
            return self._draw(batch, IFInpaintingPipeline, image=images, mask_image=masks, **texts)
        return self._draw(batch, IFPipeline, **self._shape(batch.tasks[0]), **texts)
