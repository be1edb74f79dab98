"""Which files a component reads, and whether they exist; only names are compared, not content."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lowmem_if.cascade.configs import configuration_files
from lowmem_if.cascade.parts import Part
from lowmem_if.cascade.safetensors_header import unreadable
from lowmem_if.cascade.variants import SMALL_FILES, Variant, choose_variant, lacks_vocabulary
from lowmem_if.errors import CheckpointError


def file_names(folder: Path) -> set[str]:
    """Names of the files in a folder; empty if it does not exist. Dangling links are ignored."""
    return _names(folder, os.DirEntry.is_file)


def folder_names(folder: Path) -> set[str]:
    """Names of the folders in a folder; empty if it does not exist."""
    return _names(folder, os.DirEntry.is_dir)


def _names(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if wanted(entry)}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise unreadable(folder, error) from error


def weight_variant(folder: Path, *, eight_bit: bool = False) -> Variant:
    """The weight files to load from one module folder.

    Raises:
        CheckpointError: there are no weight files, or a shard or the index is missing.
    """
    variant = choose_variant(file_names(folder), eight_bit=eight_bit)
    if variant is None:
        raise CheckpointError(f"{folder}: no safetensors weights; fetch or copy the folder again")
    if variant.missing:
        raise CheckpointError(
            f"{folder}: {', '.join(variant.missing)} missing; fetch or copy the folder again"
        )
    if len(variant.files) > 1 and variant.index is None:
        raise CheckpointError(f"{folder}: the shards have no index file; fetch the folder again")
    return variant


def usable_variant(folder: Path, *, eight_bit: bool) -> Variant | None:
    """The complete set of files that a module is loaded from; None while a file is missing."""
    names = file_names(folder)
    variant = choose_variant(names, eight_bit=eight_bit)
    if variant is None or variant.missing or "config.json" not in names:
        return None
    return variant if variant.index or len(variant.files) == 1 else None


def files_in(root: Path, component: str, part: Part, *, eight_bit: bool) -> tuple[Path, ...]:
    """The files in a root that a component reads: weights, configurations, vocabularies."""
    files = {root / name for name in configuration_files(component, part)}
    for folder in (root / module.folder for module in part.modules):
        variant = choose_variant(file_names(folder), eight_bit=eight_bit)
        files |= {
            folder / name for name in ("config.json", *(variant.all_files if variant else ()))
        }
    for folder in (root / extra for extra in part.extras):
        files |= {folder / name for name in file_names(folder) if name.endswith(SMALL_FILES)}
    return tuple(sorted(filter(_is_here, files)))


def _is_here(file: Path) -> bool:
    return file.name in file_names(file.parent)


def is_whole(root: Path, component: str, part: Part, *, eight_bit: bool) -> bool:
    """Whether all files exist that a component reads."""
    weights = all(
        usable_variant(root / module.folder, eight_bit=eight_bit) for module in part.modules
    )
    small = all(_is_here(root / name) for name in configuration_files(component, part))
    return (
        weights
        and small
        and not any(lacks_vocabulary(extra, file_names(root / extra)) for extra in part.extras)
    )
