"""From a prompt, or a picture and a prompt, to pictures in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from lowmem_if.engine.options import DrawOptions, GenerateOptions, InpaintOptions
from lowmem_if.engine.results import RunResult
from lowmem_if.engine.session import Session
from lowmem_if.request.pictures.picture_objects import PictureLike


def generate(prompts: str | Sequence[str], **options: Unpack[GenerateOptions]) -> RunResult:
    """Draw pictures from text: measure the machine, plan, run.

    Args:
        prompts: one text or several.
        options: see `GenerateOptions`: among them `cascade`, `size`, `seed`, `images`, `steps`, `out`.

    Returns:
        The run's folder, its pictures as files, what every step took, and notices.

    Raises:
        RequestError: an unknown option, or a value that no cascade could run.
        LowmemError: see the tree in `lowmem_if.errors`.
    """
    with Session(keep_loaded=False) as session:
        return session.generate(prompts, **options)


def vary(
    image: PictureLike, prompts: str | Sequence[str] = "", **options: Unpack[DrawOptions]
) -> RunResult:
    """Draw a picture again, following a text or a style.

    Args:
        image: a path, a PIL image, a numpy array (height, width[, 3 or 4]) of uint8 or of floats from 0
            to 1, a torch tensor (3, height, width), the bytes of a file, or an open binary file. The
            result has its proportions.
        prompts: what the new picture shows; may be empty if `style_prompt` is given.
        options: see `DrawOptions`: among them `strength` and `style_prompt`.

    Raises:
        LowmemError: as `generate`, and `PictureError` for a picture that cannot be used.
    """
    with Session(keep_loaded=False) as session:
        return session.vary(image, prompts, **options)


def inpaint(
    image: PictureLike,
    mask: PictureLike,
    prompts: str | Sequence[str],
    **options: Unpack[InpaintOptions],
) -> RunResult:
    """Draw a part of a picture again.

    Args:
        image: as for `vary`; the result has its proportions.
        mask: a picture of the same size, white where to repaint. It may be an array or a tensor of
            booleans, True where to repaint. Levels below a half count as black.
        prompts: what the whole new picture shows.
        options: see `InpaintOptions`: among them `strength`; `invert_mask` repaints the black parts,
            `mask_alpha` the transparent ones.

    Raises:
        LowmemError: as `generate`, and `PictureError` for pictures that cannot be used and for
            masks that repaint nothing.
    """
    with Session(keep_loaded=False) as session:
        return session.inpaint(image, mask, prompts, **options)


def upscale(
    image: PictureLike, prompts: str | Sequence[str] = "", **options: Unpack[DrawOptions]
) -> RunResult:
    """Enlarge a picture.

    Args:
        image: as for `vary`. If its shorter side has up to 64 pixels, stage 2 enlarges it to 256 and
            the upscaler to 1024, or stage 2 alone with `size=256`. The upscaler enlarges a larger
            picture four times, in tiles where it must.
        prompts: what it shows, which helps; may be empty.
        options: see `DrawOptions`.

    Raises:
        LowmemError: as `generate`, and `PictureError` for a picture that cannot be used.
    """
    with Session(keep_loaded=False) as session:
        return session.upscale(image, prompts, **options)
