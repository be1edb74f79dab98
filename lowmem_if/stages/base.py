"""Stage 1: the base UNet that draws 64 pixel pictures from embeddings, by `IFPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from diffusers import IFPipeline

from lowmem_if.planning.plan import Step
from lowmem_if.stages.pipelines import DrawingStage, OnStep, take_unet
from lowmem_if.weights.loading import load_scheduler


class BaseStage(DrawingStage):
    """The stage 1 UNet in memory."""

    def __init__(self, root: Path, step: Step) -> None:
        with ExitStack() as streams:
            unet = take_unet(root / "unet", step, streams)
            pipeline = IFPipeline(
                None, None, unet, load_scheduler(root / "scheduler"), None, None, None,
                requires_safety_checker=False,
            )  # fmt: skip
            super().__init__(pipeline, [unet], step, streams)

    def draw(
        self,
        embeds: torch.Tensor,
        negative_embeds: torch.Tensor | None,
        seeds: Sequence[int],
        on_step: OnStep,
    ) -> torch.Tensor:
        """Pictures (n, 3, 64, 64) in about [-1, 1], from embeddings (n, 77, width)."""
        return self._draw(
            seeds, on_step, prompt_embeds=embeds, negative_prompt_embeds=negative_embeds
        )
