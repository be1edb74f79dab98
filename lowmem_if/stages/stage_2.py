"""Stage 2: the UNet that enlarges 64 to 256 pixels, by diffusers' own super-resolution pipelines."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from diffusers import (
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFSuperResolutionPipeline,
)
from PIL import Image

from lowmem_if.cascade.modes import INPAINT, VARY
from lowmem_if.planning.plan import Step
from lowmem_if.stages.pipelines import Batch, DrawingStage, take_unet
from lowmem_if.stages.schedulers import stage_scheduler
from lowmem_if.weights.loading import load_scheduler


class Stage2(DrawingStage):
    """The stage 2 UNet in memory."""

    def __init__(self, root: Path, step: Step) -> None:
        with ExitStack() as streams:
            unet = take_unet(root / "unet", step, streams)
            pipeline = IFSuperResolutionPipeline(
                None, None, unet, stage_scheduler(root / "scheduler", step),
                load_scheduler(root / "image_noising_scheduler"), None, None, None,
                requires_safety_checker=False,
            )  # fmt: skip
            super().__init__(pipeline, [unet], step, streams)

    def draw(
        self,
        batch: Batch,
        pictures: torch.Tensor | list[Image.Image],
        embeds: torch.Tensor,
        negative_embeds: torch.Tensor | None,
    ) -> torch.Tensor:
        """Pictures (n, 3, 256, 256) in about [-1, 1], from stage 1's (n, 3, 64, 64) or the user's own.

        The shorter side is 256 pixels; the longer one as the batch's pictures have it.
        """
        inputs = {
            "image": pictures,
            "prompt_embeds": embeds,
            "negative_prompt_embeds": negative_embeds,
            "noise_level": batch.sampling.noise_level,
        }
        originals, masks = list(batch.images), list(batch.masks)
        if batch.mode == VARY:
            kind = IFImg2ImgSuperResolutionPipeline
            return self._draw(batch, kind, original_image=originals, **inputs)
        if batch.mode == INPAINT:
            kind = IFInpaintingSuperResolutionPipeline
            return self._draw(batch, kind, original_image=originals, mask_image=masks, **inputs)
        return self._draw(batch, IFSuperResolutionPipeline, **self._shape(batch.tasks[0]), **inputs)
