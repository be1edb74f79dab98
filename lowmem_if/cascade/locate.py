"""Find a cascade's files on this disk, and read their headers.

A name in the catalogue is looked up in the Hugging Face cache, and `demo` in the package itself. Any
other name is a folder in diffusers' layout: with `stage_1/`, `stage_2/` and `upscaler/`, or with
repositories under their own names. No weights are downloaded and no tensor is read here. The Hub is
asked only about a repository of the user's own that is not on this disk.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import COMPONENTS, TEXT_ENCODER
from lowmem_if.cascade.configs import check_configurations, read_config
from lowmem_if.cascade.locating.base_cascade import (
    BaseCascade,
    declared_part,
    hub_cascade,
    local_cascade,
)
from lowmem_if.cascade.locating.cascade_names import canonical_name, unknown_cascade
from lowmem_if.cascade.locating.hub_folders import existing_folder
from lowmem_if.cascade.locating.own_parts import check_unet, check_widths, own_part, text_width
from lowmem_if.cascade.locating.weights_choice import WeightsChoice
from lowmem_if.cascade.module_files import file_names, files_in, folder_names, is_whole
from lowmem_if.cascade.parts import Cascade, Part, Place
from lowmem_if.cascade.variants import lacks_vocabulary
from lowmem_if.errors import CheckpointError

DEMO_FOLDER = Path(__file__).parents[1] / "demo"
"""The folder of the bundled cascade."""


@dataclass(frozen=True, slots=True)
class Location:
    """A cascade, and where the folders of each component are, as far as they exist.

    Attributes:
        places: component -> its folders.
        choice: what the user chose, for messages.
    """

    cascade: Cascade
    places: dict[str, Place]
    choice: WeightsChoice

    def place(self, component: str, *, storage: str = "float16") -> Place | None:
        """Where all is that `component` needs for `storage`; None if anything is missing."""
        part, place = self.cascade.parts.get(component), self.places.get(component)
        if part is None or place is None:
            return None
        eight_bit = _reads_eight_bit_file(component, storage)
        return place if is_whole(place, component, part, eight_bit=eight_bit) else None

    def folder(self, component: str, *, storage: str = "float16") -> Path | None:
        """The folder with the networks of `component`; None if anything of it is missing."""
        place = self.place(component, storage=storage)
        return place.root if place else None

    def files(self, component: str, *, storage: str = "float16") -> tuple[Path, ...]:
        """Every file on this disk that `component` reads for `storage`."""
        part, place = self.cascade.parts[component], self.places[component]
        eight_bit = _reads_eight_bit_file(component, storage)
        return files_in(place, component, part, eight_bit=eight_bit)


def _reads_eight_bit_file(component: str, storage: str) -> bool:
    """Whether a published 8-bit file is read if there is one; a UNet is quantised from 16 bits."""
    return storage == "int8" and catalog.facts(component).encodes


def locate(
    weights: str | WeightsChoice,
    *,
    components: Collection[str] = COMPONENTS,
    revision: str = "main",
    asks_hub: bool = True,
) -> Location:
    """Find a cascade; sizes are read from the files on this disk.

    Args:
        weights: what the user chose, or a cascade alone: a name in the catalogue, or a folder.
        components: the components that will be used; the others are not examined.
        revision: a branch, tag or commit of the Hub repositories, for a cascade alone.
        asks_hub: whether the Hub is asked for the sizes of a part that is not on this disk.

    Raises:
        CascadeError: no cascade has this name, or the folder contains none; a part is of another kind.
        CheckpointError: a weight file or configuration is broken or cannot be read, or a local cascade
            lacks one.
        HubError: a part's repository is not on this disk, and the Hub cannot be asked about it.
    """
    choice = WeightsChoice(weights, revision) if isinstance(weights, str) else weights
    base = _base(choice)
    parts, places = {}, dict(base.places)
    for component in components:
        own, place = choice.part(component), base.places.get(component)
        if own is None:
            parts[component] = base.part(component)
        else:
            parts[component], place = own_part(
                own, base.declared(component), place, asks_hub=asks_hub
            )
        if place is None:
            places.pop(component, None)
        else:
            places[component] = place
    cascade = replace(base.cascade, parts={**base.cascade.parts, **parts})
    location = Location(cascade, places, choice.of_cascade(cascade.name))
    _check(location, parts)
    return location


def parts_on_hub(choice: WeightsChoice) -> dict[str, Part]:
    """Component -> what it loads from the Hub, before any file is looked at."""
    hub = catalog.ON_HUB.get(choice.cascade)
    parts = dict(hub.parts) if hub else {}
    for own in choice.parts:
        parts.pop(own.component, None)
        if own.folder is None:
            declared = declared_part(own.component)
            parts[own.component] = replace(declared, repository=own.source, revision=own.revision)
    return parts


def _base(choice: WeightsChoice) -> BaseCascade:
    """The cascade that a choice is based on."""
    name = choice.cascade
    if name == catalog.DEMO:
        return local_cascade(name, DEMO_FOLDER)
    if name in catalog.ON_HUB:
        return hub_cascade(name, choice.revision)
    if (folder := existing_folder(name)) is not None:
        return local_cascade(str(folder), folder)
    if canonical := canonical_name(name):
        return _base(choice.of_cascade(canonical))
    raise unknown_cascade(name)


def _check(location: Location, parts: Mapping[str, Part]) -> None:
    """Raise an error if a file is broken, or belongs to another network or another component."""
    _check_own(location, parts)
    whole = {component: part for component, part in parts.items() if _is_here(location, component)}
    for component, part in whole.items():
        _check_extras(location.places[component], part)
    check_configurations(location.places, whole)
    for component, part in whole.items():
        for folder in map(location.places[component].folder, part.extras):
            for name in sorted(file_names(folder)):
                if name.endswith(".json"):
                    read_config(folder / name)


def _is_here(location: Location, component: str) -> bool:
    """Whether all files of a component must be on this disk, or are there."""
    if not any(location.cascade.parts[component].origins):
        return True
    return any(location.place(component, storage=storage) for storage in ("float16", "int8"))


def _check_own(location: Location, parts: Mapping[str, Part]) -> None:
    """Raise `CascadeError` if a part of the user's own is for another component or cascade."""
    known, places, own = location.cascade.parts, location.places, location.choice.part
    encoder = known.get(TEXT_ENCODER)
    given = text_width(encoder, places.get(TEXT_ENCODER), TEXT_ENCODER) if encoder else None
    for component, part in parts.items():
        facts, chosen, place = catalog.facts(component), own(component), places.get(component)
        if chosen and place and facts.draws:
            check_unet(chosen, place.file("unet/config.json"))
        if facts.reads_t5 and (concerned := chosen or own(TEXT_ENCODER)):
            check_widths(concerned, given, text_width(part, place, component))


def _check_extras(place: Place, part: Part) -> None:
    """Raise `CheckpointError` if a small folder of a component is missing."""
    for extra in part.extras:
        folder = place.folder(extra)
        if folder.name not in folder_names(folder.parent):
            raise CheckpointError(
                f"{folder}: this folder is missing; copy it from the source of the cascade"
            )
        if lacks_vocabulary(extra, file_names(folder)):
            raise CheckpointError(
                f"{folder}: it has neither spiece.model nor vocab.json with merges.txt; "
                "fetch or copy the folder again"
            )
