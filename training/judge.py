"""What a picture shows, told from its pixels alone: ground, colours, shape kinds, places.

The ground is the palette colour nearest to the border's median. Things are connected regions that
differ from it; a thing's colour is the one nearest to its median, its shape the outline that overlaps
most with it after both are stretched to the same box. Pictures are [3, side, side] in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional

from training.scenes import (
    COLOURS,
    PALETTE_TENSOR,
    SHAPES,
    Scene,
    Thing,
    render,
)

DIFFERENT = 0.45
SMALLEST_SHARE = 0.004
BOX = 48
JUDGED_SIDE = 256
FAR, NEAR_MIDDLE = 0.49, 0.12


@dataclass(frozen=True)
class Seen:
    """One thing as the judge sees it; places are fractions of the side."""

    shape: str
    colour: str
    overlap: float
    x: float
    y: float


@dataclass(frozen=True)
class Verdict:
    """The ground's colour and the things, the largest first."""

    ground: str
    things: tuple[Seen, ...]


@dataclass(frozen=True)
class Marks:
    """What of a one-thing scene is right in a picture; `place` is None where no word asked for one."""

    ground: bool
    colour: bool
    shape: bool
    alone: bool
    place: bool | None

    @property
    def all_three(self) -> bool:
        """Whether ground, colour and shape are all right."""
        return self.ground and self.colour and self.shape


def look(picture: torch.Tensor) -> Verdict:
    """Judge one picture, at 256 px whatever its side, so that outlines compare alike."""
    size = (JUDGED_SIDE, JUDGED_SIDE)
    picture = functional.interpolate(picture[None].float(), size, mode="bicubic", antialias=True)
    picture = picture[0].clamp(-1, 1)
    edges = (picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1])
    ground = torch.cat(edges, 1).median(1).values
    differs = (picture - ground[:, None, None]).square().sum(0).sqrt() > DIFFERENT
    regions = [r for r in _regions(differs) if r.float().mean() >= SMALLEST_SHARE]
    regions.sort(key=lambda region: -int(region.sum()))
    return Verdict(nearest_colour(ground), tuple(_see(picture, region) for region in regions))


def nearest_colour(colour: torch.Tensor) -> str:
    """The name of the palette colour nearest to [3] in [-1, 1]."""
    return COLOURS[int((PALETTE_TENSOR - colour).square().sum(1).argmin())]


def mark(picture: torch.Tensor, scene: Scene) -> Marks:
    """Compare a picture with the one-thing scene it was asked to show."""
    verdict, thing = look(picture), scene.things[0]
    ground = verdict.ground == scene.ground
    if not verdict.things:
        return Marks(ground, False, False, False, False if thing.place else None)
    seen = verdict.things[0]
    return Marks(
        ground,
        seen.colour == thing.colour,
        seen.shape == thing.shape,
        len(verdict.things) == 1,
        _in_place(seen, thing.place) if thing.place else None,
    )


def both_colours_right(picture: torch.Tensor, scene: Scene) -> bool:
    """Whether the two largest things, from left to right, have the two colours asked for."""
    seen = sorted(look(picture).things[:2], key=lambda s: s.x)
    return [s.colour for s in seen] == [thing.colour for thing in scene.things]


def _regions(mask: torch.Tensor) -> list[torch.Tensor]:
    """The connected regions of a mask: each place takes its neighbours' highest number, to the end.

    A number names a place, so each place then takes the number of the place that it names: that halves
    the way to the end.
    """
    numbers = torch.arange(1, mask.numel() + 1).reshape(mask.shape).float() * mask
    while True:
        spread = functional.max_pool2d(numbers[None], 3, 1, 1)[0] * mask
        spread = spread.flatten()[spread.long() - 1] * mask
        if torch.equal(spread, numbers):
            return [numbers == number for number in numbers.unique() if number]
        numbers = spread


def _see(picture: torch.Tensor, region: torch.Tensor) -> Seen:
    core = functional.avg_pool2d(region.float()[None], 5, 1, 2)[0] > 0.99
    core = core if core.any() else region
    colour = nearest_colour(picture[:, core].median(1).values)
    box, (left, top, right, bottom) = _cut_out(region)
    overlaps = {shape: _overlap(box, outline) for shape, outline in _outlines().items()}
    shape = max(overlaps, key=overlaps.get)
    side = 2 * region.shape[0]
    return Seen(shape, colour, overlaps[shape], (left + right) / side, (top + bottom) / side)


def _cut_out(region: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int, int]]:
    """The region stretched to the box, and its sides: left, top, right, bottom."""
    rows, columns = torch.where(region)
    left, right = int(columns.min()), int(columns.max()) + 1
    top, bottom = int(rows.min()), int(rows.max()) + 1
    cut = region[None, None, top:bottom, left:right].float()
    box = functional.interpolate(cut, (BOX, BOX), mode="bilinear", antialias=True)
    return box[0, 0] > 0.5, (left, top, right, bottom)


def _in_place(seen: Seen, place: str) -> bool:
    return {
        "left": seen.x < FAR,
        "right": seen.x > 1 - FAR,
        "top": seen.y < FAR,
        "bottom": seen.y > 1 - FAR,
        "center": max(abs(seen.x - 0.5), abs(seen.y - 0.5)) < NEAR_MIDDLE,
    }[place]


def _overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one & other).sum() / (one | other).sum().clamp_min(1)).item()


@cache
def _outlines() -> dict[str, torch.Tensor]:
    """Each shape's own mask, stretched to the box."""
    things = {s: Thing(s, "black", "", "", 0.5, 0.5, 0.45) for s in SHAPES}
    pictures = render([Scene("white", (thing,)) for thing in things.values()], JUDGED_SIDE)
    return {s: _cut_out(p.mean(0) < 0)[0] for s, p in zip(things, pictures, strict=True)}
