"""A repository of the Hub that is not on this disk: its folders, and its networks by their headers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lowmem_if.cascade.configs import read_config
from lowmem_if.cascade.locating.measured import module_of
from lowmem_if.cascade.module_files import GUIDE
from lowmem_if.cascade.parts import Module
from lowmem_if.cascade.remote.hub_listing import list_repository
from lowmem_if.cascade.remote.remote_headers import read_remote_header, read_small_file
from lowmem_if.cascade.safetensors_header import TensorHeader
from lowmem_if.cascade.variants import choose_variant, find_variants, is_pickle
from lowmem_if.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class RemoteRepository:
    """A repository at one commit; `sizes`: path of a file -> its bytes."""

    name: str
    commit: str
    sizes: dict[str, int]

    @property
    def folders(self) -> set[str]:
        """The names of its folders."""
        return {path.partition("/")[0] for path in self.sizes if "/" in path}

    def snapshot(self, wanted: Iterable[str]) -> Path:
        """The folder of this commit in the Hugging Face cache, with those of the files that it has.

        Raises:
            CheckpointError: it has none of the files.
        """
        there = sorted(path for path in wanted if path in self.sizes)
        files = {path: _small_file(self.name, self.commit, path) for path in there}
        for path, file in files.items():
            return file.parents[path.count("/")]
        raise CheckpointError(f"{self.name}: it has no config.json of a network")

    def module(self, folder: Path) -> Module:
        """The network of a folder in the snapshot, which has its configuration.

        Raises:
            CheckpointError: it has no complete set of safetensors files, or a header is not valid.
        """
        names = {
            path.rpartition("/")[2] for path in self.sizes if path.rpartition("/")[0] == folder.name
        }
        variant = choose_variant(names)
        if variant is None or variant.missing or "config.json" not in names:
            raise CheckpointError(f"{self.name}: {_unusable(folder.name, names)}")
        paths = [f"{folder.name}/{name}" for name in variant.files]
        tensors: dict[str, TensorHeader] = {}
        for path in paths:
            tensors |= _header(self.name, self.commit, path, self.sizes[path])
        total = sum(self.sizes[path] for path in paths)
        return module_of(folder.name, folder, read_config(folder / "config.json"), tensors, total)


@lru_cache(maxsize=64)
def ask(repository: str, revision: str) -> RemoteRepository:
    """What a repository contains; the Hub is asked once by a process, since a plan asks many times.

    Raises:
        OSError, HTTPError: the Hub cannot be reached, or refuses; `plain_words` makes a `HubError`.
    """
    return RemoteRepository(repository, *list_repository(repository, revision))


@lru_cache(maxsize=64)
def _header(repository: str, commit: str, path: str, size: int) -> dict[str, TensorHeader]:
    return read_remote_header(repository, commit, path, size)


@lru_cache(maxsize=64)
def _small_file(repository: str, commit: str, path: str) -> Path:
    return read_small_file(repository, commit, path)


def _unusable(folder: str, names: set[str]) -> str:
    if any(map(is_pickle, names)) and not find_variants(names):
        return (
            f"{folder}/ has only pickles (.bin), which can run code and are never read: choose a "
            f"revision with safetensors, or convert them as {GUIDE} says"
        )
    return f"{folder}/ has no complete set of safetensors and config.json: choose another revision"
