"""Read files of prompt embeddings one by one; nothing in them is ever run as code.

`.safetensors` and `.npz` files are read without torch. `.pth` and `.pt` files are pickles: torch reads
them with `weights_only=True`, which makes tensors and plain containers only.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from lowmem_if.cascade.safetensors_header import (
    TensorHeader,
    read_header_and_metadata,
    unreadable,
)
from lowmem_if.errors import CheckpointError, EmbeddingsError
from lowmem_if.request.texts.given_embeddings import NPZ, SAFETENSORS, check_suffix
from lowmem_if.units import shorten
from lowmem_if.weights.embedding_files.npz_file import npz_entries
from lowmem_if.weights.embedding_files.pickled_dict import pickled_entries
from lowmem_if.weights.embedding_files.prompt_names import INDEX, prompts_of
from lowmem_if.weights.embedding_files.stored_embedding import (
    Entry,
    StoredEmbedding,
    check_form,
)

_LISTED, _LISTED_LENGTH = 5, 60
"""How many prompts a message lists, and how many characters of each."""

_NEAR = 0.4
"""Similarity of a prompt that is listed before the others, from 0 to 1."""


class EmbeddingFile:
    """An open file of prompt embeddings."""

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self.path = path
        self._entries = entries

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts that it has embeddings of."""
        return tuple(self._entries)

    def __contains__(self, prompt: object) -> bool:
        return prompt in self._entries

    def check(self, prompt: str, width: int = 0) -> None:
        """Check that there is an embedding for a prompt, without reading its numbers.

        Args:
            width: numbers per token that the cascade reads; 0: any.

        Raises:
            EmbeddingsError: it is missing, or has another shape or number type.
        """
        if prompt not in self._entries:
            raise EmbeddingsError(f"{self.path} {_lacks(prompt, self.prompts)}")
        dtype, shape, _ = self._entries[prompt]
        with named(self.path):
            check_form(prompt, dtype, shape, width)

    def read(self, prompt: str, width: int = 0) -> StoredEmbedding:
        """The embedding of a prompt.

        Raises:
            EmbeddingsError: as `check`, or a number is NaN or infinite, or the file cannot be read.
        """
        self.check(prompt, width)
        dtype, shape, read = self._entries[prompt]
        with named(self.path):
            found = StoredEmbedding(dtype, shape, read())
        if not found.is_finite:
            raise EmbeddingsError(
                f"{self.path}: the embedding of {shorten(prompt, 40)!r} holds NaN or infinite "
                "numbers: encode it again"
            )
        return found


@contextmanager
def opened_embeddings(path: Path) -> Iterator[EmbeddingFile]:
    """Open a file by the end of its name.

    Raises:
        EmbeddingsError: it is missing, broken, in no known format, or holds something else than tensors.
    """
    suffix = check_suffix(path)
    open_entries = _OPENERS.get(suffix, pickled_entries)
    with ExitStack() as stack:
        with named(path):
            entries = stack.enter_context(open_entries(path))
        yield EmbeddingFile(path, entries)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Inside, an error about a file of embeddings becomes an `EmbeddingsError` that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise EmbeddingsError(f"{path} does not exist: give the path of the embeddings") from None
    except OSError as error:
        raise EmbeddingsError(str(unreadable(path, error))) from error
    except (EmbeddingsError, CheckpointError) as error:
        text = str(error)
        raise EmbeddingsError(text if text.startswith(str(path)) else f"{path}: {text}") from error


@contextmanager
def _safetensors_entries(path: Path) -> Iterator[dict[str, Entry]]:
    headers, metadata = read_header_and_metadata(path)
    names = prompts_of(headers, metadata.get(INDEX, ""))
    with path.open("rb") as stream:

        def read(header: TensorHeader) -> bytes:
            stream.seek(header.offset)
            return stream.read(header.size_bytes)

        yield {
            prompt: (headers[name].dtype, headers[name].shape, partial(read, headers[name]))
            for prompt, name in names.items()
        }


_OPENERS: dict[str, Callable[[Path], AbstractContextManager[dict[str, Entry]]]] = {
    SAFETENSORS: _safetensors_entries,
    NPZ: npz_entries,
}


def _lacks(prompt: str, others: Sequence[str]) -> str:
    """What a file has instead of a prompt, the nearest first."""
    near = difflib.get_close_matches(prompt, others, n=_LISTED, cutoff=_NEAR)
    shown = [*near, *(other for other in others[: 2 * _LISTED] if other not in near)][:_LISTED]
    listed = ", ".join(repr(shorten(other, _LISTED_LENGTH)) for other in shown)
    more = f" and {len(others) - len(shown)} more" if len(others) > len(shown) else ""
    what = f"the prompt {shorten(prompt, _LISTED_LENGTH)!r}" if prompt else "the empty prompt ''"
    return f"has no embedding of {what}; it has {listed or 'none'}{more}"
