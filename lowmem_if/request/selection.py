"""Select images of a finished run, and make the request that enlarges them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lowmem_if.cascade import catalog
from lowmem_if.errors import RequestError
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.request import Request


def picked(request: Request, numbers: Sequence[int], size: int) -> tuple[ImageSpec, ...]:
    """The images of a request with these numbers, each once, if all of them can be enlarged.

    Raises:
        RequestError: the request has no image with a number, or an image already has this size.
    """
    images = request.images
    if size not in catalog.SIZES:
        raise RequestError(f"size {size!r} is not one of 64, 256 and 1024")
    if not numbers:
        raise RequestError("no image is picked: give numbers, like --pick 3,7")
    for number in numbers:
        if not 0 <= number < len(images):
            raise RequestError(
                f"there is no image {number}: pick numbers from 0 to {len(images) - 1}"
            )
        _check_larger(images[number], size)
    return tuple(images[number] for number in dict.fromkeys(numbers))


def alone(request: Request, picks: Sequence[ImageSpec], size: int) -> Request:
    """The request for only these images, in this order, at another size."""
    images = (replace(spec, number=n, size=size) for n, spec in enumerate(picks))
    return replace(request, images=tuple(images), gallery=True)


def among_others(request: Request, picks: Sequence[ImageSpec], size: int) -> Request:
    """The request for all its images with their numbers, the picked ones at another size."""
    chosen = {spec.number for spec in picks}
    images = (replace(s, size=size) if s.number in chosen else s for s in request.images)
    return replace(request, images=tuple(images), gallery=True)


def _check_larger(spec: ImageSpec, size: int) -> None:
    if size <= spec.size:
        raise RequestError(
            f"image {spec.number} has {spec.size} pixels: give a larger --size, up to 1024"
        )
    larger = replace(spec, size=size)
    if larger.stages[: len(spec.stages)] != spec.stages:
        raise RequestError(
            f"image {spec.number} was drawn by {spec.mode} at {spec.size} pixels and cannot be "
            f"continued to {size}: use upscale with its file"
        )
