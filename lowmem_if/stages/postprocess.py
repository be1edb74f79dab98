"""Postprocessing: IF's safety checker and its visible watermark, once, on the final size.

Between the stages images are tensors, for which diffusers runs neither of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy
import torch
from diffusers import IFPipeline
from PIL import Image

from lowmem_if.stages.stage import OnStep, StageConfig
from lowmem_if.weights.loading import load_safety_checker
from lowmem_if.weights.small_parts import load_feature_extractor, load_watermarker


@dataclass(frozen=True, slots=True)
class Postprocessed:
    """A finished image, and whether the safety checker blackened it."""

    image: Image.Image
    flagged: bool


class Postprocessor:
    """Safety checker and watermark in memory, on the CPU."""

    def __init__(self, checker: Any, extractor: Any, watermarker: Any) -> None:
        self._watermarker = watermarker
        self.modules = [module for module in (checker, watermarker) if module is not None]
        self._pipeline = IFPipeline(
            None, None, None, None, checker, extractor, None, requires_safety_checker=False
        )

    @classmethod
    def load(cls, config: StageConfig) -> Self:
        return cls(
            load_safety_checker(config.folder("safety_checker")) if config.checks else None,
            load_feature_extractor(config.folder("feature_extractor")) if config.checks else None,
            load_watermarker(config.folder("watermarker")) if config.marks else None,
        )

    def run(self, inputs: torch.Tensor, on_step: OnStep) -> Postprocessed:  # noqa: ARG002
        """Check and mark one image (3, height, width) in [0, 1]."""
        pixels = to_pixels(inputs)
        pixels, unsafe, marked = self._pipeline.run_safety_checker(pixels, "cpu", torch.float32)
        image = IFPipeline.numpy_to_pil(pixels)[0]
        if self._watermarker is not None:
            self._watermarker.apply_watermark([image])
        return Postprocessed(image, flagged=any((*(unsafe or ()), *(marked or ()))))

    def close(self) -> None:
        """Drop every reference to the networks."""
        self._pipeline, self._watermarker, self.modules = None, None, []


def to_pixels(picture: torch.Tensor) -> numpy.ndarray:
    """(3, height, width) in [0, 1] -> (1, height, width, 3) in float32, as the pipelines have it."""
    pixels: numpy.ndarray = picture[None].permute(0, 2, 3, 1).float().numpy()
    return pixels


def to_image(picture: torch.Tensor) -> Image.Image:
    """(3, height, width) in [0, 1] as an 8-bit image."""
    image: Image.Image = IFPipeline.numpy_to_pil(to_pixels(picture))[0]
    return image
