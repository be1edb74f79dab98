"""Stage 2: the UNet that enlarges 64 to 256 pixels, by `IFSuperResolutionPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from diffusers import IFSuperResolutionPipeline

from lowmem_if.planning.plan import Step
from lowmem_if.stages.pipelines import DrawingStage, OnStep, take_unet
from lowmem_if.weights.loading import load_scheduler


class SuperResolutionStage(DrawingStage):
    """The stage 2 UNet in memory."""

    def __init__(self, root: Path, step: Step) -> None:
        with ExitStack() as streams:
            unet = take_unet(root / "unet", step, streams)
            pipeline = IFSuperResolutionPipeline(
                None, None, unet, load_scheduler(root / "scheduler"),
                load_scheduler(root / "image_noising_scheduler"), None, None, None,
                requires_safety_checker=False,
            )  # fmt: skip
            super().__init__(pipeline, [unet], step, streams)

    def draw(
        self,
        pictures: torch.Tensor,
        embeds: torch.Tensor,
        negative_embeds: torch.Tensor | None,
        seeds: Sequence[int],
        on_step: OnStep,
    ) -> torch.Tensor:
        """Pictures (n, 3, 256, 256) in about [-1, 1], from stage 1's (n, 3, 64, 64)."""
        return self._draw(
            seeds,
            on_step,
            image=pictures,
            prompt_embeds=embeds,
            negative_prompt_embeds=negative_embeds,
            noise_level=self._sampling.noise_level,
        )
