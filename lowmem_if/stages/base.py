"""Stage 1: the base UNet that draws 64 pixel pictures from embeddings, by `IFPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import IFPipeline, UNet2DConditionModel

from lowmem_if.planning.plan import Step
from lowmem_if.stages.pipelines import (
    OnStep,
    generators,
    let_go,
    loading_device,
    place,
    schedule,
    step_callback,
)
from lowmem_if.weights.loading import load_diffusers_model, load_scheduler


class BaseStage:
    """The stage 1 UNet in memory; freed by `close()`."""

    def __init__(self, root: Path, step: Step) -> None:
        assert step.sampling is not None
        self._sampling = step.sampling
        unet = load_diffusers_model(
            root / "unet",
            UNet2DConditionModel,
            dtype=step.storage_dtype,
            device=loading_device(step),
        )
        self.modules = [unet]
        self._pipeline = IFPipeline(
            None, None, unet, load_scheduler(root / "scheduler"), None, None, None,
            requires_safety_checker=False,
        )  # fmt: skip
        place(self._pipeline, step)

    def draw(
        self,
        embeds: torch.Tensor,
        negative_embeds: torch.Tensor,
        seeds: Sequence[int],
        on_step: OnStep,
    ) -> torch.Tensor:
        """Pictures (n, 3, 64, 64) in about [-1, 1] on the CPU, from embeddings (n, 77, width)."""
        pictures = self._pipeline(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative_embeds,
            guidance_scale=self._sampling.guidance_scale,
            generator=generators(seeds),
            output_type="pt",
            callback=step_callback(on_step),
            **schedule(self._sampling),
        ).images
        return pictures.cpu()

    def close(self) -> None:
        let_go(self._pipeline)
        self._pipeline, self.modules = None, []
