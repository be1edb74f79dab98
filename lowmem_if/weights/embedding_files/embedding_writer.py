"""Write files of prompt embeddings, one embedding in memory at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowmem_if.errors import EmbeddingsError
from lowmem_if.request.texts.given_embeddings import NPZ, SAFETENSORS, check_suffix
from lowmem_if.units import shorten
from lowmem_if.weights.embedding_files.npz_file import write_npz
from lowmem_if.weights.embedding_files.pickled_dict import write_pickled
from lowmem_if.weights.embedding_files.prompt_names import INDEX, index_text, names_of
from lowmem_if.weights.embedding_files.stored_embedding import DTYPES, StoredEmbedding
from lowmem_if.weights.files.atomic import whole_file
from lowmem_if.weights.files.safetensors_writer import NewTensor, header_bytes

if TYPE_CHECKING:
    import numpy

Read = Callable[[str], StoredEmbedding]
"""The embedding of a prompt."""


def write_embeddings(
    file: Path, prompts: Sequence[str], read: Read, dtype: str, scratch: Path
) -> None:
    """Write the embeddings of prompts; the file exists whole or not at all.

    Args:
        file: its end decides the format: `.pth`, `.pt`, `.safetensors` or `.npz`.
        prompts: each once, in the order in which the file has them.
        dtype: `float16` or `float32`.
        scratch: an empty folder on a disk with room for the embeddings.

    Raises:
        EmbeddingsError: the file cannot be written, or a number is too large for `dtype`.
    """
    suffix = check_suffix(file)

    def array_of(prompt: str) -> numpy.ndarray[Any, Any]:
        return _finite(read(prompt).as_array(dtype), prompt, dtype)

    try:
        with whole_file(file) as partial:
            if suffix == SAFETENSORS:
                _write_safetensors(partial, prompts, array_of, dtype)
            elif suffix == NPZ:
                write_npz(partial, prompts, array_of)
            else:
                write_pickled(partial, prompts, array_of, scratch / "embeddings.raw")
    except OSError as error:
        full = error.errno == errno.ENOSPC
        raise EmbeddingsError(
            f"{file} cannot be written ({error.strerror or error}): "
            + ("free some space" if full else "choose another place")
            + " and run the same command again"
        ) from error


def check_writable(file: Path) -> None:
    """Raise `EmbeddingsError` if a file of embeddings could not be written: nothing is encoded first."""
    check_suffix(file)
    folder = file.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddingsError(f"{folder} cannot be made ({error.strerror})") from error
    if file.is_dir() or not os.access(folder, os.W_OK):
        what = f"{file} is a folder" if file.is_dir() else f"{folder} may not be written"
        raise EmbeddingsError(f"{what}: give --out another name")


def _finite(array: numpy.ndarray[Any, Any], prompt: str, dtype: str) -> numpy.ndarray[Any, Any]:
    import numpy

    if not numpy.isfinite(array).all():
        raise EmbeddingsError(
            f"the embedding of {shorten(prompt, 40)!r} has numbers that {dtype} cannot hold: "
            "use --dtype float32"
        )
    return array


def _write_safetensors(
    file: Path, prompts: Sequence[str], array_of: Callable[[str], Any], dtype: str
) -> None:
    names = names_of(prompts)
    index = index_text(names)
    shape = array_of(prompts[0]).shape
    tensors = [NewTensor(name, DTYPES[dtype], shape) for name in names.values()]
    with file.open("wb") as stream:
        stream.write(header_bytes(tensors, {INDEX: index} if index else {}))
        for prompt in names:
            stream.write(array_of(prompt).tobytes())
