"""The end of every picture: IF's safety checker and its visible mark, once, on the final size.

Between the stages pictures travel as tensors, which diffusers passes by both of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from diffusers import IFPipeline
from PIL import Image

from lowmem_if.planning.plan import Step
from lowmem_if.weights.loading import (
    load_feature_extractor,
    load_safety_checker,
    load_watermarker,
)


@dataclass(frozen=True, slots=True)
class Postprocessed:
    """A finished picture, and whether the safety checker blackened it."""

    image: Image.Image
    flagged: bool


class Postprocessor:
    """Checker and mark in memory, on the CPU; freed by `close()`."""

    def __init__(self, root: Path, _step: Step, *, check: bool, mark: bool) -> None:
        checker = load_safety_checker(root / "safety_checker") if check else None
        extractor = load_feature_extractor(root / "feature_extractor") if check else None
        self._watermarker = load_watermarker(root / "watermarker") if mark else None
        self.modules = [module for module in (checker, self._watermarker) if module is not None]
        self._pipeline = IFPipeline(
            None, None, None, None, checker, extractor, None, requires_safety_checker=False
        )

    def finish(self, picture: torch.Tensor) -> Postprocessed:
        """Check and mark one picture (3, height, width) in [0, 1]."""
        pixels = to_pixels(picture)
        pixels, unsafe, marked = self._pipeline.run_safety_checker(pixels, "cpu", torch.float32)
        image = IFPipeline.numpy_to_pil(pixels)[0]
        if self._watermarker is not None:
            self._watermarker.apply_watermark([image])
        return Postprocessed(image, flagged=any((*(unsafe or ()), *(marked or ()))))

    def close(self) -> None:
        self._pipeline, self._watermarker, self.modules = None, None, []


def to_unit_range(picture: torch.Tensor) -> torch.Tensor:
    """A picture of stage 1 or 2, in about [-1, 1], as [0, 1]: what the IF pipelines do at their end."""
    return (picture / 2 + 0.5).clamp(0, 1)


def to_pixels(picture: torch.Tensor) -> numpy.ndarray:
    """(3, height, width) in [0, 1] -> (1, height, width, 3) in float32, as the pipelines have it."""
    pixels: numpy.ndarray = picture[None].permute(0, 2, 3, 1).float().numpy()
    return pixels


def to_image(picture: torch.Tensor) -> Image.Image:
    """(3, height, width) in [0, 1] as an 8-bit picture."""
    image: Image.Image = IFPipeline.numpy_to_pil(to_pixels(picture))[0]
    return image
