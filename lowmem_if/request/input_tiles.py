"""Divide an image into overlapping tiles, which are drawn one by one and blended."""

from __future__ import annotations

from dataclasses import dataclass

UPSCALER_SIDE = 256
"""Side of the square that the upscaler enlarges to 1024 pixels in a cascade."""

TILES = (256, 128, 64)
"""Sides that a tile may have, in pixels of the input image. The upscaler was trained on the first; the
others need less memory."""

WHOLE_AREA = 2.0
"""Largest area that is enlarged without tiles if memory allows, in squares of 256 pixels. The time of
attention grows with the square of the area."""

ALIGNMENT = 4
"""The upscaler's VAE needs sides that are multiples of 4; images are padded to them, then cropped."""

_OVERLAP = 4
"""Side of a tile divided by its smallest overlap with a neighbour."""


@dataclass(frozen=True, slots=True)
class Box:
    """A part of an image, in pixels, in the form that Pillow's `crop` takes."""

    left: int
    upper: int
    right: int
    lower: int


def boxes(width: int, height: int, tile: int) -> list[Box]:
    """The tiles of an image, row by row; if `tile` is 0, one tile that covers the whole image.

    Sides are multiples of `ALIGNMENT`, so the last tile of a row may extend beyond the image by less
    than that. Tiles are spread evenly and overlap by at least a quarter of their side.
    """
    columns, rows = (spans(aligned(length), tile) for length in (width, height))
    return [Box(left, upper, right, lower) for upper, lower in rows for left, right in columns]


def aligned(length: int) -> int:
    """`length`, rounded up to a multiple of `ALIGNMENT`."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """(begin, end) of the tiles along one side of an image, in pixels."""
    if not tile or length <= tile:
        return [(0, length)]
    step = tile - tile // _OVERLAP
    count = -(-(length - tile) // step) + 1
    last = (length - tile) // ALIGNMENT
    starts = [round(k * last / (count - 1)) * ALIGNMENT for k in range(count)]
    return [(start, start + tile) for start in starts]
