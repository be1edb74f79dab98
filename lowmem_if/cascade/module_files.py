"""Which files a component reads, and whether they exist; only names are compared, not content."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from lowmem_if.cascade.configs import configuration_files
from lowmem_if.cascade.parts import Part, Place
from lowmem_if.cascade.safetensors_header import unreadable
from lowmem_if.cascade.variants import (
    SMALL_FILES,
    Variant,
    choose_variant,
    is_pickle,
    lacks_vocabulary,
    safetensors_name,
)
from lowmem_if.errors import CheckpointError

CONVERT = (
    'python -c "import sys, torch; from safetensors.torch import save_file; save_file({name: '
    "number.clone().contiguous() for name, number in torch.load(sys.argv[1], map_location='cpu', "
    'weights_only=True).items()}, sys.argv[2])"'
)
"""A command that converts a pickle into a safetensors file; torch reads only numbers from it."""

GUIDE = "docs/how-to/own-weights.md"
"""The page about weights of the user's own."""


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
        raise CheckpointError(without_safetensors(folder))
    if variant.missing:
        raise CheckpointError(
            f"{folder}: {', '.join(variant.missing)} missing; fetch or copy the folder again"
        )
    if len(variant.files) > 1 and variant.index is None:
        raise CheckpointError(f"{folder}: the shards have no index file; fetch the folder again")
    return variant


def without_safetensors(folder: Path) -> str:
    """Why a module folder has no weights that can be loaded, and what to do, in one line."""
    pickles = sorted(name for name in file_names(folder) if is_pickle(name))
    if not pickles:
        return f"{folder}: no safetensors weights; fetch or copy the folder again"
    what = (
        f"{folder}: its weights are pickles ({pickles[0]}), which can run code and are never read"
    )
    if len(pickles) > 1:
        return (
            f"{what}; copy the .safetensors files of their source, or convert them as {GUIDE} says"
        )
    target = folder / safetensors_name(pickles[0])
    return (
        f"{what}; copy the .safetensors file of its source, or convert it: "
        f"{CONVERT} {shlex.quote(str(folder / pickles[0]))} {shlex.quote(str(target))}"
    )


def usable_variant(folder: Path, *, eight_bit: bool) -> Variant | None:
    """The complete set of files that a module is loaded from; None while a file is missing."""
    names = file_names(folder)
    variant = choose_variant(names, eight_bit=eight_bit)
    if variant is None or variant.missing or "config.json" not in names:
        return None
    return variant if variant.index or len(variant.files) == 1 else None


def files_in(place: Place, component: str, part: Part, *, eight_bit: bool) -> tuple[Path, ...]:
    """The files that a component reads: weights, configurations, vocabularies.

    They are sorted by their folders' names and their own, wherever the folders are.
    """
    names = set(configuration_files(component, part))
    for module in part.modules:
        variant = choose_variant(file_names(place.folder(module.folder)), eight_bit=eight_bit)
        weights = variant.all_files if variant else ()
        names |= {f"{module.folder}/{name}" for name in ("config.json", *weights)}
    for extra in part.extras:
        small = (name for name in file_names(place.folder(extra)) if name.endswith(SMALL_FILES))
        names |= {f"{extra}/{name}" for name in small}
    return tuple(filter(_is_here, map(place.file, sorted(names, key=PurePosixPath))))


def _is_here(file: Path) -> bool:
    return file.name in file_names(file.parent)


def is_whole(place: Place, component: str, part: Part, *, eight_bit: bool) -> bool:
    """Whether all files exist that a component reads."""
    weights = all(
        usable_variant(place.folder(module.folder), eight_bit=eight_bit) for module in part.modules
    )
    small = all(map(_is_here, map(place.file, configuration_files(component, part))))
    return (
        weights
        and small
        and not any(lacks_vocabulary(e, file_names(place.folder(e))) for e in part.extras)
    )
