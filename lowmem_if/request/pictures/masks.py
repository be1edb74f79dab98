"""What a mask repaints: its white parts, or its black, transparent or opaque ones if asked for.

A mask that repaints nothing is refused before anything is loaded, with the likely reason: the run
would take its whole time and return the picture as it was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lowmem_if.cascade.catalog import STAGE_1, facts
from lowmem_if.errors import PictureError
from lowmem_if.request.pictures.decoding import decoded_mask, has_alpha, plain
from lowmem_if.request.pictures.input_images import (
    BLACK,
    OPAQUE,
    TRANSPARENT,
    WHITE,
    Picture,
    opened,
)

_REPAINTED = 128
"""The lowest level that is repainted: the pipelines cut a mask at a half (`preprocess_mask_image`)."""

_MOST_COLOURS = 256
"""How many colours the visible part of a mask has at most; more are a picture with a hole in it."""


def mask_of(picture: Picture, *, invert: bool | None = None, alpha: bool | None = None) -> Picture:
    """A mask with the part that it repaints.

    Args:
        picture: a mask whose pixels were looked at is not read again, unless it is to repaint another
            part.
        invert: repaint black instead of white, or opaque instead of transparent parts.
        alpha: repaint transparent parts, as masks of OpenAI's API mean it.

    Raises:
        PictureError: a file that is missing or broken, or a mask that repaints nothing.
    """
    if picture.repaints and invert is None and alpha is None:
        return picture
    repaints = (OPAQUE if invert else TRANSPARENT) if alpha else (BLACK if invert else WHITE)
    if picture.repaints == repaints:
        return picture
    _check(picture, repaints)
    return replace(picture, repaints=repaints)


def _check(picture: Picture, repaints: str) -> None:
    """Raise `PictureError` for a mask that repaints nothing, or is a picture with a hole."""
    with opened(picture.path, picture.content) as image:
        shown = plain(image) if has_alpha(image) else None
        transparent = shown is not None and _extremes(shown.getchannel("A"))[0] < _REPAINTED
        if repaints == WHITE and transparent and _is_photograph(shown):
            raise PictureError(
                f"the mask {picture.path} is a picture with transparent parts, and white repaints: "
                "--mask-alpha repaints the transparent parts"
            )
        if repaints in (TRANSPARENT, OPAQUE) and not transparent:
            raise PictureError(
                f"the mask {picture.path} has no transparent parts: "
                "leave out --mask-alpha, and white repaints"
            )
        levels = decoded_mask(image, repaints)
    darkest, brightest = _extremes(levels)
    if brightest == 1 or (repaints == BLACK and darkest == 255 - 1):
        raise PictureError(
            f"the mask {picture.path} has the levels 0 and 1 of 255, which are both black: "
            "save 1 as 255 (in Python, give mask > 0)"
        )
    if brightest < _REPAINTED:
        reason = _reason(repaints, transparent, brightest)
        raise PictureError(f"the mask {picture.path} repaints nothing: {reason}")
    if _extremes(as_stage_1_sees(levels))[1] < _REPAINTED:
        raise PictureError(
            f"the mask {picture.path} repaints too little: at stage 1's {facts(STAGE_1).side} pixels "
            f"nothing of it is left; enlarge its {repaints} part"
        )


def _reason(repaints: str, transparent: bool, brightest: int) -> str:
    """Why a mask repaints nothing, and what helps."""
    if repaints != WHITE:
        return f"it has no {repaints} part; leave out the option, and white repaints"
    if transparent:
        return (
            "it is dark on transparent, and white repaints; --invert-mask repaints the dark part, "
            "--mask-alpha the transparent part"
        )
    if brightest == 0:
        return "it is black everywhere, and white repaints; paint the part to repaint white"
    return (
        f"its brightest level is {brightest} of 255, and levels from {_REPAINTED} on repaint; "
        "paint the part to repaint white (dark colours such as red count as black)"
    )


def _extremes(grey: Any) -> tuple[int, int]:
    """The lowest and the highest level."""
    lowest, highest = grey.getextrema()
    return lowest, highest


def _is_photograph(image: Any) -> bool:
    """Whether the visible part of a mask in RGBA has more colours than a mask has."""
    from PIL import Image

    visible = image.getchannel("A").point(lambda level: 255 if level == 255 else 0)
    shown = Image.new("RGB", image.size)
    shown.paste(image.convert("RGB"), mask=visible)
    return shown.getcolors(_MOST_COLOURS) is None


def as_stage_1_sees(mask: Any) -> Any:
    """The mask in the size that diffusers gives it for stage 1 (`resize` of `IFInpaintingPipeline`)."""
    from PIL import Image

    side, aspect = facts(STAGE_1).side, mask.width / mask.height
    width = round(side / 8 * max(1, aspect)) * 8
    height = round(side / 8 * max(1, 1 / aspect)) * 8
    return mask.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=None)
