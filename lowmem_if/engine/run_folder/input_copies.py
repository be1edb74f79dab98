"""Copies of the user's pictures in the run folder: decoded once, upright, in 8 bits.

A run reads only these copies, so it can be resumed when the original files have been deleted.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from lowmem_if.errors import PictureError, RunFolderError
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.input_images import Picture, look_at, opened

IMAGE, MASK = "image", "mask"
KINDS = (IMAGE, MASK)
"""What a picture is used for: an image is kept as RGB, a mask in grey, white where to repaint."""

_MOST_PIXELS = 4096 * 4096
"""Larger pictures are shrunk first: no stage reads more than 256 pixels of their shorter side, and a
decoded picture takes several bytes a pixel."""

_GREYS = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}
"""Pillow's deep grey modes and their white level; Pillow itself would clip them at 255."""


def source_name(picture: Picture, kind: str) -> str:
    """The name of a picture's copy in a run folder: a hash of its content."""
    return f"{kind}-{picture.digest[:32]}.png"


def inputs(specs: Iterable[ImageSpec]) -> Iterator[tuple[ImageSpec, str]]:
    """Each input picture as the image that it belongs to and its kind."""
    return ((spec, kind) for spec in specs for kind in KINDS if getattr(spec, kind) is not None)


def source_bytes(spec: ImageSpec, kind: str) -> bytes:
    """The content of the copy of an input image or mask: a PNG file.

    Raises:
        PictureError: it is broken, or has changed since the request was made.
    """
    picture: Picture = getattr(spec, kind)
    if look_at(picture.path) != picture:
        raise PictureError(f"{picture.path} has changed just now: run the command again")
    with opened(picture.path) as image:
        stream = io.BytesIO()
        _decoded(image, kind).save(stream, "PNG")
    return stream.getvalue()


def read_source(file: Path) -> Image.Image:
    """Read a picture's copy.

    Raises:
        RunFolderError: its file is missing or broken.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError) as error:
        raise RunFolderError(
            f"{file} is missing or broken ({error}): start a new folder"
        ) from error


def _decoded(image: Any, kind: str) -> Image.Image:
    """Upright, flattened and in 8 bits."""
    upright = ImageOps.exif_transpose(_flat(_shallow(_smaller(image)), kind))
    upright.info.clear()  # GPS places, colour profiles, the colour that was transparent
    return upright


def _smaller(image: Any) -> Any:
    """The picture, shrunk by a whole factor if it is huge: an image and its mask to the same size."""
    factor = math.ceil(math.sqrt(image.width * image.height / _MOST_PIXELS))
    if factor == 1:
        return image
    size = -(-image.width // factor), -(-image.height // factor)
    image.draft(None, size)  # a JPEG file is decoded at a smaller size
    if image.mode in ("P", "PA", "1"):
        image = image.convert("RGBA" if _has_alpha(image) else "RGB")
    return _shallow(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _shallow(image: Any) -> Any:
    """The picture with deep grey converted to 8 bits."""
    if image.mode not in _GREYS:
        return image
    import numpy  # takes a tenth of a second, and only here

    levels = numpy.asarray(image)
    white = _GREYS[image.mode]
    if levels.min() < 0 or levels.max() > white:
        raise PictureError(
            f"{getattr(image, 'filename', 'the picture')} has levels from {levels.min()} to "
            f"{levels.max()}, and white is {white}: save it as 8 bits"
        )
    grey = Image.fromarray((levels * (255 / white) + 0.5).astype(numpy.uint8))
    return _oriented_as(grey, image)


def _flat(image: Any, kind: str) -> Any:
    """The picture without transparency: transparent pixels become white in an image, black in a mask."""
    mode = "RGB" if kind == IMAGE else "L"
    if not _has_alpha(image):
        return image.convert(mode)
    ground = Image.new("RGBA", image.size, "white" if kind == IMAGE else "black")
    ground.alpha_composite(image.convert("RGBA"))
    return _oriented_as(ground.convert(mode), image)


def _oriented_as(picture: Image.Image, other: Any) -> Image.Image:
    """The picture with the EXIF data, and so the orientation, of the other."""
    if exif := other.info.get("exif"):
        picture.info["exif"] = exif
    return picture


def _has_alpha(image: Any) -> bool:
    return bool(image.has_transparency_data)
