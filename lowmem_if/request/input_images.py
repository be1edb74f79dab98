"""Image files that a user gives: find them, measure them, and identify them by content."""

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
"""The EXIF tag of the orientation, and its values that swap width and height."""

_FIRST_IS_WHOLE = ("MPO",)
"""Formats whose further images are previews or stereo views of the first."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file of the user.

    Attributes:
        path: its absolute path; a run keeps a copy and no longer needs the file.
        width, height: in pixels, after EXIF's rotation.
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
        """Ratio of its longer side to its shorter side."""
        return max(self.width, self.height) / min(self.width, self.height)


def look_at(path: str | Path) -> Picture:
    """Measure an image file; its pixels are decoded only when a run begins.

    Raises:
        PictureError: the file is missing, not an image, an animation, or too large to open.
    """
    with opened(path) as image:
        width, height = image.size
        # Pillow rotates a TIFF itself.
        if image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE:
            width, height = height, width
    file = Path(path).expanduser().resolve()
    with _reported(file), file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Picture(str(file), width, height, digest)


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """An image opened by Pillow but not decoded; its errors become `PictureError`."""
    from PIL import Image

    with _reported(path), warnings.catch_warnings():
        # Pillow warns above its limit and refuses above twice the limit; only the refusal matters here.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(Path(path).expanduser()) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format not in _FIRST_IS_WHOLE:
                raise PictureError(
                    f"{path} contains {frames} images: save the one you want as a file of its own"
                )
            yield image


@contextmanager
def _reported(path: str | Path) -> Iterator[None]:
    """Turn any error of Pillow into a `PictureError` of one line."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{path} does not exist: give the path of an image") from None
    except IsADirectoryError:
        raise PictureError(f"{path} is a folder: give the path of an image") from None
    except UnidentifiedImageError:
        raise PictureError(
            f"{path} is not an image that Pillow can read: use PNG or JPEG"
        ) from None
    except Image.DecompressionBombError:
        raise PictureError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels, "
            "Pillow's limit: scale it down first"
        ) from None
    except PermissionError as error:
        raise PictureError(f"{path} cannot be read ({error.strerror})") from error
    # Decoders raise many types for broken files (OSError, SyntaxError, EOFError, struct.error ...).
    except MemoryError:
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise PictureError(f"{path} is a broken image ({first}): save it again") from error
