"""Which files of the Hub a plan needs: only those that the given components load.

`list_files` lists a repository and chooses; `fetch` downloads what is not cached yet. The cache, its
layout, the login and the environment variables are those of huggingface_hub.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locating.hub_folders import snapshot_folder
from lowmem_if.cascade.parts import Cascade, Part
from lowmem_if.cascade.remote.hub_errors import foreign_errors, plain_words, why_unreachable
from lowmem_if.cascade.remote.hub_listing import list_repository
from lowmem_if.cascade.variants import (
    SMALL_FILES,
    choose_variant,
    is_pickle,
    lacks_vocabulary,
)
from lowmem_if.errors import HubError
from lowmem_if.weights.hub.download import RepoFiles, fetch, missing_bytes
from lowmem_if.weights.hub.transfer import Progress

__all__ = ["Progress", "RepoFiles", "fetch", "list_files", "missing_bytes"]


def list_files(
    cascade: Cascade, components: Collection[str], *, eight_bit: bool, revision: str = "main"
) -> tuple[RepoFiles, ...]:
    """The files that `components` load, one entry for each repository; empty for a local cascade.

    For each module these are one set of safetensors, its configuration, its small folders and
    `model_index.json`. They are never the original files in the root, `.bin`, or a second precision. If
    the Hub cannot be reached and all files are cached, the list is made from the cache.

    Args:
        cascade: one of the catalogue.
        components: those that the plan runs.
        eight_bit: choose the published 8-bit text encoder where there is one.
        revision: branch, tag or commit of every repository.

    Raises:
        HubError: no such repository or revision, no network and not cached, or no safetensors.
    """
    wanted: dict[tuple[str, str], list[_Wanted]] = {}
    for component in components:
        for origin in cascade.parts[component].origins:
            key = origin.repository, origin.revision or revision
            use_8bit = eight_bit and catalog.facts(component).encodes
            wanted.setdefault(key, []).append((cascade.parts[component], origin.folders, use_8bit))
    return tuple(_list_repository(*key, each) for key, each in wanted.items())


_Wanted = tuple[Part, tuple[str, ...], bool]
"""A part, which of its folders are needed, and whether a published 8-bit file is chosen."""


def _list_repository(repository: str, revision: str, wanted: list[_Wanted]) -> RepoFiles:
    with plain_words(repository, revision):
        try:
            commit, sizes = list_repository(repository, revision)
        except foreign_errors() as error:
            trouble = why_unreachable(error)
            if trouble is None:
                raise
            commit, sizes = _cached(repository, revision)
            where, advice = f"{trouble[0]} and the cache of {repository}", trouble[1]
        else:
            where = f"{repository} at {revision}"
            advice = "choose another revision; lowmem-if loads safetensors only"
    chosen, absent = _select(sizes, wanted)
    if absent:
        shown = absent if len(absent) <= 4 else [*absent[:3], f"{len(absent) - 3} more"]
        raise HubError(f"{where} lacks {', '.join(shown)}: {advice}")
    return RepoFiles(repository, commit, tuple((p, sizes[p]) for p in chosen), revision)


def _cached(repository: str, revision: str) -> tuple[str, dict[str, int]]:
    folder = snapshot_folder(repository, revision)
    if folder is None:
        return "", {}
    files = (path for path in folder.rglob("*") if path.is_file())
    return folder.name, {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def _select(paths: Collection[str], wanted: list[_Wanted]) -> tuple[list[str], list[str]]:
    """(The needed ones among `paths`, each once; what is needed and missing, in words)."""
    chosen, absent = [path for path in paths if path == "model_index.json"], []
    for part, folders, eight_bit in wanted:
        for module in (module.folder for module in part.modules if module.folder in folders):
            files, lacking = _select_module(_in_folder(paths, module), eight_bit)
            chosen += [f"{module}/{name}" for name in files]
            absent += [f"{module}/{name}" for name in lacking]
        for folder in (extra for extra in part.extras if extra in folders):
            names = {n for n in _in_folder(paths, folder) if n.endswith(SMALL_FILES)}
            chosen += [f"{folder}/{name}" for name in sorted(names)]
            absent += [f"{folder}/{name}" for name in _lacking_extra(folder, names)]
    return list(dict.fromkeys(chosen)), list(dict.fromkeys(absent))


def _in_folder(paths: Iterable[str], folder: str) -> set[str]:
    split = (path.rpartition("/") for path in paths)
    return {name for parent, _, name in split if parent == folder}


def _select_module(names: set[str], eight_bit: bool) -> tuple[list[str], list[str]]:
    variant = choose_variant(names, eight_bit=eight_bit)
    lacking = [] if "config.json" in names else ["config.json"]
    if variant is None:
        only_bin = " (there are only .bin files)" if any(map(is_pickle, names)) else ""
        return [], [*lacking, f"*.safetensors{only_bin}"]
    lacking += variant.missing
    if len(variant.files) > 1 and not variant.index:
        lacking.append("the index of its shards")
    return [name for name in ("config.json", *variant.all_files) if name in names], lacking


def _lacking_extra(folder: str, names: set[str]) -> list[str]:
    lacking = [] if any(name.endswith("config.json") for name in names) else ["*config.json"]
    if lacks_vocabulary(folder, names):
        lacking.append("spiece.model or vocab.json with merges.txt")
    return lacking
