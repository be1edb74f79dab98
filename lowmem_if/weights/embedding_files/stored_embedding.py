"""One embedding as a file stores it: its number type, its shape and its bytes, without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowmem_if.cascade.catalog import MAX_TOKENS
from lowmem_if.cascade.safetensors_header import TENSOR_NAME, read_header, unreadable
from lowmem_if.errors import CheckpointError, EmbeddingsError
from lowmem_if.units import shorten
from lowmem_if.weights.files.safetensors_writer import NewTensor, header_bytes

if TYPE_CHECKING:
    import numpy

FLOAT16, FLOAT32, BFLOAT16 = "F16", "F32", "BF16"
DTYPES = {"float16": FLOAT16, "float32": FLOAT32, "bfloat16": BFLOAT16}
"""The number types of embeddings, and how safetensors spells them."""

_NUMPY = {FLOAT16: "<f2", FLOAT32: "<f4", BFLOAT16: "<u2"}
_INFINITE = 0x7F80
"""The exponent's bits of a bfloat16; all of them are set in NaN and infinity."""

Entry = tuple[str, tuple[int, ...], Callable[[], bytes]]
"""One tensor of an open file: its number type, its shape, and what reads its bytes."""


@dataclass(frozen=True, slots=True)
class StoredEmbedding:
    """The embedding of one prompt.

    Attributes:
        dtype: `F16`, `F32` or `BF16`.
        shape: (1, 77, width).
        content: its numbers in this type, the lowest byte first.
    """

    dtype: str
    shape: tuple[int, ...]
    content: bytes

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        import numpy

        numbers = numpy.frombuffer(self.content, _NUMPY[self.dtype])
        if self.dtype == BFLOAT16:
            return bool(((numbers & _INFINITE) != _INFINITE).all())
        return bool(numpy.isfinite(numbers).all())

    def as_array(self, dtype: str) -> numpy.ndarray[Any, Any]:
        """The numbers in `float16` or `float32`, shaped; too large ones become infinite."""
        import numpy

        numbers: Any = numpy.frombuffer(self.content, _NUMPY[self.dtype])
        if self.dtype == BFLOAT16:  # the upper half of a float32
            numbers = (numbers.astype("<u4") << 16).view("<f4")
        with numpy.errstate(over="ignore"):
            numbers = numbers.astype(_NUMPY[DTYPES[dtype]], copy=False)
        array: numpy.ndarray[Any, Any] = numbers.reshape(self.shape)
        return array

    def as_tensor_file(self, **metadata: str) -> bytes:
        """The content of a run folder's file for it, with `metadata`; `load_tensor` reads it."""
        tensor = NewTensor(TENSOR_NAME, self.dtype, self.shape)
        return header_bytes([tensor], metadata) + self.content

    @staticmethod
    def from_tensor_file(file: Path) -> StoredEmbedding:
        """The embedding in a run folder's file.

        Raises:
            CheckpointError: the file is missing or broken.
        """
        header = read_header(file).get(TENSOR_NAME)
        if header is None:
            raise CheckpointError(f"{file}: it holds no tensor")
        try:
            with file.open("rb") as stream:
                stream.seek(header.offset)
                return StoredEmbedding(header.dtype, header.shape, stream.read(header.size_bytes))
        except OSError as error:
            raise unreadable(file, error) from error


def check_form(prompt: str, dtype: str, shape: tuple[int, ...], width: int) -> None:
    """Check what is known of an embedding without its numbers.

    Args:
        dtype: its number type, in whatever spelling the file has.
        width: numbers per token that the cascade reads; 0: any.

    Raises:
        EmbeddingsError: it is no embedding, or the one of another text encoder. The file is not named.
    """
    what = f"the embedding of {shorten(prompt, 40)!r}"
    if dtype not in DTYPES.values():
        raise EmbeddingsError(f"{what} has numbers of type {dtype}: use {', '.join(DTYPES)}")
    wanted = (1, MAX_TOKENS, width or (shape[-1] if shape else 0))
    if shape != wanted or not wanted[-1]:
        known = width or "width"
        raise EmbeddingsError(
            f"{what} has shape {shape}, and this cascade's text encoder makes (1, {MAX_TOKENS}, {known})"
        )
