"""Loops as users write them over a pipeline of diffusers, whoever has loaded it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionUpscalePipeline

FOLDERS = {1: "stage_1", 2: "stage_2", 3: "upscaler"}


def loaded_by_diffusers(cascade: Path, stage: int, kind: Any) -> Any:
    """A stage as `from_pretrained` loads it, in float32, without what an opened stage lacks."""
    without: dict[str, Any] = {"requires_safety_checker": False, "text_encoder": None}
    without |= {"safety_checker": None, "feature_extractor": None}
    if stage == 2:
        without |= {"tokenizer": None, "watermarker": None}
    if kind is StableDiffusionUpscalePipeline:
        without = {"safety_checker": None, "watermarker": None, "feature_extractor": None}
    pipeline = kind.from_pretrained(
        cascade / FOLDERS[stage], variant="fp16", torch_dtype=torch.float32, **without
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def embeddings(pipeline: Any, seed: int = 5) -> dict[str, torch.Tensor]:
    """Made-up embeddings of a prompt and of the negative prompt."""
    chance = torch.Generator().manual_seed(seed)
    width = pipeline.unet.config.encoder_hid_dim
    names = ("prompt_embeds", "negative_prompt_embeds")
    return {name: torch.randn(1, 77, width, generator=chance) for name in names}


def guided_loop(
    pipeline: Any,
    steps: int = 3,
    *,
    seed: int = 0,
    after_step: Callable[[int], None] = lambda _step: None,
) -> torch.Tensor:
    """Denoise from noise with guidance, by hand; stage 2 gets a made-up picture to enlarge."""
    chance = torch.Generator().manual_seed(seed)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    side = unet.config.sample_size
    texts = torch.cat(list(embeddings(pipeline).values())[::-1])
    picture = torch.randn(1, 3, side, side, generator=chance)
    small = torch.randn(1, unet.config.in_channels - 3, side, side, generator=chance)
    levels = {"class_labels": torch.tensor([20, 20])} if small.numel() else {}
    scheduler.set_timesteps(steps)
    for number, t in enumerate(scheduler.timesteps):
        noisy = torch.cat([picture, small], dim=1)
        noise = unet(
            torch.cat([noisy, noisy]), t, encoder_hidden_states=texts, return_dict=False, **levels
        )[0]
        plain, text = noise.chunk(2)
        guided = plain[:, :3] + 4 * (text[:, :3] - plain[:, :3])
        picture = scheduler.step(
            torch.cat([guided, text[:, 3:]], dim=1), t, picture, generator=chance
        ).prev_sample
        after_step(number)
    return picture
