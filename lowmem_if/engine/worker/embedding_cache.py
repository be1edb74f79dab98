"""Prompt embeddings kept on disk across runs: a hit spares the largest component of all.

The key holds everything that an embedding depends on; a key of the prompt alone goes stale as soon as
the encoder, its number type, a library or the cleaning changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import torch

from lowmem_if.cascade.cache_dir import cache_folder
from lowmem_if.cascade.catalog import MAX_TOKENS
from lowmem_if.engine.run_folder.library_versions import versions_behind
from lowmem_if.errors import CacheError
from lowmem_if.planning.plan import Step
from lowmem_if.weights.files.atomic import write_bytes
from lowmem_if.weights.files.tensor_file import load_tensor, tensor_bytes

_FORMAT = 2
"""Increase it when the same key would stand for other numbers: what was kept before is not read again.
2: encoders that stream keep their hidden states as the blocks return them (before: cut to float16)."""

_KEEP_BYTES = 1_000_000_000
"""Some 1600 prompts of T5-XXL in float16; the longest unused are dropped beyond that."""

_PRUNINGS = 20
"""Looking through all files takes as long as there are many: it is done at first, then for every
twentieth of what is kept, not for every prompt of thousands."""


class EmbeddingCache:
    """The embeddings that one encoder, on one kind of device, makes of cleaned texts."""

    def __init__(self, encoder_identity: str, step: Step, folder: Path | None = None) -> None:
        self._folder = folder
        self._unpruned_bytes = _KEEP_BYTES
        self._encoder = [
            _FORMAT,
            encoder_identity,
            step.config.strategy,
            step.config.storage_dtype,
            step.config.compute_dtype,
            step.config.device.partition(":")[0],
            MAX_TOKENS,
            versions_behind(step),
        ]

    @property
    def folder(self) -> Path:
        """Where they are kept; a `CacheError` if there is no such place."""
        return self._folder or cache_folder("embeds")

    def get(self, cleaned: str) -> torch.Tensor | None:
        """The embedding of a cleaned text, None if it was never made or its file is broken."""
        try:
            file, key = self._file(cleaned)
        except CacheError:
            return None
        tensor = load_tensor(file, key=key)
        if tensor is not None:
            with suppress(OSError):  # a cache that can only be read is still a cache
                os.utime(file)
        return tensor

    def put(self, cleaned: str, embedding: torch.Tensor) -> str:
        """Keep an embedding, drop the longest unused beyond the limit.

        Returns:
            Why it cannot be kept, in words; empty if it is kept.
        """
        try:
            file, key = self._file(cleaned)
            self.folder.mkdir(parents=True, exist_ok=True)
            content = tensor_bytes(embedding, key=key)
            write_bytes(file, content)
            self._unpruned_bytes += len(content)
            if self._unpruned_bytes > _KEEP_BYTES // _PRUNINGS:
                self._prune()
        except OSError as error:
            return f"{self.folder} cannot be written ({error.strerror or error})"
        except CacheError as error:
            return str(error)
        return ""

    def _file(self, cleaned: str) -> tuple[Path, str]:
        key = hashlib.sha256(json.dumps([*self._encoder, cleaned]).encode()).hexdigest()
        return self.folder / f"{key}.safetensors", key

    def _prune(self) -> None:
        self._unpruned_bytes = 0
        files = [(file, file.stat()) for file in self.folder.glob("*.safetensors")]
        newest_first = sorted(files, key=lambda entry: entry[1].st_mtime, reverse=True)
        total = 0
        for file, status in newest_first:
            total += status.st_size
            if total > _KEEP_BYTES:
                file.unlink(missing_ok=True)
