"""Tiles of an enlarged picture, put together so that no seam is seen."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lowmem_if.request.tiling import Box, boxes


def blended(
    width: int, height: int, tile: int, *, factor: int, draw: Callable[[int, Box], torch.Tensor]
) -> torch.Tensor:
    """The picture (3, factor * height, factor * width) that `draw` gives in tiles.

    Where tiles overlap each fades into the next, so that their weights are one everywhere. One tile that
    is the whole picture comes out as it was drawn, bit by bit.

    Args:
        width, height, tile: of the picture before it is enlarged; see `boxes`.
        draw: the tile of that number and place, (3, factor * its height, factor * its width).
    """
    places = boxes(width, height, tile)
    if len(places) == 1:
        return draw(0, places[0])
    columns = _weights({(box.left, box.right) for box in places}, factor)
    rows = _weights({(box.upper, box.lower) for box in places}, factor)
    lower, right = max(box.lower for box in places), max(box.right for box in places)
    picture = torch.zeros(3, factor * lower, factor * right)
    for number, box in enumerate(places):
        down, across = rows[box.upper, box.lower], columns[box.left, box.right]
        y = slice(factor * box.upper, factor * box.lower)
        x = slice(factor * box.left, factor * box.right)
        picture[:, y, x] += draw(number, box) * down[:, None] * across
    return picture


def _weights(spans: set[tuple[int, int]], factor: int) -> dict[tuple[int, int], torch.Tensor]:
    """How much each tile counts along one side: tents, made to sum up to one everywhere."""
    length = factor * max(stop for _, stop in spans)
    total = torch.zeros(length)
    tents = {}
    for start, stop in spans:
        size = factor * (stop - start)
        ramp = torch.arange(size) + 0.5
        tents[start, stop] = torch.minimum(ramp, size - ramp)
        total[factor * start : factor * stop] += tents[start, stop]
    return {
        (start, stop): tent / total[factor * start : factor * stop]
        for (start, stop), tent in tents.items()
    }
