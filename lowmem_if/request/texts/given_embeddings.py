"""A user's file of prompt embeddings: find it and identify it by content; a run keeps copies."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowmem_if.cascade.safetensors_header import unreadable
from lowmem_if.errors import EmbeddingsError, RequestError

PICKLED, SAFETENSORS, NPZ = (".pth", ".pt"), ".safetensors", ".npz"
SUFFIXES = (*PICKLED, SAFETENSORS, NPZ)
"""The ends of file names that say how embeddings are stored."""


@dataclass(frozen=True, slots=True)
class GivenEmbeddings:
    """A file of prompt embeddings.

    Attributes:
        path: its absolute path. Requests with the same content are the same.
        digest: SHA-256 of the file.
    """

    path: str = field(compare=False)
    digest: str


def given_embeddings(given: Any) -> GivenEmbeddings | None:
    """The file at a path; its tensors are read when a run begins.

    Raises:
        RequestError: `given` is no path.
        EmbeddingsError: the file is missing, cannot be read, or its name has an unknown end.
    """
    if given is None or isinstance(given, GivenEmbeddings):
        return given
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise RequestError(f"embeds {given!r} is not the path of a file of prompt embeddings")
    file = Path(os.path.abspath(Path(given).expanduser()))  # noqa: PTH100  a link keeps its name
    check_suffix(file)
    return GivenEmbeddings(str(file), embeddings_digest(file))


def check_suffix(file: Path) -> str:
    """The end of a file's name, in small letters.

    Raises:
        EmbeddingsError: it says no format of embeddings.
    """
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise EmbeddingsError(
            f"{file} is no file of prompt embeddings: its name must end in {', '.join(SUFFIXES)}"
        )
    return suffix


def embeddings_digest(file: Path) -> str:
    """SHA-256 of a file.

    Raises:
        EmbeddingsError: it is missing or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise EmbeddingsError(
            f"{file} does not exist: give a file of prompt embeddings, as `lowmem-if embed` writes it"
        ) from None
    except OSError as error:
        raise EmbeddingsError(str(unreadable(file, error))) from error
