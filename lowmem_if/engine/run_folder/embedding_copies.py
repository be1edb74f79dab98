"""Copies of the user's prompt embeddings in the run folder, so that a run never needs the file again.

Each copy names the file's digest in its metadata: copies from another file do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from lowmem_if.cascade.catalog import T5_STAGES, TEXT_WIDTH
from lowmem_if.cascade.configs import text_width
from lowmem_if.cascade.safetensors_header import TENSOR_NAME, read_header_and_metadata
from lowmem_if.errors import CheckpointError, EmbeddingsError
from lowmem_if.planning.needed_texts import texts_of
from lowmem_if.planning.plan import Plan
from lowmem_if.request.texts.given_embeddings import embeddings_digest

_SOURCE = "source"
"""The key of a file's digest in the metadata of a copy."""


def check_embeddings(plan: Plan) -> None:
    """Check that a plan's file of embeddings, if it has one, holds all that its stages need.

    Raises:
        EmbeddingsError: the file lacks a prompt, is for another text encoder, or cannot be read.
    """
    from lowmem_if.weights.embedding_files.embedding_reader import opened_embeddings

    if plan.request.embeds is not None:
        width = _width(plan)
        with opened_embeddings(Path(plan.request.embeds.path)) as file:
            for text in texts_of(plan):
                file.check(text, width)


def copies(plan: Plan, place: Callable[[str], Path]) -> Iterator[tuple[Path, bytes]]:
    """The embeddings that a run folder lacks, as files; those that are needed are checked first.

    Every other text of the request that the file has is copied, too: a continued run may need it.

    Args:
        place: text -> its file in the run folder.

    Raises:
        EmbeddingsError: as `check_embeddings`, or the file has changed, or an embedding is broken.
    """
    from lowmem_if.weights.embedding_files.embedding_reader import opened_embeddings

    given = plan.request.embeds
    if given is None or not (missing := _not_copied(texts_of(plan), place, given.digest)):
        return
    width, path = _width(plan), Path(given.path)
    if embeddings_digest(path) != given.digest:
        raise EmbeddingsError(f"{path} has changed since it was given: run the command again")
    with opened_embeddings(path) as file:
        for text in missing:
            file.check(text, width)
        others = _not_copied(all_texts(plan), place, given.digest)
        for text in dict.fromkeys([*missing, *(t for t in others if t in file)]):
            stored = file.read(text, width)
            yield place(text), stored.as_tensor_file(**{_SOURCE: given.digest})


def restored(plan: Plan, place: Callable[[str], Path]) -> Iterator[tuple[Path, bytes]]:
    """As `copies`, but nothing if the file cannot be used any more: perhaps no stage reads them now."""
    with suppress(EmbeddingsError):
        yield from copies(plan, place)


def all_texts(plan: Plan) -> list[str]:
    """Every text that a stage could read, whatever its guidance."""
    specs = [spec for spec in plan.request.images if spec.needs_t5]
    texts = [[spec.words, spec.negative_prompt, spec.style_prompt] for spec in specs]
    return list(dict.fromkeys(text for several in texts for text in several))


def _not_copied(texts: list[str], place: Callable[[str], Path], digest: str) -> list[str]:
    return [text for text in texts if not _is_copied(place(text), digest)]


def _is_copied(file: Path, digest: str) -> bool:
    try:
        tensors, metadata = read_header_and_metadata(file)
    except CheckpointError:
        return False
    return TENSOR_NAME in tensors and metadata.get(_SOURCE) == digest


def _width(plan: Plan) -> int:
    """Numbers per token that the stages read: from their configuration, if it is on this disk."""
    request = plan.request
    location = request.locate(asks_hub=False)
    for stage in T5_STAGES:
        if stage in request.components and (root := location.folder(stage)):
            return text_width(root)
    return TEXT_WIDTH
