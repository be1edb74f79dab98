"""Stage 2: the UNet that enlarges 64 to 256 pixels, by `IFSuperResolutionPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import IFSuperResolutionPipeline, UNet2DConditionModel

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


class SuperResolutionStage:
    """The stage 2 UNet in memory; freed by `close()`."""

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
        self._pipeline = IFSuperResolutionPipeline(
            None, None, unet, load_scheduler(root / "scheduler"),
            load_scheduler(root / "image_noising_scheduler"), None, None, None,
            requires_safety_checker=False,
        )  # fmt: skip
        place(self._pipeline, step)

    def draw(
        self,
        pictures: torch.Tensor,
        embeds: torch.Tensor,
        negative_embeds: torch.Tensor,
        seeds: Sequence[int],
        on_step: OnStep,
    ) -> torch.Tensor:
        """Pictures (n, 3, 256, 256) in about [-1, 1] on the CPU, from stage 1's (n, 3, 64, 64)."""
        larger = self._pipeline(
            image=pictures,
            prompt_embeds=embeds,
            negative_prompt_embeds=negative_embeds,
            guidance_scale=self._sampling.guidance_scale,
            noise_level=self._sampling.noise_level,
            generator=generators(seeds),
            output_type="pt",
            callback=step_callback(on_step),
            **schedule(self._sampling),
        ).images
        return larger.cpu()

    def close(self) -> None:
        let_go(self._pipeline)
        self._pipeline, self.modules = None, []
