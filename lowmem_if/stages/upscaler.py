"""The x4 upscaler, 256 to 1024 pixels, by `StableDiffusionUpscalePipeline`.

It reads the prompt itself, with a small CLIP text encoder of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionUpscalePipeline

from lowmem_if.planning.configurations import UpscalerIndex, read_as
from lowmem_if.planning.plan import Step
from lowmem_if.stages.pipelines import DrawingStage, OnStep, loading_device, take_unet
from lowmem_if.weights.loading import (
    load_clip_text,
    load_diffusers_model,
    load_scheduler,
    load_tokenizer,
)


class Upscaler(DrawingStage):
    """The upscaler's UNet, VAE and text encoder in memory."""

    def __init__(self, root: Path, step: Step) -> None:
        dtype, device = step.storage_dtype, loading_device(step)
        # The decoder needs more precision than bfloat16 has; from float16 the pipeline upcasts it.
        vae_dtype = "float32" if dtype == "bfloat16" else dtype
        with ExitStack() as streams:
            unet = take_unet(root / "unet", step, streams)
            vae = load_diffusers_model(root / "vae", AutoencoderKL, dtype=vae_dtype, device=device)
            text_encoder = load_clip_text(root / "text_encoder", dtype=dtype, device=device)
            pipeline = StableDiffusionUpscalePipeline(
                vae, text_encoder, load_tokenizer(root / "tokenizer"), unet,
                load_scheduler(root / "low_res_scheduler"), load_scheduler(root / "scheduler"),
                max_noise_level=read_as(root / "model_index.json", UpscalerIndex).max_noise_level,
            )  # fmt: skip
            if step.vae_tiling:
                vae.enable_tiling()
            super().__init__(pipeline, [unet, vae, text_encoder], step, streams)

    def draw(
        self,
        pictures: torch.Tensor,
        prompts: Sequence[str],
        negative_prompt: str,
        seeds: Sequence[int],
        on_step: OnStep,
    ) -> torch.Tensor:
        """Pictures (n, 3, 1024, 1024) in [0, 1], from stage 2's (n, 3, 256, 256)."""
        return self._draw(
            seeds,
            on_step,
            image=pictures,
            prompt=list(prompts),
            negative_prompt=[negative_prompt] * len(prompts),
            noise_level=self._sampling.noise_level,
        )
