"""Encode prompts with T5 alone, and write them into one file: a run without pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from lowmem_if.cascade import catalog
from lowmem_if.cascade.modes import EMBED
from lowmem_if.engine.events import ignore
from lowmem_if.engine.options import EmbedOptions, PlanOptions, RunOptions, part_of
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.same_request import request_difference
from lowmem_if.engine.session import Session
from lowmem_if.errors import (
    CheckpointError,
    EmbeddingsError,
    RequestError,
    RunFolderError,
)
from lowmem_if.hardware.weights_disk import scratch_folder
from lowmem_if.planning.plan import Plan
from lowmem_if.request.build import make_request
from lowmem_if.request.checks import as_tuple
from lowmem_if.units import shorten
from lowmem_if.weights.embedding_files.embedding_reader import opened_embeddings
from lowmem_if.weights.embedding_files.embedding_tensors import Embeddings, load_embeddings
from lowmem_if.weights.embedding_files.embedding_writer import (
    check_writable,
    write_embeddings,
)
from lowmem_if.weights.embedding_files.stored_embedding import StoredEmbedding
from lowmem_if.weights.files.atomic import remove_folder

DTYPES = FLOAT16, FLOAT32 = "float16", "float32"
"""The number types that embeddings are written in."""


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """A file of prompt embeddings that was written.

    Attributes:
        prompts: each once, in the order of the file; the empty one is the last unless it was given.
        dtype, width: number type, and numbers per token.
        folder: the run that encoded them, as its folder was before it was removed.
        notices: what the user should know about the prompts.
    """

    file: Path
    prompts: tuple[str, ...]
    dtype: str
    width: int
    folder: RunFolder
    notices: tuple[str, ...]


def embed_into(
    prompts: str | Iterable[str], file: Path, **options: Unpack[EmbedOptions]
) -> EmbedResult:
    """Encode prompts and write a file of their embeddings.

    What is encoded is kept in the run folder `FILE.run` until the file is written: the same call
    resumes after a kill.

    Args:
        prompts: the empty prompt is always added: it is the unconditional one.
        file: its end decides the format: `.pth`, `.pt`, `.safetensors` or `.npz`.

    Raises:
        RequestError: a prompt is blank or no text, or there is no such number type.
        EmbeddingsError: the file cannot be written, or holds other prompts, which would be lost.
        LowmemError: as `Session.run`; the call can be repeated.
    """
    dtype = _checked_dtype(options.get("dtype", FLOAT16))
    texts = _checked_prompts(prompts)
    check_writable(file)
    _check_nothing_lost(file, texts)
    cascade, revision = options.get("cascade", catalog.DEMO), options.get("revision", "main")
    request = make_request(texts, mode=EMBED, cascade=cascade, revision=revision, seed=0, size=64)
    work = file.with_name(f"{file.name}.run")
    planner = options.get("planner")
    with Session(keep_loaded=False, planner=planner, **part_of(options, PlanOptions)) as session:
        plan = session.plan(request)
        _check_begun(work, plan, file)
        reporting: Any = {"report": ignore} | part_of(options, RunOptions)
        result = session.run(plan, work, **reporting)
    # Only now: a worker that still exists has its log open, which Windows does not remove.
    folder = RunFolder.open(work)

    def read(prompt: str) -> StoredEmbedding:
        return _stored(folder, prompt)

    write_embeddings(file, texts, read, dtype, scratch=work)
    width = read(texts[0]).shape[-1]
    remove_folder(work)
    return EmbedResult(file, texts, dtype, width, folder, result.notices)


def embed_texts(prompts: str | Iterable[str], **options: Unpack[EmbedOptions]) -> Embeddings:
    """Encode prompts and keep no file.

    Returns:
        Prompt -> tensor of shape (1, 77, width) on the CPU.

    Raises:
        EmbeddingsError: there is no room for temporary files.
        LowmemError: as `embed_into`.
    """
    try:
        scratch = scratch_folder()
    except OSError as error:
        raise EmbeddingsError(
            f"no temporary folder can be written ({error.strerror}): give a file as out"
        ) from error
    with scratch as folder:
        file = Path(folder) / "embeddings.safetensors"
        return load_embeddings(embed_into(prompts, file, **options).file)


def _checked_dtype(dtype: Any) -> str:
    if dtype not in DTYPES:
        raise RequestError(f"dtype {dtype!r} is not one of {' and '.join(DTYPES)}")
    return str(dtype)


def _checked_prompts(prompts: Any) -> tuple[str, ...]:
    """Each prompt once, and the empty one."""
    texts = as_tuple(prompts)
    for text in texts:
        if isinstance(text, str) and text and not text.strip():
            raise RequestError("a prompt is blank: leave it out; the empty prompt is always added")
    return tuple(dict.fromkeys([*texts, ""]))


def _check_nothing_lost(file: Path, texts: tuple[str, ...]) -> None:
    if not file.exists():
        return
    try:
        with opened_embeddings(file) as old:
            lost = [prompt for prompt in old.prompts if prompt not in texts]
    except EmbeddingsError as error:
        raise EmbeddingsError(f"{error}; give --out another name, or delete this file") from error
    if lost:
        more = f" and {len(lost) - 1} more" if lost[1:] else ""
        raise EmbeddingsError(
            f"{file} also holds {shorten(lost[0], 60)!r}{more}, which would be lost: give --out "
            "another name, or give these prompts, too"
        )


def _check_begun(work: Path, plan: Plan, file: Path) -> None:
    if RunFolder.begun(work) and (what := request_difference(RunFolder.open(work).plan, plan)):
        raise EmbeddingsError(
            f"{work} is left from another `embed` for {file.name} ({what}): run that command again, "
            "or delete this folder"
        )


def _stored(folder: RunFolder, prompt: str) -> StoredEmbedding:
    """An embedding that a run has written.

    Raises:
        RunFolderError: its file is missing or broken.
    """
    file = folder.embedding_file(prompt)
    try:
        return StoredEmbedding.from_tensor_file(file)
    except CheckpointError as error:
        raise RunFolderError(
            f"{file} is missing or broken: delete {folder.path} and run the same command again"
        ) from error
