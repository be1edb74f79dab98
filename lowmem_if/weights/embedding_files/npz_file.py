"""Embeddings in numpy's `.npz` files, one array at a time, never by pickle."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lowmem_if.errors import EmbeddingsError
from lowmem_if.weights.embedding_files.prompt_names import (
    INDEX,
    index_text,
    names_of,
    prompts_of,
)
from lowmem_if.weights.embedding_files.stored_embedding import FLOAT16, FLOAT32, Entry

if TYPE_CHECKING:
    import numpy

_END = ".npy"
_SPELLED = {("f", 2): FLOAT16, ("f", 4): FLOAT32}
_LONGEST_INDEX = 100_000_000
"""Bytes of an index of prompts: as many as a safetensors header may have."""


@contextmanager
def npz_entries(path: Path) -> Iterator[dict[str, Entry]]:
    """The arrays of a file; their headers are read now, their numbers on demand.

    Raises:
        EmbeddingsError: the file is broken, or holds Python objects.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError) as error:
        raise EmbeddingsError(f"it is no npz file ({error}); fetch or copy it again") from error
    with archive:
        members = [member.filename.removesuffix(_END) for member in archive.infolist()]
        if len(set(members)) < len(members):
            raise EmbeddingsError("it has two arrays of one name: save it again")
        index = _index(archive) if INDEX in members else ""
        names = prompts_of((name for name in members if name != INDEX), index)
        yield {prompt: _entry(archive, name) for prompt, name in names.items()}


def write_npz(
    path: Path, prompts: Sequence[str], array_of: Callable[[str], numpy.ndarray[Any, Any]]
) -> None:
    """Write a file with the array of each prompt; only one array is in memory at a time."""
    import numpy

    names = names_of(prompts)
    with zipfile.ZipFile(path, "w") as archive:
        for prompt, name in names.items():
            _write(archive, name, array_of(prompt))
        if index := index_text(names):
            _write(archive, INDEX, numpy.frombuffer(index.encode(), numpy.uint8))


def _write(archive: zipfile.ZipFile, name: str, array: Any) -> None:
    from numpy.lib import format as npy

    # Without the time of writing: the same embeddings are the same bytes.
    with archive.open(zipfile.ZipInfo(name + _END), "w", force_zip64=True) as member:
        npy.write_array(member, array, allow_pickle=False)


def _entry(archive: zipfile.ZipFile, name: str) -> Entry:
    with _member(archive, name) as stream:
        shape, dtype = _header(stream)
    spelled = _SPELLED.get((dtype.kind, dtype.itemsize), str(dtype))
    return spelled, shape, partial(_content, archive, name)


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    array = _array(archive, name)
    content: bytes = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return content


def _index(archive: zipfile.ZipFile) -> str:
    with _member(archive, INDEX) as stream:
        shape, dtype = _header(stream)
        if dtype.kind != "u" or dtype.itemsize != 1 or shape > (_LONGEST_INDEX,) or len(shape) != 1:
            raise EmbeddingsError("its index of prompts is broken: save it again")
    content: bytes = _array(archive, INDEX).tobytes()
    return content.decode("utf-8", errors="replace")


def _array(archive: zipfile.ZipFile, name: str) -> Any:
    from numpy.lib import format as npy

    with _member(archive, name) as stream:
        return npy.read_array(stream, allow_pickle=False)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    """(Shape, number type) of an array; nothing is read that its shape does not bound."""
    from numpy.lib import format as npy

    readers: Mapping[tuple[int, int], Any] = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
    }
    version = npy.read_magic(stream)
    if version not in readers:
        raise EmbeddingsError(f"it holds an array in version {version[0]} of numpy's format")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise EmbeddingsError("it holds Python objects, which are never unpickled: save arrays")
    return shape, dtype


@contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """An open member; numpy's and zipfile's own errors become an `EmbeddingsError`."""
    try:
        with archive.open(_as_stored(archive, name)) as stream:
            yield stream
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError,
            zlib.error) as error:  # fmt: skip
        raise EmbeddingsError(
            f"its array {name[:60]!r} is broken ({error}); fetch or copy the file again"
        ) from error


def _as_stored(archive: zipfile.ZipFile, name: str) -> str:
    return name + _END if name + _END in archive.NameToInfo else name
