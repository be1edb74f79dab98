"""The user's pictures, decoded once into the run folder: upright, 8 bits, of one kind each.

A run needs them from there only, so it can be continued when the files it began with are gone.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from lowmem_if.errors import PictureError, RunFolderError
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.input_images import Picture, look_at, opened

IMAGE, MASK = "image", "mask"
KINDS = (IMAGE, MASK)
"""What a source is for: an image is kept as RGB, a mask in grey with white where to repaint."""

_MOST_PIXELS = 4096 * 4096
"""Larger pictures are shrunk before anything else is done with them: no stage looks at more than 256
pixels of their shorter side, and decoded they take several bytes a pixel."""

_GREYS = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}
"""Pillow's deep grey modes and what white is in them; it would cut them off at 255."""


def source_name(picture: Picture, kind: str) -> str:
    """The file that a picture is kept under in a run folder, by its content."""
    return f"{kind}-{picture.digest[:32]}.png"


def source_bytes(task: ImageSpec, kind: str) -> bytes:
    """A task's image or mask as it is kept: a PNG file.

    Raises:
        PictureError: it is broken, or has changed since it was looked at.
    """
    picture: Picture = getattr(task, kind)
    if look_at(picture.path) != picture:
        raise PictureError(f"{picture.path} has changed just now: run the command again")
    with opened(picture.path) as image:
        stream = io.BytesIO()
        _decoded(image, kind).save(stream, "PNG")
    return stream.getvalue()


def read_source(file: Path) -> Image.Image:
    """A picture as it was kept.

    Raises:
        RunFolderError: its file is gone or broken.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError) as error:
        raise RunFolderError(f"{file} is gone or broken ({error}): start a new folder") from error


def _decoded(image: Any, kind: str) -> Image.Image:
    """Upright, flattened and in 8 bits."""
    upright = ImageOps.exif_transpose(_flat(_shallow(_smaller(image)), kind))
    upright.info.clear()  # places, profiles, transparency that is none any more
    return upright


def _smaller(image: Any) -> Any:
    """The picture, shrunk by a whole factor if it is huge: an image and its mask to the same size."""
    factor = math.ceil(math.sqrt(image.width * image.height / _MOST_PIXELS))
    if factor == 1:
        return image
    size = -(-image.width // factor), -(-image.height // factor)
    image.draft(None, size)  # JPEG is decoded small in the first place
    if image.mode in ("P", "PA", "1"):
        image = image.convert("RGBA" if _has_alpha(image) else "RGB")
    return _shallow(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _shallow(image: Any) -> Any:
    """Deep grey as 8 bits."""
    if image.mode not in _GREYS:
        return image
    import numpy  # a tenth of a second that no other command has to wait for

    levels = numpy.asarray(image)
    white = _GREYS[image.mode]
    if levels.min() < 0 or levels.max() > white:
        raise PictureError(
            f"{getattr(image, 'filename', 'the picture')} has levels from {levels.min()} to "
            f"{levels.max()}, and white is {white}: save it as 8 bits"
        )
    grey = Image.fromarray((levels * (255 / white) + 0.5).astype(numpy.uint8))
    return _turned_as(grey, image)


def _flat(image: Any, kind: str) -> Any:
    """Without transparency: what cannot be seen is white in an image, and left alone by a mask."""
    mode = "RGB" if kind == IMAGE else "L"
    if not _has_alpha(image):
        return image.convert(mode)
    ground = Image.new("RGBA", image.size, "white" if kind == IMAGE else "black")
    ground.alpha_composite(image.convert("RGBA"))
    return _turned_as(ground.convert(mode), image)


def _turned_as(picture: Image.Image, other: Any) -> Image.Image:
    """The picture with what the other says of its orientation."""
    if exif := other.info.get("exif"):
        picture.info["exif"] = exif
    return picture


def _has_alpha(image: Any) -> bool:
    return bool(image.has_transparency_data)
