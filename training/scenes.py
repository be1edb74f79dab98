"""The demo's little world: its words, its scenes and an exact renderer.

A scene is one or two flat shapes on a flat ground. Pictures are drawn from signed distances, so any
resolution and any window of a picture can be drawn exactly, and no picture is ever stored.
Coordinates are fractions of the picture's side, y grows downwards; pixels lie in [-1, 1].
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass

import torch

PALETTE = {
    "red": (220, 45, 45),
    "green": (50, 165, 70),
    "blue": (45, 75, 215),
    "yellow": (240, 215, 60),
    "orange": (240, 140, 35),
    "purple": (145, 60, 180),
    "white": (238, 238, 238),
    "black": (22, 22, 22),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
SIZES = {"small": (0.12, 0.155), "": (0.19, 0.25), "large": (0.30, 0.37)}
PLACES = {
    "": "",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}
PALETTE_TENSOR = torch.tensor([PALETTE[name] for name in COLOURS]).float() / 127.5 - 1

TWO_OBJECTS_SHARE = 0.55
LARGEST_OF_TWO = 0.2  # so that two things never touch
PLACED_SHARE = 0.45
MARGIN = 0.03
STAR_INNER_RADIUS = 0.42


@dataclass(frozen=True)
class Thing:
    """One shape: what the words say about it, and where it really is."""

    shape: str
    colour: str
    size: str
    place: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A ground colour and one or two things, the first one left of the second."""

    ground: str
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Window:
    """The square of `side` pixels at column `left`, row `top` of a `full` pixels wide picture."""

    full: float
    left: float
    top: float
    side: int

    def corner_to_corner(self, small: int) -> Window:
        """What this window shows if `full` was enlarged from `small` with `align_corners`.

        The small picture's corner pixels become the large one's, so its half a pixel beyond their
        centres is lost on every side: of 64 px made 256 px, what was at the rim moves by 1.5 px.
        """
        full = small * (self.full - 1) / (small - 1)
        shift = full / small / 2 - 0.5
        return Window(full, self.left + shift, self.top + shift, self.side)

    def scaled(self, factor: float) -> Window:
        """The same window in a picture `factor` times as large."""
        sides = (self.full, self.left, self.top, self.side)
        full, left, top, side = (factor * number for number in sides)
        return Window(full, left, top, round(side))


def is_held_out(shape: str, colour: str, ground: str) -> bool:
    """Whether the triple is kept from training: one ground of eight for each shape and colour."""
    code = SHAPES.index(shape) * 37 + COLOURS.index(colour) * 11 + COLOURS.index(ground) * 5
    return code % 8 == 3


# --- drawing lots ---------------------------------------------------------------------------------


def random_scene(rng: random.Random, held_out: bool = False, count: int | None = None) -> Scene:
    """A scene of the training split, or one whose first held-out triple makes it a test scene."""
    while True:
        number = count or (2 if rng.random() < TWO_OBJECTS_SHARE else 1)
        ground = rng.choice(COLOURS)
        make = _random_pair if number == 2 else _random_single
        things = make(rng, [colour for colour in COLOURS if colour != ground])
        if any(is_held_out(t.shape, t.colour, ground) for t in things) == held_out:
            return Scene(ground, things)


def _random_single(rng: random.Random, colours: list[str]) -> tuple[Thing, ...]:
    size = rng.choice(tuple(SIZES))
    place = rng.choice([p for p in PLACES if p]) if rng.random() < PLACED_SHARE else ""
    radius = rng.uniform(*SIZES[size])
    x, y = _random_spot(rng, place, radius + MARGIN)
    return (Thing(rng.choice(SHAPES), rng.choice(colours), size, place, x, y, radius),)


def _random_spot(rng: random.Random, place: str, margin: float) -> tuple[float, float]:
    def about_middle(spread: float) -> float:
        return min(max(0.5 + rng.uniform(-spread, spread), margin), 1 - margin)

    near, far = margin + rng.uniform(0, 0.05), 1 - margin - rng.uniform(0, 0.05)
    x, y = about_middle(0.08), about_middle(0.08)
    return {
        "": (about_middle(0.2), about_middle(0.2)),
        "left": (near, y),
        "right": (far, y),
        "top": (x, near),
        "bottom": (x, far),
        "center": (x, y),
    }[place]


def _random_pair(rng: random.Random, colours: list[str]) -> tuple[Thing, ...]:
    things = []
    for middle in (0.27, 0.73):
        size = rng.choice(("small", ""))
        radius = min(rng.uniform(*SIZES[size]), LARGEST_OF_TWO)
        x, y = middle + rng.uniform(-0.03, 0.03), 0.5 + rng.uniform(-0.1, 0.1)
        things.append(Thing(rng.choice(SHAPES), rng.choice(colours), size, "", x, y, radius))
    return tuple(things)


def random_window(rng: random.Random, scene: Scene, full: int, side: int, grid: int) -> Window:
    """A window that mostly holds a piece of some thing's edge, its corner on multiples of `grid`."""
    thing = rng.choice(scene.things)
    corner = []
    for middle in (thing.x, thing.y):
        wished = (middle + rng.uniform(-1.1, 1.1) * thing.radius) * full - side / 2
        corner.append(int(min(max(wished, 0), full - side)) // grid * grid)
    return Window(full, corner[0], corner[1], side)


# --- words ----------------------------------------------------------------------------------------


def plain_caption(scene: Scene) -> str:
    """The scene in the demo's plainest words, with articles."""
    body = " and ".join(_noun(thing, articles=True) for thing in scene.things)
    return f"{body}{_place_words(scene)} on {_with_article(scene.ground)} background"


def random_caption(scene: Scene, rng: random.Random) -> str:
    """The scene in the plain words or in one of their paraphrases."""
    articles = rng.random() < 0.8
    nouns = [_noun(thing, articles) for thing in scene.things]
    joint = " and " if rng.random() < 0.7 else " to the left of "
    body, ground = joint.join(nouns) + _place_words(scene), scene.ground
    return rng.choice(
        (
            f"{body} on {_with_article(ground)} background",
            f"{body} on {ground}",
            f"a picture of {body} on {_with_article(ground)} background",
            f"{body}, {ground} background",
            f"{ground} background with {body}",
        )
    )


def known_words() -> dict[str, list[str]]:
    """Every word of the language by its kind, for whoever types another one."""
    pairs = (random_scene(random.Random(seed)) for seed in range(4000))
    said = {
        word
        for seed, scene in enumerate(pairs)
        for word in re.findall(r"\w+", random_caption(scene, random.Random(seed)))
    }
    kinds = {
        "colours": list(COLOURS),
        "shapes": list(SHAPES),
        "sizes": [size for size in SIZES if size],
        "places": [place for place in PLACES if place],
    }
    named = {word for words in kinds.values() for word in words}
    return kinds | {"small words": sorted(said - named)}


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _noun(thing: Thing, articles: bool) -> str:
    words = " ".join(word for word in (thing.size, thing.colour, thing.shape) if word)
    return _with_article(words) if articles else words


def _place_words(scene: Scene) -> str:
    words = PLACES[scene.things[0].place]
    return f" {words}" if words else ""


# --- outlines and drawing -------------------------------------------------------------------------


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape of radius 1; the circle has none."""
    if shape == "triangle":
        return [(0, -1), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "diamond":
        return [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)]
    if shape == "cross":
        quarter = [(-0.32, -0.95), (0.32, -0.95), (0.32, -0.32)]
        corners = []
        for _ in range(4):
            corners += quarter
            quarter = [(-y, x) for x, y in quarter]
        return corners
    if shape == "star":
        radii = [1.0, STAR_INNER_RADIUS] * 5
        return [
            (r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5))
            for i, r in enumerate(radii)
        ]
    return []


CIRCLE_RADIUS = 0.95
CORNERS = 12


def _outline_table() -> torch.Tensor:
    """All outlines as one [shape, corner, 2] tensor; short ones repeat their last corner."""
    table = torch.zeros(len(SHAPES), CORNERS, 2)
    for row, shape in zip(table, SHAPES, strict=True):
        corners = _outline(shape)
        if corners:
            row[:] = torch.tensor((corners + corners[-1:] * CORNERS)[:CORNERS])
    return table


OUTLINES = _outline_table()


def _polygon_distance(x: torch.Tensor, y: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """Signed distance of points [n, h, w] to polygons [n, corner, 2], negative inside."""
    nearest = torch.full_like(x, 1e9)
    inside = torch.zeros_like(x, dtype=torch.bool)
    starts = corners.roll(1, dims=1)
    for index in range(corners.shape[1]):
        ax, ay = corners[:, index, 0, None, None], corners[:, index, 1, None, None]
        bx, by = starts[:, index, 0, None, None], starts[:, index, 1, None, None]
        ex, ey = bx - ax, by - ay
        along = ((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey).clamp_min(1e-12)
        along = along.clamp(0, 1)
        nearest = torch.minimum(nearest, (x - ax - ex * along) ** 2 + (y - ay - ey * along) ** 2)
        slope = ex / torch.where(ey.abs() < 1e-9, torch.full_like(ey, 1e-9), ey)
        inside ^= ((ay > y) != (by > y)) & (x < slope * (y - ay) + ax)
    return nearest.sqrt() * torch.where(inside, -1.0, 1.0)


def _shape_distance(x: torch.Tensor, y: torch.Tensor, shapes: torch.Tensor) -> torch.Tensor:
    """Signed distance of points [n, h, w] to shapes [n] of radius 1."""
    round_ones = shapes == SHAPES.index("circle")
    distance = torch.empty_like(x)
    distance[round_ones] = torch.hypot(x[round_ones], y[round_ones]) - CIRCLE_RADIUS
    polygons = ~round_ones
    if polygons.any():
        corners = OUTLINES[shapes[polygons]]
        distance[polygons] = _polygon_distance(x[polygons], y[polygons], corners)
    return distance


def render(scenes: list[Scene], windows: list[Window] | int) -> torch.Tensor:
    """Draw the scenes, each through its window or whole at the given side, as [n, 3, side, side]."""
    if isinstance(windows, int):
        windows = [Window(windows, 0, 0, windows)] * len(scenes)
    grounds = torch.tensor([COLOURS.index(scene.ground) for scene in scenes])
    side = windows[0].side
    picture = PALETTE_TENSOR[grounds][:, :, None, None].repeat(1, 1, side, side)
    for layer in range(2):
        rows = [i for i, scene in enumerate(scenes) if len(scene.things) > layer]
        if rows:
            things = [scenes[i].things[layer] for i in rows]
            alpha = _coverage(things, [windows[i] for i in rows])
            paint = PALETTE_TENSOR[[COLOURS.index(t.colour) for t in things]][:, :, None, None]
            picture[rows] = torch.lerp(picture[rows], paint, alpha)
    return picture


def _coverage(things: list[Thing], windows: list[Window]) -> torch.Tensor:
    """How much of each pixel each thing covers, as [n, 1, side, side]: a one pixel wide ramp."""
    side = windows[0].side
    pixels = torch.arange(side) + 0.5
    column = {"x": [t.x for t in things], "y": [t.y for t in things]}
    radius = torch.tensor([t.radius for t in things])[:, None, None]
    full = torch.tensor([w.full for w in windows])[:, None, None]
    left = torch.tensor([w.left for w in windows])[:, None, None]
    top = torch.tensor([w.top for w in windows])[:, None, None]
    x = ((pixels[None, None, :] + left) / full - torch.tensor(column["x"])[:, None, None]) / radius
    y = ((pixels[None, :, None] + top) / full - torch.tensor(column["y"])[:, None, None]) / radius
    shapes = torch.tensor([SHAPES.index(t.shape) for t in things])
    area = (len(things), side, side)
    distance = _shape_distance(x.expand(area), y.expand(area), shapes)
    return (0.5 - distance * radius * full).clamp(0, 1)[:, None]
