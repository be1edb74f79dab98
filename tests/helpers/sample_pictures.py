"""Pictures and masks that runs begin from."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image


def noise(file: Path, width: int = 80, height: int = 80, seed: int = 0) -> Path:
    """A picture of smooth random colours."""
    rng = numpy.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=numpy.uint8))
    small.resize((width, height), Image.Resampling.BICUBIC).save(file)
    return file


def half(file: Path, width: int = 80, height: int = 80) -> Path:
    """A mask that is white on the right half."""
    levels = numpy.zeros((height, width), numpy.uint8)
    levels[:, width // 2 :] = 255
    Image.fromarray(levels).save(file)
    return file
