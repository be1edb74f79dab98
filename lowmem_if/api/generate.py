"""From a prompt, or a picture and a prompt, to pictures in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from lowmem_if.engine.options import DrawOptions, GenerateOptions
from lowmem_if.engine.runner import RunResult
from lowmem_if.engine.session import Session


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
    image: str | Path, prompts: str | Sequence[str] = "", **options: Unpack[DrawOptions]
) -> RunResult:
    """Draw a picture again, following a text or a style.

    Args:
        image: a picture file; the result has its proportions.
        prompts: what the new picture shows; may be empty if `style_prompt` is given.
        options: see `DrawOptions`: among them `strength` and `style_prompt`.

    Raises:
        LowmemError: as `generate`, and `PictureError` for a picture that cannot be used.
    """
    with Session(keep_loaded=False) as session:
        return session.vary(image, prompts, **options)


def inpaint(
    image: str | Path,
    mask: str | Path,
    prompts: str | Sequence[str],
    **options: Unpack[DrawOptions],
) -> RunResult:
    """Draw a part of a picture again.

    Args:
        image: a picture file; the result has its proportions.
        mask: a picture of the same size, white where to repaint.
        prompts: what the whole new picture shows.
        options: see `DrawOptions`: among them `strength`.

    Raises:
        LowmemError: as `generate`, and `PictureError` for pictures that cannot be used.
    """
    with Session(keep_loaded=False) as session:
        return session.inpaint(image, mask, prompts, **options)


def upscale(
    image: str | Path, prompts: str | Sequence[str] = "", **options: Unpack[DrawOptions]
) -> RunResult:
    """Enlarge a picture.

    Args:
        image: a picture file. If its shorter side has up to 64 pixels, stage 2 enlarges it to 256 and
            the upscaler to 1024, or stage 2 alone with `size=256`. The upscaler enlarges a larger
            picture four times, in tiles where it must.
        prompts: what it shows, which helps; may be empty.
        options: see `DrawOptions`.

    Raises:
        LowmemError: as `generate`, and `PictureError` for a picture that cannot be used.
    """
    with Session(keep_loaded=False) as session:
        return session.upscale(image, prompts, **options)
