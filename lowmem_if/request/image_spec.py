"""One image of a run, with everything that is its own."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import IMAGE_STAGES, STAGE_1, STAGE_2, UPSCALER
from lowmem_if.cascade.modes import INPAINT, MODES, REDRAWN, TEXT, UPSCALE, VARY
from lowmem_if.errors import PictureError, RequestError
from lowmem_if.request.input_images import Picture
from lowmem_if.request.tiling import UPSCALER_SIDE, boxes

_SMALL_SIDE = 64
"""Pictures with a shorter side of up to this are what stage 2 enlarges; larger ones it never saw."""

_LARGEST_ASPECT = 4.0
"""What a stage's memory is planned for; IF was trained on squares and draws worse long before."""

_STYLED = 1.5
"""A UNet draws a style beside the prompt and the negative prompt: three pictures, not two."""

FACTOR = 4
"""What each stage behind the first multiplies the sides of a picture by."""
_LARGEST_RESULT = 1024 * 1024 * 1024 // 4 // 3
"""Pixels of an enlarged picture: the most that Pillow opens again without a warning."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One image of a run.

    Attributes:
        number: in the run folder.
        size: shorter side of the finished picture; of an enlarged one what leads there.
        mode: one of `MODES`.
        image, mask: the user's pictures, of `vary`, `inpaint` and `upscale`.
        strength: how much of `image` is noised away, in stages 1 and 2; None: the mode's own.
        style_prompt: for `vary`: the style, where `prompt` says what is there.
        aspect: width and height of a picture from text alone, in any unit.

    Raises:
        RequestError: values that do not go together.
        PictureError: a picture no stage takes, or a mask that is not of its picture's size.
    """

    number: int
    prompt: str
    seed: int
    negative_prompt: str = ""
    size: int = 1024
    mode: str = TEXT
    image: Picture | None = None
    mask: Picture | None = None
    strength: tuple[float, ...] | None = None
    style_prompt: str = ""
    aspect: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_values(self)
        _check_pictures(self)
        if self.mode == UPSCALE:
            _check_enlarging(self)

    @property
    def name(self) -> str:
        return f"{self.number:04}"

    @property
    def words(self) -> str:
        """What the picture shows; a style alone says that too."""
        return self.prompt if self.prompt.strip() else self.style_prompt

    @property
    def is_styled(self) -> bool:
        """Whether a style is mixed into what the prompt shows; alone it is an ordinary prompt."""
        return bool(self.style_prompt.strip() and self.prompt.strip())

    @property
    def stages(self) -> tuple[str, ...]:
        """The components that draw this picture, in order."""
        if self.mode == UPSCALE and self.image:
            # The upscaler takes whatever stage 2 never saw, long strips among it.
            small = min(self.image.width, self.image.height) <= _SMALL_SIDE
            strip = self.image.aspect > _LARGEST_ASPECT
            return catalog.SIZES[self.size][1:] if small and not strip else (UPSCALER,)
        return catalog.SIZES[self.size]

    @property
    def is_enlarged_as_it_is(self) -> bool:
        """Whether the upscaler gets the user's own picture, which may be of any size."""
        return self.stages == (UPSCALER,)

    @property
    def needs_t5(self) -> bool:
        """Whether a stage reads its prompts through T5; the upscaler has an encoder of its own."""
        return bool({STAGE_1, STAGE_2} & set(self.stages))

    @property
    def proportions(self) -> tuple[int, int]:
        """Width and height of what the stages draw, in any unit."""
        if self.image:
            return self.image.width, self.image.height
        return self.aspect or (1, 1)

    @property
    def area(self) -> float:
        """Its pixels over those of a square with the same shorter side."""
        width, height = self.proportions
        return max(width, height) / min(width, height)

    def area_in(self, component: str) -> float:
        """What a component draws at once or holds of it, over the square that it was made for."""
        if component not in (*IMAGE_STAGES, catalog.POSTPROCESS):
            return 1.0
        if self.image and self.is_enlarged_as_it_is:
            return self.image.width * self.image.height / UPSCALER_SIDE**2
        return _STYLED * self.area if self.is_styled and component != UPSCALER else self.area

    def parts(self, tile: int) -> int:
        """In how many tiles of that side the upscaler draws it; 1 of what is never cut."""
        if self.image is None or not self.is_enlarged_as_it_is:
            return 1
        return len(boxes(self.image.width, self.image.height, tile))

    def drawn_with(self, other: ImageSpec) -> bool:
        """Whether a stage can draw both at once: by one pipeline, in one shape."""
        return (self.mode, self.strength, self.proportions, self.is_styled) == (
            other.mode, other.strength, other.proportions, other.is_styled,
        )  # fmt: skip


def _check_values(spec: ImageSpec) -> None:
    if spec.mode not in MODES:
        raise RequestError(f"unknown mode {spec.mode!r}: use one of {', '.join(MODES)}")
    wanted = {"image": spec.mode != TEXT, "mask": spec.mode == INPAINT}
    for name, needed in wanted.items():
        if needed and getattr(spec, name) is None:
            raise RequestError(f"{spec.mode} needs {'an image' if name == 'image' else 'a mask'}")
        if not needed and getattr(spec, name) is not None:
            raise RequestError(f"{spec.mode} takes no {name}")
    if spec.strength is not None and spec.mode not in REDRAWN:
        raise RequestError(f"{spec.mode} has no strength: it is for {' and '.join(REDRAWN)}")
    if spec.style_prompt and spec.mode != VARY:
        raise RequestError(f"{spec.mode} has no style prompt: it is for {VARY}")
    if spec.aspect and spec.image:
        raise RequestError("the picture decides the aspect: leave it out, or crop the picture")
    if spec.mode != UPSCALE and not (spec.prompt.strip() or spec.style_prompt.strip()):
        raise RequestError("the prompt is empty: say what the picture should show")
    if spec.mode == UPSCALE and spec.size == min(catalog.SIZES):
        raise RequestError(f"nothing enlarges to {spec.size} pixels: upscale with size 256 or 1024")


def _check_pictures(spec: ImageSpec) -> None:
    image, mask = spec.image, spec.mask
    if image and mask and (image.width, image.height) != (mask.width, mask.height):
        raise PictureError(
            f"the image is {image.size} pixels and the mask is {mask.size}: they must be alike "
            f"({mask.path})"
        )
    if spec.needs_t5 and spec.area > _LARGEST_ASPECT:
        what = f"{image.path} is {image.size}" if image else "the aspect is"
        raise PictureError(
            f"{what} longer than {_LARGEST_ASPECT:.0f}:1, which the stages do not draw: "
            + ("crop it" if image else "ask for a squarer picture")
        )


def _check_enlarging(spec: ImageSpec) -> None:
    image = spec.image
    assert image is not None
    pixels = image.width * image.height
    if spec.stages == (UPSCALER,) and spec.size != max(catalog.SIZES):
        raise PictureError(
            f"{image.path} is {image.size}: stage 2 enlarges up to {_SMALL_SIDE} pixels, no strips; "
            f"without a size the upscaler makes it {FACTOR * image.width}x{FACTOR * image.height}"
        )
    if pixels * FACTOR**2 > _LARGEST_RESULT:
        side = int((_LARGEST_RESULT / FACTOR**2) ** 0.5)
        raise PictureError(
            f"{image.path} is {image.size}, which would become {pixels * FACTOR**2 / 1e6:.0f} million "
            f"pixels: upscale takes up to some {side}x{side}"
        )
