"""Delete broken files from the Hugging Face cache, so that they are planned for and fetched again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from lowmem_if.cascade.configs import read_config
from lowmem_if.cascade.locating.hub_folders import snapshot_folder
from lowmem_if.cascade.module_files import files_in
from lowmem_if.cascade.parts import Part, Place
from lowmem_if.cascade.remote.hub_errors import plain_words
from lowmem_if.cascade.safetensors_header import read_header
from lowmem_if.errors import CheckpointError
from lowmem_if.system.file_operations import remove

_HASHED_BYTES = 32 * 2**20
"""Larger files, which are all weights, are judged by their headers: hashing them takes minutes."""


def drop_broken(parts: Mapping[str, Part], *, revision: str = "main") -> tuple[Path, ...]:
    """Delete the broken files among those that components read from the cache; no network is used.

    A file is broken if its safetensors header does not fit its length, if it should be JSON and is not,
    or if it is small and its content does not have the hash in its blob's name. `fetch` finds files that
    have another length than on the Hub.

    Args:
        parts: component -> what it loads.
        revision: branch, tag or commit of the parts that have none of their own.

    Returns:
        The deleted files.

    Raises:
        HubError: a file cannot be read, or not be deleted.
    """
    dropped = []
    for component, part in parts.items():
        for origin in part.origins:
            asked = origin.revision or revision
            folder = snapshot_folder(origin.repository, asked)
            if folder is None:
                continue
            files = {
                file
                for eight_bit in (False, True)
                for file in files_in(Place(folder), component, part, eight_bit=eight_bit)
            }
            with plain_words(origin.repository, asked):
                for file in sorted(files):
                    # Equal files share a blob, which may have been deleted by now.
                    if file.is_file() and not _is_sound(file):
                        _drop(file)
                        dropped.append(file)
    return tuple(dropped)


def _is_sound(file: Path) -> bool:
    with file.open("rb"):  # an unreadable file is not a broken one: this raises
        pass
    try:
        if file.suffix == ".safetensors":
            read_header(file)
        elif file.suffix == ".json":
            read_config(file)
    except CheckpointError:
        return False
    return _has_its_hash(file.resolve())


def _has_its_hash(blob: Path) -> bool:
    """Whether a small blob has the hash in its name: SHA-256, or git's. Large ones are not hashed."""
    size = blob.stat().st_size
    if size > _HASHED_BYTES or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return True
    content = blob.read_bytes()
    if len(blob.name) == 64:
        return hashlib.sha256(content).hexdigest() == blob.name
    named = hashlib.sha1(b"blob %d\0" % size + content, usedforsecurity=False)
    return named.hexdigest() == blob.name


def _drop(file: Path) -> None:
    """Delete a file of a snapshot and its blob; what a link outside the cache points to is kept."""
    blob = file.resolve()
    if blob.parent.name == "blobs":
        remove(blob)
    remove(file)
