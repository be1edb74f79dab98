"""Images as Python programs have them: paths, PIL images, arrays, tensors, bytes, open files.

Every object becomes a `Picture`. Objects are copied when they are given, so a later change does not
matter. Tensors are recognised by their methods; no torch is imported.
"""

from __future__ import annotations

import hashlib
import io
import os
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from lowmem_if.errors import RequestError
from lowmem_if.request.pictures.decoding import plain
from lowmem_if.request.pictures.input_images import Picture, look_at, look_at_content, reported

if TYPE_CHECKING:
    from PIL import Image

ACCEPTED = (
    "give a path, a PIL image, a numpy array (height, width[, 3 or 4]) of uint8 or of floats "
    "from 0 to 1, a torch tensor (3, height, width), the bytes of an image file, or such a file "
    "opened as 'rb'"
)

_CHANNELS = (1, 3, 4)
_TENSOR = ("detach", "cpu", "numpy")
"""The methods by which a tensor of torch is recognised; its channels come first."""

_ROUNDING = 1 / 512
"""How far floats may be outside 0 to 1: half a level of 8 bits, as resizing and 16 bits leave them."""


_SWAPPED = {
    True: "whose channels come last: give x.permute(2, 0, 1)",
    False: "whose channels come first: give x.transpose(1, 2, 0)",
}


class ArrayLike(Protocol):
    """Something that numpy reads: an array, or a tensor of torch."""

    def __array__(self) -> Any: ...


class BinaryFile(Protocol):
    """A file opened in binary mode, or an object like `io.BytesIO`."""

    def read(self) -> bytes: ...


PictureLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | ArrayLike | Image.Image"
    " | Picture"
)
"""What an image or a mask may be given as."""


def picture_of(given: Any, what: str) -> Picture:
    """The picture that a user gives; `what` says in messages what it is for: `image` or `mask`.

    Floats are kept in 8 bits. A leading dimension of 1 is dropped: (1, 3, height, width) is one picture.

    Raises:
        RequestError: an object of another type, shape or number type, or numbers that are not levels.
        PictureError: a file that is missing or broken.
    """
    from PIL import Image

    if isinstance(given, Picture):
        return given
    if isinstance(given, str | os.PathLike):
        return look_at(os.fsdecode(given))
    if isinstance(given, bytes | bytearray | memoryview):
        return look_at_content(bytes(given), "<bytes>")
    if isinstance(given, Image.Image):
        return _of_pil(given, "<PIL image>")
    if hasattr(given, "read"):
        return look_at_content(_read(given, what), "<open file>")
    if hasattr(given, "__array__"):
        name = "<torch tensor>" if _is_tensor(given) else "<numpy array>"
        return _of_pil(Image.fromarray(_levels(given, what)), name)
    raise RequestError(f"the {what} has type {_type(given)}: {ACCEPTED}")


def _of_pil(image: Image.Image, name: str) -> Picture:
    """The current frame of an image object; its digest is that of its pixels."""
    from PIL import ImageOps

    with reported(name):
        image.load()
        upright = ImageOps.exif_transpose(image)
        small = plain(upright)
        stream = io.BytesIO()
        small.save(stream, "PNG", compress_level=1)
    head = f"{small.mode} {small.width}x{small.height} ".encode()
    digest = hashlib.sha256(head + small.tobytes()).hexdigest()
    return Picture(name, upright.width, upright.height, digest, content=stream.getvalue())


def _read(file: Any, what: str) -> bytes:
    """The whole content of a file, wherever its position is; the position is kept."""
    try:
        position = file.tell() if getattr(file, "seekable", bool)() else None
        if position is not None:
            file.seek(0)
        content = file.read()
        if position is not None:
            file.seek(position)
    except (OSError, ValueError) as error:  # a closed file is a ValueError
        raise RequestError(f"the {what} cannot be read ({error}): open the file again") from error
    if not isinstance(content, bytes | bytearray | memoryview):
        raise RequestError(
            f"the {what} has type {_type(file)} and reads {type(content).__name__}: open it as 'rb'"
        )
    return bytes(content)


def _levels(given: Any, what: str) -> Any:
    """An array or a tensor as levels in 8 bits, (height, width) or (height, width, 3 or 4).

    Raises:
        RequestError: another shape or number type, NaN, or floats outside 0 to 1.
    """
    import numpy

    array = _array(given, what)
    name = f"the {what} has type {_type(given)}, shape {array.shape} and {array.dtype} numbers"
    array = _channels_last(array, name, first=_is_tensor(given))
    if array.dtype == numpy.bool_:
        array = array.astype(numpy.uint8) * numpy.uint8(255)
    elif numpy.issubdtype(array.dtype, numpy.floating):
        array = _from_floats(array.astype(numpy.float32), name)
    elif array.dtype != numpy.uint8:
        raise RequestError(f"{name}: {ACCEPTED}")
    return numpy.ascontiguousarray(array)


def _array(given: Any, what: str) -> Any:
    """A numpy array of an object; a tensor of any device and number type."""
    import numpy

    try:
        if _is_tensor(given):
            tensor = given.detach().cpu()
            given = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return numpy.asarray(given)
    except MemoryError:
        raise
    except Exception as error:  # each library has its own: other devices, sparse and fake tensors
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise RequestError(
            f"the {what} has type {_type(given)} and cannot be read ({first}): {ACCEPTED}"
        ) from error


def _is_tensor(given: Any) -> bool:
    return all(hasattr(given, name) for name in _TENSOR)


def _channels_last(array: Any, name: str, *, first: bool) -> Any:
    """The array as (height, width) or (height, width, 3 or 4)."""
    import numpy

    shape = array.shape
    if len(shape) == 4 and shape[0] > 1:
        raise RequestError(f"{name}, which is a batch: give one picture of it, like batch[0]")
    if len(shape) == 4:
        array = array[0]
    if array.ndim == 3:
        here, there = (0, -1) if first else (-1, 0)
        if array.shape[here] not in _CHANNELS:
            if array.shape[there] in _CHANNELS:
                raise RequestError(f"{name}, {_SWAPPED[first]}")
            raise RequestError(f"{name}: {ACCEPTED}")
        array = numpy.moveaxis(array, here, -1)
        array = array[..., 0] if array.shape[-1] == 1 else array
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise RequestError(f"{name}: {ACCEPTED}")
    return array


def _from_floats(array: Any, name: str) -> Any:
    """Floats from 0 to 1 as levels in 8 bits."""
    import numpy

    low, high = float(array.min()), float(array.max())
    if not numpy.isfinite(array).all():
        raise RequestError(f"{name}, some NaN or infinite: floats go from 0 to 1")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        mend = "scale them"
        if -1 - _ROUNDING <= low < 0 and high <= 1 + _ROUNDING:
            mend = "give (x + 1) / 2"
        elif low >= 0 and high <= 255:
            mend = "divide by 255, or give uint8"
        raise RequestError(
            f"{name} from {low:.4g} to {high:.4g}, but floats go from 0 to 1: {mend}"
        )
    return (array.clip(0, 1) * 255 + 0.5).astype(numpy.uint8)


def _type(given: Any) -> str:
    kind = type(given)
    library = kind.__module__.partition(".")[0]
    return kind.__name__ if library == "builtins" else f"{library} {kind.__name__}"
