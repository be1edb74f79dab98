"""The exported cascade as diffusers' own pipelines, for evaluation: captions in, pictures out.

Pictures are [n, 3, side, side] in [-1, 1]. The weights are raised to single precision and the work is
done under bfloat16 autocast, as in training.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline, StableDiffusionUpscalePipeline


@dataclass(frozen=True)
class Setting:
    """How a stage is sampled; `noise_level` says how much noise the small picture gets."""

    steps: int
    guidance: float
    noise_level: int = 0


STAGE_1 = Setting(steps=27, guidance=4.0)
STAGE_2 = Setting(steps=20, guidance=1.0, noise_level=20)
UPSCALER = Setting(steps=10, guidance=1.0, noise_level=10)
OFF = {"safety_checker": None, "feature_extractor": None, "watermarker": None}


@dataclass
class Cascade:
    """The folder's pipelines, each loaded when first asked for; `seconds` sums the time of each."""

    folder: Path
    batch: int = 16
    seconds: dict[str, float] = field(default_factory=dict)
    _loaded: dict[str, object] = field(default_factory=dict)

    def draw(self, captions: list[str], setting: Setting = STAGE_1, seed: int = 0) -> torch.Tensor:
        """Stage 1: captions to 64 px."""
        pipe = self._pipe("stage_1", IFPipeline, requires_safety_checker=False, **OFF)
        generator = torch.Generator().manual_seed(seed)
        pictures = []
        for first in range(0, len(captions), self.batch):
            with self._timed("stage 1"):
                images = pipe(
                    captions[first : first + self.batch],
                    num_inference_steps=setting.steps,
                    guidance_scale=setting.guidance,
                    generator=generator,
                    output_type="pt",
                ).images
            pictures.append(images.float().clamp(-1, 1))
        return torch.cat(pictures)

    def enlarge(
        self, captions: list[str], small: torch.Tensor, setting: Setting = STAGE_2, seed: int = 0
    ) -> torch.Tensor:
        """Stage 2: 64 px to 256 px, four at a time."""
        words = self._pipe("stage_1", IFPipeline, requires_safety_checker=False, **OFF)
        pipe = self._pipe("stage_2", IFSuperResolutionPipeline, requires_safety_checker=False)
        generator = torch.Generator().manual_seed(seed)
        pictures = []
        for first in range(0, len(captions), 4):
            part = slice(first, first + 4)
            with self._timed("stage 2"):
                positive, negative = words.encode_prompt(captions[part])
                images = pipe(
                    prompt_embeds=positive,
                    negative_prompt_embeds=negative,
                    image=small[part],
                    num_inference_steps=setting.steps,
                    guidance_scale=setting.guidance,
                    noise_level=setting.noise_level,
                    generator=generator,
                    output_type="pt",
                ).images
            pictures.append(images.float().clamp(-1, 1))
        return torch.cat(pictures)

    def finish(
        self, captions: list[str], middle: torch.Tensor, setting: Setting = UPSCALER, seed: int = 0
    ) -> torch.Tensor:
        """The upscaler: 256 px to 1024 px, one at a time."""
        pipe = self._pipe("upscaler", StableDiffusionUpscalePipeline)
        generator = torch.Generator().manual_seed(seed)
        pictures = []
        for caption, picture in zip(captions, middle, strict=True):
            with self._timed("upscaler"):
                images = pipe(
                    caption,
                    image=picture[None],
                    num_inference_steps=setting.steps,
                    guidance_scale=setting.guidance,
                    noise_level=setting.noise_level,
                    generator=generator,
                    output_type="pt",
                ).images
            pictures.append(images.float().clamp(0, 1) * 2 - 1)
        return torch.cat(pictures)

    def _pipe(self, stage: str, kind: type, **parts: object):
        if stage not in self._loaded:
            pipe = kind.from_pretrained(
                self.folder / stage, variant="fp16", torch_dtype=torch.float32, **parts
            )
            pipe.set_progress_bar_config(disable=True)
            self._loaded[stage] = pipe
        return self._loaded[stage]

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began
