"""Repositories that lie in one folder under their own names, as clones and downloads leave them.

A repository is recognised as `IF-I-L-v1.0`, `DeepFloyd/IF-I-L-v1.0`, `DeepFloyd--IF-I-L-v1.0`, or as a
folder of the Hugging Face cache, `models--DeepFloyd--IF-I-L-v1.0`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import STAGE_1, STAGE_2
from lowmem_if.cascade.configs import read_config
from lowmem_if.cascade.locating.hub_folders import newest_snapshot, storage_name
from lowmem_if.cascade.module_files import file_names, folder_names
from lowmem_if.errors import CascadeError

_STAGE_1, _STAGE_2, _UPSCALER = (catalog.facts(c).root for c in catalog.IMAGE_STAGES)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """The repositories of IF in a folder.

    Attributes:
        folder: the folder that they are in.
        found: root in a cascade (`stage_1`, `stage_2`, `upscaler`) -> folders for it, largest first.
    """

    folder: Path
    found: dict[str, tuple[Path, ...]]

    def root_of(self, component: str) -> Path | None:
        """The repository that a component is in: for shared components the first that has their folders.

        All repositories of stage 1 have the same text encoder and safety checker, and some may be
        downloaded without them.
        """
        facts = catalog.facts(component)
        folders = self.found.get(facts.root, ())
        whole = (folder for folder in folders if {*facts.networks} <= folder_names(folder))
        return next(whole, next(iter(folders), None))

    def check_choice(self, component: str) -> None:
        """Raise `CascadeError` if several repositories could be meant for a stage."""
        folders = self.found.get(catalog.facts(component).root, ())
        if component in (STAGE_1, STAGE_2) and len(folders) > 1:
            names = " and ".join(folder_title(folder) for folder in folders)
            raise CascadeError(
                f"{self.folder} has {names}: choose one, like --part {component}={folders[-1]}"
            )


def side_by_side(folder: Path) -> SideBySide | None:
    """The repositories that lie in a folder; None if there is no stage 1 among them."""
    known = {_STAGE_1: catalog.FIRST_STAGES, _STAGE_2: catalog.SECOND_STAGES}
    found = {
        root: tuple(_first_of(folder, [catalog.stage_repository(name) for name in names]))
        for root, names in known.items()
    }
    found[_UPSCALER] = tuple(_first_of(folder, [catalog.X4_REPOSITORY]))
    return SideBySide(folder, found) if found[_STAGE_1] else None


def kind_of(folder: Path) -> str | None:
    """The component whose network a repository's folder holds; None if its UNet is of no known kind."""
    unet = folder / "unet"
    if "config.json" not in file_names(unet):
        return None
    return kind_of_unet(read_config(unet / "config.json"))


def kind_of_unet(config: dict[str, object]) -> str | None:
    """The component that a UNet with this configuration is for; None if it is for none of IF's."""
    channels = config.get("in_channels")
    if config.get("num_class_embeds") and channels == 7:
        return catalog.UPSCALER
    kinds: dict[tuple[object, object], str] = {(3, None): STAGE_1, (6, "timestep"): STAGE_2}
    kind = config.get("class_embed_type")
    plain = isinstance(channels, int) and isinstance(kind, str | None)
    return kinds.get((channels, kind)) if plain else None


def folder_title(folder: Path) -> str:
    """The name of a repository's folder; of a snapshot in a cache, that of the repository."""
    if folder.parent.name == "snapshots":
        return folder.parents[1].name.removeprefix("models--").replace("--", "/")
    return folder.name


def _first_of(folder: Path, repositories: list[str]) -> Iterator[Path]:
    """The folder of each repository that is there."""
    for repository in repositories:
        forms = _folders_of(folder, repository)
        if first := next(forms, None):
            yield first


def _folders_of(folder: Path, repository: str) -> Iterator[Path]:
    owner, _, name = repository.partition("/")
    here = _by_lower_name(folder)
    for form in (name, f"{owner}--{name}"):
        if form.lower() in here:
            yield here[form.lower()]
    if owner.lower() in here:
        nested = _by_lower_name(here[owner.lower()])
        if name.lower() in nested:
            yield nested[name.lower()]
    cached = here.get(storage_name(repository).lower())
    if cached and (snapshot := newest_snapshot(cached)):
        yield snapshot


def _by_lower_name(folder: Path) -> dict[str, Path]:
    return {name.lower(): folder / name for name in folder_names(folder)}
