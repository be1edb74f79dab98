"""The inputs of image stages, read from a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.input_copies import read_source
from lowmem_if.errors import RunFolderError
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.stages.finite import is_finite
from lowmem_if.weights.files.tensor_file import load_tensor

_AGAIN = "`lowmem-if resume` makes it again"
"""How to mend a file that a run has written itself."""


class FolderInputs:
    """What earlier steps have written, and the copies of the user's own images."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def images(self, tasks: Sequence[ImageSpec], kind: str) -> list[Image.Image]:
        """The user's own images of the tasks that have any; `kind`: `image` or `mask`."""
        files = [self._folder.source_file(task, kind) for task in tasks if getattr(task, kind)]
        return [read_source(file) for file in files]

    def pictures(self, stage: str, tasks: Sequence[ImageSpec]) -> torch.Tensor:
        """The output of a stage for the tasks, (n, 3, height, width).

        Raises:
            RunFolderError: a file is missing, broken, or holds NaN or infinity.
        """
        files = [self._folder.tensor_file(stage, task) for task in tasks]
        return torch.stack([_read(file) for file in files])

    def embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """The embeddings of texts, (n, 77, width).

        Raises:
            RunFolderError: a file is missing, broken, or holds NaN or infinity.
        """
        given = self._folder.plan.request.embeds
        how = _AGAIN
        if given is not None:
            how = f"put {given.path} back as it was, then `lowmem-if resume` copies it again"
        return torch.cat([_read(self._folder.embedding_file(text), how) for text in texts])


def _read(file: Path, how: str = _AGAIN) -> torch.Tensor:
    tensor = load_tensor(file)
    if tensor is None:
        raise RunFolderError(f"{file} is missing or broken: {how}")
    if not is_finite(tensor):  # written by an earlier release
        raise RunFolderError(
            f"{file} holds NaN or infinite numbers: delete it, and `lowmem-if resume` makes it again"
        )
    return tensor
