"""Pictures that a user brings: found, measured upright, and told apart by content; not decoded here."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_if.errors import PictureError

_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)
"""EXIF's tag, and those of its values that swap width and height."""

_FIRST_IS_WHOLE = ("MPO",)
"""Formats whose further pictures are previews or other eyes' views of the first."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture file of the user.

    Attributes:
        path: where it was, as an absolute path; a begun run does not need it any more.
        width, height: in pixels, as it is looked at (EXIF's rotation done).
        digest: SHA-256 of the file.
    """

    path: str
    width: int
    height: int
    digest: str

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def aspect(self) -> float:
        """Its longer side over its shorter one."""
        return max(self.width, self.height) / min(self.width, self.height)


def look_at(path: str | Path) -> Picture:
    """Measure a picture file; its pixels are decoded only when a run begins.

    Raises:
        PictureError: it is not there, is no picture, is an animation, or is too large to open.
    """
    with opened(path) as image:
        width, height = image.size
        # A TIFF is turned by Pillow itself.
        if image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE:
            width, height = height, width
    file = Path(path).expanduser().resolve()
    with _told(file), file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Picture(str(file), width, height, digest)


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A picture as Pillow opens it, not decoded yet; what goes wrong with it is a `PictureError`."""
    from PIL import Image

    with _told(path), warnings.catch_warnings():
        # Between its limit and twice that Pillow only warns; beyond it refuses, and so do we.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(Path(path).expanduser()) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format not in _FIRST_IS_WHOLE:
                raise PictureError(
                    f"{path} holds {frames} pictures: save the one you mean as its own file"
                )
            yield image


@contextmanager
def _told(path: str | Path) -> Iterator[None]:
    """Whatever Pillow says of a broken file, in one line of ours."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{path} is not there: give the path of a picture") from None
    except IsADirectoryError:
        raise PictureError(f"{path} is a folder: give the path of a picture") from None
    except UnidentifiedImageError:
        raise PictureError(f"{path} is no picture that Pillow can read: use PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise PictureError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels, "
            "Pillow's limit: make it smaller first"
        ) from None
    except PermissionError as error:
        raise PictureError(f"{path} cannot be read ({error.strerror})") from error
    # Decoders raise what they like for broken files (OSError, SyntaxError, EOFError, struct.error ...).
    except MemoryError:
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise PictureError(f"{path} is a broken picture ({first}): save it again") from error
