"""Embeddings as a dictionary that `torch.save` wrote: the form in which courses hand them out.

Only here a process that plans and prints imports torch.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowmem_if.errors import EmbeddingsError
from lowmem_if.units import shorten
from lowmem_if.weights.embedding_files.stored_embedding import DTYPES, Entry

if TYPE_CHECKING:
    import numpy

_ONLY_MAPPED = "mmap can only be used with files saved with"
"""Torch's words about a file in its format before 1.6, which cannot be mapped."""


@contextmanager
def pickled_entries(path: Path) -> Iterator[dict[str, Entry]]:
    """The tensors of a dictionary, in the file's mapped pages; no code in the file is run.

    Raises:
        EmbeddingsError: the file is broken, or holds something else than a dictionary of tensors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about old and odd pickles
        content = _load(path)
    if not isinstance(content, dict):
        raise EmbeddingsError(
            f"it holds a {type(content).__name__}: save a dictionary of prompts and tensors"
        )
    yield {_prompt(key): _entry(key, value) for key, value in content.items()}


def write_pickled(
    path: Path,
    prompts: Sequence[str],
    array_of: Callable[[str], numpy.ndarray[Any, Any]],
    scratch: Path,
) -> None:
    """Write a dictionary of tensors, which `torch.load(weights_only=True)` reads.

    The arrays go through the file `scratch` one by one, so that they are never in memory together.
    """
    import numpy
    import torch

    ends, forms = [0], []
    with scratch.open("wb") as stream:
        for prompt in prompts:
            array = array_of(prompt)
            stream.write(array.tobytes())
            ends.append(stream.tell())
            forms.append((array.dtype, array.shape))
    tensors = {
        prompt: torch.from_numpy(numpy.memmap(scratch, dtype, "c", begin, shape))
        for prompt, begin, (dtype, shape) in zip(prompts, ends, forms, strict=False)
    }
    with path.open("wb") as stream:
        torch.save(tensors, stream)


def _load(path: Path) -> Any:
    import torch

    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if _ONLY_MAPPED not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, OSError):
        raise
    except pickle.UnpicklingError as error:
        raise EmbeddingsError(
            "it is broken, or holds something else than tensors, which "
            "could run any code and is never loaded: save a dictionary of prompts and tensors"
        ) from error
    # A broken file raises many types: RuntimeError, ValueError, EOFError, KeyError, struct.error ...
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise EmbeddingsError(
            f"it is broken ({shorten(first, 100)}); fetch or copy it again"
        ) from error


def _prompt(key: Any) -> str:
    try:
        if isinstance(key, str) and key.encode() is not None:
            return key
    except UnicodeEncodeError:
        pass
    raise EmbeddingsError(f"its key {shorten(repr(key), 60)} is no prompt: use texts as keys")


def _entry(prompt: str, value: Any) -> Entry:
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
        raise EmbeddingsError(
            f"it holds a {type(value).__name__} for {shorten(prompt, 40)!r}: save plain tensors"
        )
    spelled = str(value.dtype).removeprefix("torch.")
    return DTYPES.get(spelled, spelled), tuple(value.shape), partial(_content, value)


def _content(tensor: Any) -> bytes:
    import torch

    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    content: bytes = flat.numpy().tobytes()
    return content
