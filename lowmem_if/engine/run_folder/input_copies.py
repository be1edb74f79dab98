"""Copies of the user's pictures in the run folder: decoded once, upright, in 8 bits.

A run reads only these copies, so it can be resumed when the original files have been deleted.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from lowmem_if.errors import PictureError, RunFolderError
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.pictures.decoding import decoded_image, decoded_mask
from lowmem_if.request.pictures.input_images import WHITE, Picture, look_at, opened

IMAGE, MASK = "image", "mask"
KINDS = (IMAGE, MASK)
"""What a picture is used for: an image is kept as RGB, a mask in grey, white where to repaint."""


def source_name(picture: Picture, kind: str) -> str:
    """The name of a picture's copy in a run folder: a hash of its content, and what a mask repaints."""
    read = f"-{picture.repaints}" if picture.repaints not in ("", WHITE) else ""
    return f"{kind}-{picture.digest[:32]}{read}.png"


def inputs(specs: Iterable[ImageSpec]) -> Iterator[tuple[ImageSpec, str]]:
    """Each input picture as the image that it belongs to and its kind."""
    return ((spec, kind) for spec in specs for kind in KINDS if getattr(spec, kind) is not None)


def source_bytes(spec: ImageSpec, kind: str) -> bytes:
    """The content of the copy of an input image or mask: a PNG file.

    Raises:
        PictureError: it is broken, or has changed since the request was made.
    """
    picture: Picture = getattr(spec, kind)
    if picture.content is None:
        _check_file(picture)
    with opened(picture.path, picture.content) as image:
        stream = io.BytesIO()
        whole = decoded_image(image) if kind == IMAGE else decoded_mask(image, picture.repaints)
        whole.save(stream, "PNG")
    return stream.getvalue()


def _check_file(picture: Picture) -> None:
    """Raise `PictureError` unless a picture's file is the one that the request was made for."""
    if picture.path.startswith("<"):
        raise PictureError(
            f"the plan names {picture.path} but does not contain it: make the request again"
        )
    if look_at(picture.path).digest != picture.digest:
        raise PictureError(f"{picture.path} has changed just now: run the command again")


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
