"""The intermediate tensors of a run, which a finished run needs only to be enlarged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowmem_if.engine.run_folder.folder_layout import EMBEDDINGS, STAGE_FOLDERS
from lowmem_if.engine.run_folder.folder_state import FolderState
from lowmem_if.request.image_spec import ImageSpec


def tensor_files(folder: FolderState) -> Iterator[Path]:
    """The files that can be removed when the run is finished.

    Embeddings are kept where they are the run's only result, and where they came from a user's file,
    which may be gone.
    """
    for name in STAGE_FOLDERS.values():
        yield from (folder.path / name).glob("*.safetensors")
    request = folder.plan.request
    if request.pictures and request.embeds is None:
        yield from (folder.path / EMBEDDINGS).glob("*.safetensors")


def lost_tensors(folder: FolderState) -> tuple[ImageSpec, ...]:
    """The pictures whose last tensor is not in the folder any more."""
    return tuple(
        spec
        for spec in folder.plan.request.pictures
        if not folder.tensor_file(spec.stages[-1], spec).is_file()
    )
