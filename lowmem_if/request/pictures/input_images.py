"""Images that a user gives: find files, measure images, and identify them by content."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lowmem_if.errors import PictureError

_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)
"""The EXIF tag of the orientation, and its values that swap width and height."""

_FIRST_IS_WHOLE = ("MPO",)
"""Formats whose further images are previews or stereo views of the first."""


WHITE, BLACK, TRANSPARENT, OPAQUE = "white", "black", "transparent", "opaque"
"""The parts of a mask that can be repainted; white is, if nothing else was asked for."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the user.

    Attributes:
        path: absolute path of its file, or in angle brackets what it is if it is no file, like
            `<PIL image>`. A run keeps a copy and needs neither file nor object again.
        width, height: in pixels, after EXIF's rotation.
        digest: SHA-256 of the file, or of the pixels.
        repaints: the part of a mask that is repainted: `white`, `black`, `transparent` or `opaque`.
            Empty for an image, and for a mask whose pixels have not been looked at.
        content: an image file in memory, if the user gave an object; it is in no JSON.
    """

    path: str
    width: int
    height: int
    digest: str
    repaints: str = ""
    content: Annotated[bytes | None, Field(exclude=True)] = field(
        default=None, repr=False, compare=False
    )

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
    if "://" in str(path):
        raise PictureError(f"{path} is an address: download the image, and give its path")
    with opened(path) as image:
        width, height = _upright_size(image)
    file = Path(path).expanduser().resolve()
    with reported(file), file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Picture(str(file), width, height, digest)


def look_at_content(content: bytes, name: str) -> Picture:
    """Measure an image file that is in memory; `name` says what it is.

    Raises:
        PictureError: as `look_at`.
    """
    with opened(name, content) as image:
        width, height = _upright_size(image)
    return Picture(name, width, height, hashlib.sha256(content).hexdigest(), content=content)


def _upright_size(image: Any) -> tuple[int, int]:
    width, height = image.size
    # Pillow rotates a TIFF itself.
    if image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE:
        return height, width
    return width, height


@contextmanager
def opened(path: str | Path, content: bytes | None = None) -> Iterator[Any]:
    """An image opened by Pillow but not decoded; its errors become `PictureError`.

    Args:
        path: the file, or the name of an image that is in memory.
        content: the file in memory.
    """
    from PIL import Image

    source = Path(path).expanduser() if content is None else io.BytesIO(content)
    with reported(path), warnings.catch_warnings():
        # Pillow warns above its limit and refuses above twice the limit; only the refusal matters here.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(source) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format not in _FIRST_IS_WHOLE:
                raise PictureError(
                    f"{path} contains {frames} images: save the one you want as a file of its own"
                )
            yield image


@contextmanager
def reported(path: str | Path) -> Iterator[None]:
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
