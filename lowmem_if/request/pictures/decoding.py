"""Decode an image of the user: upright, flattened, in 8 bits; a mask in grey, white where to repaint."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lowmem_if.errors import PictureError
from lowmem_if.request.pictures.input_images import BLACK, OPAQUE, TRANSPARENT

if TYPE_CHECKING:
    from PIL import Image

_MOST_PIXELS = 4096 * 4096
"""Larger pictures are shrunk first: no stage reads more than 256 pixels of their shorter side, and a
decoded picture takes several bytes a pixel."""

_GREYS = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}
"""Pillow's deep grey modes and their white level; Pillow itself would clip them at 255."""

_PALETTES = ("P", "PA", "1")


def decoded_image(image: Any) -> Image.Image:
    """An image in RGB, upright; transparent parts are white.

    Args:
        image: as Pillow opened it.
    """
    return _upright(_flat(_shallow(_smaller(image)), "RGB", "white"))


def decoded_mask(image: Any, repaints: str) -> Image.Image:
    """A mask in grey, upright: white where to repaint.

    Args:
        image: as Pillow opened it.
        repaints: the part to repaint: `white`, `black`, `transparent` or `opaque`. White and black are
            repainted where they are opaque.
    """
    from PIL import ImageOps

    small = _shallow(_smaller(image))
    if repaints in (TRANSPARENT, OPAQUE):
        alpha = small.convert("RGBA").getchannel("A")
        mask = alpha if repaints == OPAQUE else ImageOps.invert(alpha)
        return _upright(_oriented_as(mask, small))
    if repaints == BLACK:
        return _upright(_oriented_as(ImageOps.invert(_flat(small, "L", "white")), small))
    return _upright(_flat(small, "L", "black"))


def plain(image: Image.Image) -> Image.Image:
    """An image upright, in 8 bits and one of the modes L, RGB and RGBA; RGBA if it has transparency."""
    straight = image.convert("LA") if image.mode == "La" else image  # Pillow knows no other way
    small = _shallow(_smaller(straight))
    mode = "RGBA" if has_alpha(small) else "L" if small.mode in ("L", "1") else "RGB"
    return _upright(_oriented_as(small.convert(mode), small))


def has_alpha(image: Any) -> bool:
    """Whether an image has a channel or a colour for transparency."""
    return bool(image.has_transparency_data)


def _upright(image: Any) -> Image.Image:
    from PIL import ImageOps

    upright: Image.Image = ImageOps.exif_transpose(image)
    upright.info.clear()  # GPS places, colour profiles, the colour that was transparent
    return upright


def _smaller(image: Any) -> Any:
    """The picture, shrunk by a whole factor if it is huge: an image and its mask to the same size."""
    from PIL import Image

    factor = math.ceil(math.sqrt(image.width * image.height / _MOST_PIXELS))
    if factor <= 1:
        return image
    size = -(-image.width // factor), -(-image.height // factor)
    image.draft(None, size)  # a JPEG file is decoded at a smaller size
    if image.mode in _PALETTES:
        image = image.convert("RGBA" if has_alpha(image) else "RGB")
    return _shallow(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _shallow(image: Any) -> Any:
    """The picture with deep grey converted to 8 bits."""
    if image.mode not in _GREYS:
        return image
    import numpy  # takes a tenth of a second, and only here
    from PIL import Image

    levels = numpy.asarray(image)
    white = _GREYS[image.mode]
    if not (levels.min() >= 0 and levels.max() <= white):
        raise PictureError(
            f"{getattr(image, 'filename', '') or 'the picture'} has levels from {levels.min()} to "
            f"{levels.max()}, and white is {white}: save it as 8 bits"
        )
    grey = Image.fromarray((levels * (255 / white) + 0.5).astype(numpy.uint8))
    return _oriented_as(grey, image)


def _flat(image: Any, mode: str, ground: str) -> Any:
    """The picture in a mode without transparency; transparent pixels get the colour of the ground."""
    from PIL import Image

    if not has_alpha(image):
        return image.convert(mode)
    flat = Image.new("RGBA", image.size, ground)
    flat.alpha_composite(image.convert("RGBA"))
    return _oriented_as(flat.convert(mode), image)


def _oriented_as(picture: Image.Image, other: Any) -> Image.Image:
    """The picture with the EXIF data, and so the orientation, of the other."""
    if exif := other.info.get("exif"):
        picture.info["exif"] = exif
    return picture
