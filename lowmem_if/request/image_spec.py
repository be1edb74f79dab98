"""The specification of one image in a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import UPSCALER
from lowmem_if.cascade.modes import EMBED, INPAINT, MODES, REDRAWN, TEXT, UPSCALE, VARY
from lowmem_if.errors import PictureError, RequestError
from lowmem_if.request.checks import checked_aspect, checked_size, checked_strength, checked_text
from lowmem_if.request.input_tiles import UPSCALER_SIDE, boxes
from lowmem_if.request.pictures.input_images import Picture
from lowmem_if.units import unknown_name

_SMALL_SIDE = 64
"""Longest shorter side of an image that stage 2 enlarges; it was not trained on larger ones."""

_LARGEST_ASPECT = 4.0
"""Largest aspect that memory is planned for. IF was trained on squares and draws worse well below it."""

_STYLED = 1.5
"""A style adds a third UNet input to the prompt and the negative prompt: 3 instead of 2."""

FACTOR = 4
"""Factor by which stage 2 and the upscaler enlarge the sides of an image."""
_LARGEST_RESULT = 1024 * 1024 * 1024 // 4 // 3
"""Most pixels of an enlarged image: Pillow opens this many without a warning."""


Check = Callable[[Any], Any]
"""Turns what a user gives into a field's value, or raises `RequestError`."""


def _checked_by(check: Check) -> dict[str, Check]:
    """Mark a field as an option, which a user may set for all images, and a row for its own."""
    return {"check": check}


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One image of a run.

    An option of an image is a field here, with its check, and a key of `PictureOptions`.

    Attributes:
        number: its number in the run folder.
        size: shorter side of the finished image; in mode `upscale` it selects the stages instead.
        mode: one of `MODES`, or `embed`: only the prompt is encoded.
        image, mask: the user's images, for `vary`, `inpaint` and `upscale`.
        strength: share of `image` that noise replaces, in stages 1 and 2; None: the mode's default.
        style_prompt: the style, for `vary`; `prompt` describes the content.
        aspect: width and height of an image from text, in any unit.

    Raises:
        RequestError: two values contradict each other.
        PictureError: no stage accepts the image, or the mask has another size.
    """

    number: int
    prompt: str
    seed: int
    negative_prompt: str = field(default="", metadata=_checked_by(checked_text))
    size: int = field(default=1024, metadata=_checked_by(checked_size))
    mode: str = field(default=TEXT, metadata=_checked_by(_unchanged))
    image: Picture | None = field(default=None, metadata=_checked_by(_unchanged))
    mask: Picture | None = field(default=None, metadata=_checked_by(_unchanged))
    strength: tuple[float, ...] | None = field(default=None, metadata=_checked_by(checked_strength))
    style_prompt: str = field(default="", metadata=_checked_by(checked_text))
    aspect: tuple[int, int] | None = field(default=None, metadata=_checked_by(checked_aspect))

    def __post_init__(self) -> None:
        _check_values(self)
        _check_pictures(self)
        if self.mode == UPSCALE:
            _check_enlargement(self)

    @property
    def name(self) -> str:
        return f"{self.number:04}"

    @property
    def words(self) -> str:
        """The text that describes the image: the prompt, or the style if there is no prompt."""
        return self.prompt if self.prompt.strip() else self.style_prompt

    @property
    def is_styled(self) -> bool:
        """Whether a style is combined with a prompt; a style without a prompt is an ordinary prompt."""
        return bool(self.style_prompt.strip() and self.prompt.strip())

    @property
    def stages(self) -> tuple[str, ...]:
        """The image stages that this image runs through, in order; none if nothing is drawn."""
        if self.mode == EMBED:
            return ()
        if self.mode == UPSCALE and self.image:
            # The upscaler enlarges what stage 2 was not trained on, including long strips.
            small = min(self.image.width, self.image.height) <= _SMALL_SIDE
            strip = self.image.aspect > _LARGEST_ASPECT
            return catalog.SIZES[self.size][1:] if small and not strip else (UPSCALER,)
        return catalog.SIZES[self.size]

    @property
    def is_enlarged_as_it_is(self) -> bool:
        """Whether the upscaler enlarges the user's own image, which may have any size."""
        return self.stages == (UPSCALER,)

    @property
    def needs_t5(self) -> bool:
        """Whether a stage needs T5 embeddings of its prompts; the upscaler has its own encoder."""
        return self.mode == EMBED or any(catalog.facts(stage).reads_t5 for stage in self.stages)

    @property
    def proportions(self) -> tuple[int, int]:
        """Width and height of the images that the stages draw, in any unit."""
        if self.image:
            return self.image.width, self.image.height
        return self.aspect or (1, 1)

    @property
    def area(self) -> float:
        """Ratio of its pixels to those of a square with the same shorter side."""
        width, height = self.proportions
        return max(width, height) / min(width, height)

    def area_in(self, component: str) -> float:
        """Ratio of the pixels that a component processes to those of the square it was trained on."""
        if catalog.facts(component).encodes:
            return 1.0
        if self.image and self.is_enlarged_as_it_is:
            return self.image.width * self.image.height / UPSCALER_SIDE**2
        return (
            _STYLED * self.area
            if self.is_styled and catalog.facts(component).reads_t5
            else self.area
        )

    def parts(self, tile: int) -> int:
        """How many tiles with this side the upscaler draws; 1 for images that are never tiled."""
        if self.image is None or not self.is_enlarged_as_it_is:
            return 1
        return len(boxes(self.image.width, self.image.height, tile))

    def drawn_with(self, other: ImageSpec) -> bool:
        """Whether a stage can draw both in one batch: with the same pipeline and shape."""
        return (self.mode, self.strength, self.proportions, self.is_styled) == (
            other.mode, other.strength, other.proportions, other.is_styled,
        )  # fmt: skip


OPTIONS: dict[str, tuple[Any, Check]] = {
    each.name: (each.default, each.metadata["check"])
    for each in fields(ImageSpec)
    if "check" in each.metadata
}
"""Name of an image's option -> its default and its check."""


class PictureOptions(TypedDict, total=False):
    """What a picture should be like, as callers give it; a row of a batch may set each for itself.

    Attributes:
        negative_prompt: what the pictures should not show.
        size: shorter side of the finished pictures in pixels: 64, 256 or 1024.
        strength: how much of the input picture is replaced by noise, above 0 and up to 1: one number
            for stages 1 and 2, or one for each. None: the mode's default.
        style_prompt: how the picture is drawn, where the prompt says what it shows (mode `vary`).
        aspect: width and height, like `3:2` or (3, 2), of pictures drawn from text.
    """

    negative_prompt: str
    size: int
    strength: float | Iterable[float] | None
    style_prompt: str
    aspect: str | Iterable[int] | None


def _check_values(spec: ImageSpec) -> None:
    if spec.mode not in (*MODES, EMBED):
        raise unknown_name("mode", spec.mode, MODES)
    wanted = {"image": spec.mode not in (TEXT, EMBED), "mask": spec.mode == INPAINT}
    for name, needed in wanted.items():
        if needed and getattr(spec, name) is None:
            raise RequestError(f"{spec.mode} needs {'an image' if name == 'image' else 'a mask'}")
        if not needed and getattr(spec, name) is not None:
            raise RequestError(f"{spec.mode} takes no {name}")
    if spec.strength is not None and spec.mode not in REDRAWN:
        raise RequestError(f"{spec.mode} takes no strength: only {' and '.join(REDRAWN)} do")
    if spec.style_prompt and spec.mode != VARY:
        raise RequestError(f"{spec.mode} takes no style prompt: only {VARY} does")
    if spec.aspect and spec.image:
        raise RequestError("the input image sets the aspect: leave it out, or crop the image")
    if spec.mode not in (UPSCALE, EMBED) and not (spec.prompt.strip() or spec.style_prompt.strip()):
        raise RequestError("the prompt is empty: describe the image")
    if spec.mode == UPSCALE and spec.size == min(catalog.SIZES):
        raise RequestError(f"no stage enlarges to {spec.size} pixels: use size 256 or 1024")


def _check_pictures(spec: ImageSpec) -> None:
    image, mask = spec.image, spec.mask
    if image and mask and (image.width, image.height) != (mask.width, mask.height):
        raise PictureError(
            f"the image is {image.size} pixels and the mask is {mask.size}: save the mask in the "
            f"size of the image ({mask.path})"
        )
    if spec.needs_t5 and spec.area > _LARGEST_ASPECT:
        what = f"{image.path} ({image.size})" if image else "the aspect"
        raise PictureError(
            f"{what} is longer than {_LARGEST_ASPECT:.0f}:1, which the stages do not draw: "
            + ("crop the image" if image else "choose an aspect closer to 1:1")
        )


def _check_enlargement(spec: ImageSpec) -> None:
    image = spec.image
    assert image is not None
    pixels = image.width * image.height
    if spec.is_enlarged_as_it_is and spec.size != max(catalog.SIZES):
        raise PictureError(
            f"{image.path} is {image.size}: stage 2 enlarges images up to {_SMALL_SIDE} pixels, not "
            "strips; leave out the size, and the upscaler makes it "
            f"{FACTOR * image.width}x{FACTOR * image.height}"
        )
    if pixels * FACTOR**2 > _LARGEST_RESULT:
        side = int((_LARGEST_RESULT / FACTOR**2) ** 0.5)
        raise PictureError(
            f"{image.path} is {image.size}, which would become {pixels * FACTOR**2 / 1e6:.0f} million "
            f"pixels: upscale accepts up to about {side}x{side}"
        )
