"""The cascade that a name or folder stands for, before parts of it are replaced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import COMPONENTS, TEXT_ENCODER
from lowmem_if.cascade.locating.hub_folders import snapshot_folder
from lowmem_if.cascade.locating.measured import measured, measured_if_here
from lowmem_if.cascade.locating.repository_folders import (
    SideBySide,
    kind_of,
    side_by_side,
)
from lowmem_if.cascade.module_files import file_names, folder_names
from lowmem_if.cascade.parts import Cascade, Module, Part, Place, Weights
from lowmem_if.errors import CascadeError


@dataclass(frozen=True, slots=True)
class BaseCascade:
    """A cascade of the catalogue or of a folder.

    Attributes:
        cascade: its defaults, and for a catalogued one its parts.
        places: component -> its folders, as far as they exist.
        folder: the folder of a local cascade; None for one on the Hub.
        repositories: the repositories in this folder, if it contains some under their own names.
    """

    cascade: Cascade
    places: dict[str, Place]
    folder: Path | None = None
    repositories: SideBySide | None = None

    def part(self, component: str) -> Part:
        """What a component loads, measured by the files that are here.

        Raises:
            CascadeError, CheckpointError: a local cascade lacks it, or a file is broken.
        """
        declared, place = self.declared(component), self.places.get(component)
        if self.folder is None:
            modules = (
                measured_if_here(place.folder(m.folder) if place else None, m, component)
                for m in declared.modules
            )
            return replace(declared, modules=tuple(modules))
        if self.repositories:
            self.repositories.check_choice(component)
        if place is None:
            root = declared.root
            raise CascadeError(f"{self.folder} has no {root}/ folder, which {component} needs")
        modules = (measured(m.folder, place.folder(m.folder), component) for m in declared.modules)
        return replace(declared, modules=tuple(modules))

    def declared(self, component: str) -> Part:
        """What a component loads, with the catalogue's sizes; a local one has no sizes yet."""
        if self.folder is None:
            return self.cascade.parts[component]
        return declared_part(component)


def declared_part(component: str) -> Part:
    """The folders that a component loads, without sizes."""
    facts = catalog.facts(component)
    modules = tuple(Module(name, Weights(0), 0) for name in facts.networks)
    return Part(facts.root, None, modules, facts.extras)


def hub_cascade(name: str, revision: str) -> BaseCascade:
    """A cascade of the catalogue whose parts are on the Hub."""
    cascade, places = catalog.ON_HUB[name], {}
    for component, part in cascade.parts.items():
        folder = snapshot_folder(part.repository, revision) if part.repository else None
        if folder:
            places[component] = Place(folder)
    return BaseCascade(cascade, places)


def local_cascade(name: str, folder: Path) -> BaseCascade:
    """The cascade in a folder; parts of it may be missing.

    Raises:
        CascadeError: there is none.
    """
    present, repositories = folder_names(folder), None
    roots = {component: folder / catalog.facts(component).root for component in COMPONENTS}
    places = {component: Place(root) for component, root in roots.items() if root.name in present}
    if TEXT_ENCODER not in places:
        repositories = side_by_side(folder)
        if repositories is None:
            raise _no_cascade(folder)
        found = {component: repositories.root_of(component) for component in COMPONENTS}
        places = {component: Place(root) for component, root in found.items() if root}
    tokenizer = places[TEXT_ENCODER].folder("tokenizer")
    tiny = name == catalog.DEMO or catalog.KNOWN_WORDS in file_names(tokenizer)
    defaults = catalog.DEMO_DEFAULTS if tiny else catalog.IF_DEFAULTS
    return BaseCascade(Cascade(name, {}, defaults), places, folder, repositories)


def _no_cascade(folder: Path) -> CascadeError:
    kind = kind_of(folder)
    if kind is not None:
        return CascadeError(
            f"{folder} is one repository ({catalog.label(kind)}), not a cascade: give the folder "
            f"that has it and the other stages, or a name with --part {kind}={folder}"
        )
    return CascadeError(
        f"{folder} is not a cascade: it has no stage_1/ folder; "
        "--cascade takes a name, or a folder with stage_1/, stage_2/ and upscaler/ or with "
        "repositories like IF-I-L-v1.0/"
    )
