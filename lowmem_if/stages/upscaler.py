"""The x4 upscaler, 256 to 1024 pixels, by `StableDiffusionUpscalePipeline`.

It reads the prompt itself, with a small CLIP text encoder of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionUpscalePipeline, UNet2DConditionModel

from lowmem_if.planning.locations import read_config
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
from lowmem_if.weights.loading import (
    load_clip_text,
    load_diffusers_model,
    load_scheduler,
    load_tokenizer,
)


class Upscaler:
    """The upscaler's UNet, VAE and text encoder in memory; freed by `close()`."""

    def __init__(self, root: Path, step: Step) -> None:
        assert step.sampling is not None
        self._sampling = step.sampling
        dtype, device = step.storage_dtype, loading_device(step)
        # The decoder needs more precision than bfloat16 has; from float16 the pipeline upcasts it.
        vae_dtype = "float32" if dtype == "bfloat16" else dtype
        unet = load_diffusers_model(root / "unet", UNet2DConditionModel, dtype=dtype, device=device)
        vae = load_diffusers_model(root / "vae", AutoencoderKL, dtype=vae_dtype, device=device)
        text_encoder = load_clip_text(root / "text_encoder", dtype=dtype, device=device)
        self.modules = [unet, vae, text_encoder]
        self._pipeline = StableDiffusionUpscalePipeline(
            vae, text_encoder, load_tokenizer(root / "tokenizer"), unet,
            load_scheduler(root / "low_res_scheduler"), load_scheduler(root / "scheduler"),
            max_noise_level=read_config(root / "model_index.json").get("max_noise_level", 350),
        )  # fmt: skip
        if step.vae_tiling:
            vae.enable_tiling()
        place(self._pipeline, step)

    def draw(
        self,
        pictures: torch.Tensor,
        prompts: Sequence[str],
        negative_prompt: str,
        seeds: Sequence[int],
        on_step: OnStep,
    ) -> torch.Tensor:
        """Pictures (n, 3, 1024, 1024) in [0, 1] on the CPU, from stage 2's (n, 3, 256, 256)."""
        largest = self._pipeline(
            prompt=list(prompts),
            image=pictures,
            negative_prompt=[negative_prompt] * len(prompts),
            guidance_scale=self._sampling.guidance_scale,
            noise_level=self._sampling.noise_level,
            generator=generators(seeds),
            output_type="pt",
            callback=step_callback(on_step),
            **schedule(self._sampling),
        ).images
        return largest.cpu()

    def close(self) -> None:
        let_go(self._pipeline)
        self._pipeline, self.modules = None, []
