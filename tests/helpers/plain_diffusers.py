"""The cascade as the documentation of diffusers calls it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline, StableDiffusionUpscalePipeline
from diffusers.pipelines.deepfloyd_if import IFSafetyChecker


@cache
def _pipelines(cascade: Path, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """The pipelines of the three stages; a call of one leaves nothing that the next call sees."""
    IFSafetyChecker.all_tied_weights_keys = {}  # or its weights cannot be loaded today
    options = {"variant": "fp16", "torch_dtype": dtype}
    first = IFPipeline.from_pretrained(cascade / "stage_1", **options)
    second = IFSuperResolutionPipeline.from_pretrained(
        cascade / "stage_2", text_encoder=None, tokenizer=None, safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False, **options,
    )  # fmt: skip
    third = StableDiffusionUpscalePipeline.from_pretrained(cascade / "upscaler", **options)
    third.safety_checker, third.watermarker = None, None
    return first, second, third


def by_hand(
    cascade: Path,
    prompt: str,
    seed: int,
    negative: str = "",
    dtype: torch.dtype = torch.float32,
    **stage_1: Any,
) -> dict[str, Any]:
    """The cascade as the documentation of diffusers calls it, one prompt, a fresh seed each stage."""
    first, second, third = _pipelines(cascade, dtype)
    embeds, negative_embeds = first.encode_prompt(
        prompt,
        negative_prompt=negative,
        clean_caption=True,  # as its own __call__ does
    )
    shared = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}

    def seeded() -> torch.Generator:
        return torch.Generator("cpu").manual_seed(seed)

    stage_1 = stage_1 or {"num_inference_steps": 2}
    small = first(**shared, **stage_1, generator=seeded(), output_type="pt").images
    middle = second(
        image=small, **shared, num_inference_steps=2, noise_level=250, generator=seeded(),
        output_type="pt",
    ).images  # fmt: skip
    large = third(
        prompt=prompt, negative_prompt=negative, image=middle, noise_level=100,
        num_inference_steps=2, generator=seeded(), output_type="pt",
    ).images  # fmt: skip
    image = IFPipeline.numpy_to_pil(large.permute(0, 2, 3, 1).numpy())
    unmarked = image[0].copy()
    marked = first.watermarker.apply_watermark(image)[0]
    return {"stage_1": small[0], "stage_2": middle[0], "stage_3": large[0],
            "unmarked": unmarked, "marked": marked}  # fmt: skip
