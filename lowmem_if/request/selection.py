"""Choose, then enlarge: what is asked for when pictures of a finished run go on to a larger size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lowmem_if.cascade import catalog
from lowmem_if.errors import RequestError
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.request import Request


def picked(request: Request, numbers: Sequence[int], size: int) -> tuple[ImageSpec, ...]:
    """The pictures of a request that have these numbers, each once, if all of them can be enlarged.

    Raises:
        RequestError: a number is none of the request's, or the picture has that size already.
    """
    images = request.images
    if size not in catalog.SIZES:
        raise RequestError(f"size {size!r} is not one of 64, 256 and 1024")
    if not numbers:
        raise RequestError("no picture is picked: give their numbers, like --pick 3,7")
    for number in numbers:
        if not 0 <= number < len(images):
            raise RequestError(
                f"there is no picture {number}: pick from 0 to {len(images) - 1}, the files' numbers"
            )
        _check_larger(images[number], size)
    return tuple(images[number] for number in dict.fromkeys(numbers))


def alone(request: Request, picks: Sequence[ImageSpec], size: int) -> Request:
    """The request for these images and nothing else, in this order, at another size."""
    images = (replace(spec, number=n, size=size) for n, spec in enumerate(picks))
    return replace(request, images=tuple(images), gallery=True)


def among_others(request: Request, picks: Sequence[ImageSpec], size: int) -> Request:
    """The request for all its images, under their numbers, these at another size."""
    chosen = {spec.number for spec in picks}
    images = (replace(s, size=size) if s.number in chosen else s for s in request.images)
    return replace(request, images=tuple(images), gallery=True)


def _check_larger(spec: ImageSpec, size: int) -> None:
    if size <= spec.size:
        raise RequestError(
            f"picture {spec.number} has {spec.size} pixels: give --size more than that, up to 1024"
        )
    larger = replace(spec, size=size)
    if larger.stages[: len(spec.stages)] != spec.stages:
        raise RequestError(
            f"picture {spec.number} was made by {spec.mode} at {spec.size} pixels, which does not lead "
            f"to {size}: upscale its file"
        )
