"""How a picture is cut into overlapping tiles that are drawn one by one and blended."""

from __future__ import annotations

from dataclasses import dataclass

UPSCALER_SIDE = 256
"""Of the square that the upscaler makes 1024 pixels of in a cascade."""

TILES = (256, 128, 64)
"""Sides that a tile may have, in pixels of the picture that is enlarged: what the upscaler was made for,
then what takes less."""

WHOLE_AREA = 2.0
"""A picture of up to so many squares of 256 pixels is enlarged whole where memory allows: attention over
more takes time by its square."""

ALIGNMENT = 4
"""The upscaler's VAE wants whole fours of pixels; a picture is filled up to them, and cropped again."""

_OVERLAP = 4
"""Of a tile's side, the part that it shares with its neighbour: one in so many pixels."""


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a picture, in pixels, as Pillow's `crop` wants it."""

    left: int
    upper: int
    right: int
    lower: int


def boxes(width: int, height: int, tile: int) -> list[Box]:
    """The tiles of a picture, row by row; one that is the whole picture if `tile` is 0.

    Sides are whole multiples of `ALIGNMENT`, the last of a row may reach beyond the picture by less than
    that. Tiles are spread evenly and overlap by at least a quarter of their side.
    """
    columns, rows = (spans(aligned(length), tile) for length in (width, height))
    return [Box(left, upper, right, lower) for upper, lower in rows for left, right in columns]


def aligned(length: int) -> int:
    """The next whole multiple of `ALIGNMENT`."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Where tiles begin and end along one side of a picture."""
    if not tile or length <= tile:
        return [(0, length)]
    step = tile - tile // _OVERLAP
    count = -(-(length - tile) // step) + 1
    last = (length - tile) // ALIGNMENT
    starts = [round(k * last / (count - 1)) * ALIGNMENT for k in range(count)]
    return [(start, start + tile) for start in starts]
