"""The workload of a component in a run: texts to encode, and groups of images that are drawn alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lowmem_if.cascade import catalog
from lowmem_if.cascade.modes import defaults_for
from lowmem_if.cascade.parts import Cascade
from lowmem_if.cascade.transfer_sizes import GUIDED_IMAGES
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.input_tiles import UPSCALER_SIDE, boxes
from lowmem_if.request.request import Request
from lowmem_if.request.sampling import Sampling

_FOR_ALL = (catalog.TEXT_ENCODER, catalog.POSTPROCESS)


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts to encode, and images that are drawn alike.

    Attributes:
        texts: how many texts are encoded.
        images: how many images are drawn.
        area: ratio of an image's pixels to those of the square that the stage was trained on.
        cut_from: width and height of an image that the upscaler may enlarge in tiles; None: no tiles.
    """

    texts: int
    images: int
    sampling: Sampling | None = None
    area: float = 1.0
    cut_from: tuple[int, int] | None = None

    @property
    def guided(self) -> int:
        """UNet inputs per image: two with guidance, otherwise one."""
        return GUIDED_IMAGES if self.sampling and self.sampling.is_guided else 1

    def parts(self, tile: int) -> int:
        """How many tiles with this side each image is drawn in."""
        return len(boxes(*self.cut_from, tile)) if self.cut_from else 1

    def part_area(self, tile: int) -> float:
        """`area` of one UNet input: of the whole image, or of one tile."""
        return min(self.area, (tile / UPSCALER_SIDE) ** 2) if self.cut_from and tile else self.area


def images_of(request: Request, component: str) -> list[ImageSpec]:
    """The images of a request that a component works on."""
    return [spec for spec in request.images if component in (*spec.stages, *_FOR_ALL)]


def samplings_of(request: Request, cascade: Cascade, component: str) -> dict[str, Sampling]:
    """How a component samples in each mode of its images; empty if it samples nothing.

    The strength is the one of the first image in a mode.
    """
    first: dict[str, ImageSpec] = {}
    for spec in images_of(request, component):
        first.setdefault(spec.mode, spec)
    found = {}
    for mode, spec in first.items():
        if defaults := defaults_for(cascade, mode, component):
            found[mode] = request.sampling.in_stage(component, defaults).of(spec, component)
    return found


def workloads_of(request: Request, cascade: Cascade, component: str) -> tuple[Workload, ...]:
    """All workloads of a component in a request; never empty."""
    images, samplings = images_of(request, component), samplings_of(request, cascade, component)
    facts = catalog.facts(component)
    if facts.encodes:
        texts = _texts(images, guided=request.sampling.is_guided)
        return (Workload(len(texts), len(images)),)
    alike = Counter(
        (
            samplings[spec.mode].of(spec, component) if samplings else None,
            spec.area_in(component),
            _cut_from(spec) if facts.decodes else None,
        )
        for spec in images
    )
    return tuple(Workload(0, number, *key) for key, number in alike.items()) or (Workload(0, 0),)


def _texts(images: list[ImageSpec], *, guided: bool) -> set[str]:
    """The different texts to encode: prompts, styles and, with guidance, negative prompts."""
    encoded = [spec for spec in images if spec.needs_t5]
    texts = {text for spec in encoded for text in (spec.words, spec.style_prompt) if text}
    return texts | ({spec.negative_prompt for spec in encoded} if guided else set())


def _cut_from(spec: ImageSpec) -> tuple[int, int] | None:
    return (
        (spec.image.width, spec.image.height) if spec.image and spec.is_enlarged_as_it_is else None
    )
