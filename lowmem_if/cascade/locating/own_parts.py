"""A part of the user's own: fine-tuned weights in diffusers layout, in a folder or a repository.

Its networks are measured by their own files; before a download, by the headers on the Hub. Small folders
that it lacks are the cascade's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lowmem_if.cascade import catalog
from lowmem_if.cascade.configs import configuration_files, read_config
from lowmem_if.cascade.locating.cascade_names import component_of
from lowmem_if.cascade.locating.hub_folders import newest_snapshot, snapshot_folder
from lowmem_if.cascade.locating.measured import measured, measured_if_here
from lowmem_if.cascade.locating.remote_repository import ask
from lowmem_if.cascade.locating.repository_folders import kind_of_unet
from lowmem_if.cascade.locating.weights_choice import PartChoice, missing_folder
from lowmem_if.cascade.module_files import (
    GUIDE,
    file_names,
    folder_names,
    is_whole,
)
from lowmem_if.cascade.parts import Module, Part, Place
from lowmem_if.cascade.remote.hub_errors import plain_words
from lowmem_if.cascade.variants import find_variants, is_pickle
from lowmem_if.errors import CascadeError, HubError

_LORA_FILES = {"pytorch_lora_weights.safetensors", "adapter_model.safetensors"}


def own_part(
    choice: PartChoice, lent: Part, lent_place: Place | None, *, asks_hub: bool = True
) -> tuple[Part, Place | None]:
    """A part of the user's own, and where it is on this disk; None: nowhere yet.

    Args:
        lent: the cascade's part, which supplies the folders that the user's own lacks.
        lent_place: where the cascade's part is.
        asks_hub: whether the Hub is asked for the sizes of a repository that is not on this disk.

    Raises:
        CascadeError: it is not a part of this kind.
        CheckpointError: a file is missing or broken.
        HubError: the repository is not on this disk, and the Hub cannot be asked.
    """
    if choice.folder is not None:
        place = _place_in(choice, choice.folder)
        return _part_here(choice, place, lent, lent_place)
    _check_published(choice)
    snapshot = snapshot_folder(choice.source, choice.revision)
    if snapshot and _is_downloaded(choice, place := Place(snapshot), lent):
        return _part_here(choice, place, lent, lent_place)
    if known := _catalogued(choice):
        return known, None
    if not asks_hub:
        return _part(choice, (), lent, lent.modules), None
    try:
        with plain_words(choice.source, choice.revision):
            return _remote_part(choice, lent, lent_place)
    except HubError as error:
        raise HubError(f"{missing_folder(choice)}; {error}") from error


def check_unet(choice: PartChoice, file: Path) -> None:
    """Raise `CascadeError` unless a part's UNet, with this configuration, is for its component."""
    kind = kind_of_unet(read_config(file))
    if kind != choice.component:
        raise _other_kind(choice, kind)


def text_width(part: Part, place: Place | None, component: str) -> int | None:
    """Numbers per token that a text encoder gives, or that a UNet reads; None if it is not known."""
    encodes = catalog.facts(component).encodes
    if place and (file := place.file(f"{part.folders[0]}/config.json")).is_file():
        config = read_config(file)
        read = config.get("encoder_hid_dim") or config.get("cross_attention_dim", 1280)
        width = config.get("d_model") if encodes else read
        return width if isinstance(width, int) else None
    published = part.repository and component_of(part.repository)
    return catalog.TEXT_WIDTH if published else None


def check_widths(choice: PartChoice, encoder: int | None, unet: int | None) -> None:
    """Raise `CascadeError` if a part of the user's own does not go with the rest of the cascade.

    Args:
        encoder: numbers per token that the text encoder gives; None: not known.
        unet: numbers per token that a UNet reads; None: not known.
    """
    if None in (encoder, unet) or encoder == unet:
        return
    if catalog.facts(choice.component).encodes:
        raise CascadeError(
            f"--part {choice}: it gives {encoder} numbers per token, and a UNet of this cascade reads "
            f"{unet}: it is another text encoder than theirs"
        )
    raise CascadeError(
        f"--part {choice}: its UNet reads {unet} numbers per token, and the text encoder of this "
        f"cascade gives {encoder}: it was trained for another text encoder"
    )


def _other_kind(choice: PartChoice, kind: str | None) -> CascadeError:
    wanted = catalog.label(choice.component)
    if kind is None:
        return CascadeError(f"--part {choice}: its UNet is not one of IF: {wanted} needs its own")
    other = str(choice).replace(choice.component, kind, 1)
    return CascadeError(
        f"--part {choice}: this is {catalog.label(kind)}, not {wanted}: "
        f"did you mean --part {other}?"
    )


def _check_published(choice: PartChoice) -> None:
    """Raise `CascadeError` for a published repository of another component."""
    kind = component_of(choice.source)
    if kind and catalog.facts(kind).root != catalog.facts(choice.component).root:
        raise _other_kind(choice, kind)


def _catalogued(choice: PartChoice) -> Part | None:
    """The catalogue's part from a published repository, whose sizes need not be asked for."""
    parts = (cascade.parts[choice.component] for cascade in catalog.ON_HUB.values())
    for part in parts:
        if part.repository == choice.source:
            return replace(part, revision=choice.revision)
    return None


def _place_in(choice: PartChoice, folder: Path) -> Place:
    """Where the networks are in a folder: a repository's, a cascade's, or the network's own folder."""
    facts = catalog.facts(choice.component)
    names, main = folder_names(folder), facts.networks[0]
    if main in names:
        return Place(folder)
    if main in folder_names(folder / facts.root):
        return Place(folder / facts.root)
    if snapshot := newest_snapshot(folder):
        return _place_in(choice, snapshot)
    files = file_names(folder)
    if facts.draws and "config.json" in files and _has_weights(files):
        return Place(folder.parent) if folder.name == main else Place(folder, {main: folder})
    if files & _LORA_FILES:
        raise CascadeError(f"--part {choice}: this folder holds a LoRA: give it with --lora")
    if not folder.is_dir():
        raise CascadeError(f"--part {choice}: this folder does not exist any more: put it back")
    raise CascadeError(
        f"--part {choice}: it has no folder {main}/, and is not one itself: give a folder in diffusers "
        f"layout, see {GUIDE}"
    )


def _has_weights(names: set[str]) -> bool:
    return bool(find_variants(names)) or any(map(is_pickle, names))


def _is_downloaded(choice: PartChoice, place: Place, lent: Part) -> bool:
    """Whether all files are here that are the part's own."""
    facts, lacking = catalog.facts(choice.component), _lacking(choice, place)
    if facts.networks[0] in lacking:
        return False
    own = replace(
        lent,
        modules=tuple(module for module in lent.modules if module.folder not in lacking),
        extras=tuple(extra for extra in lent.extras if extra not in lacking),
    )
    return any(is_whole(place, choice.component, own, eight_bit=each) for each in (False, True))


def _part_here(
    choice: PartChoice, place: Place, lent: Part, lent_place: Place | None
) -> tuple[Part, Place]:
    lacking = _lacking(choice, place)
    place = _completed(place, lacking, lent_place)
    modules = (
        _lent_module(choice, module, place, lent)
        if module.folder in lacking
        else measured(module.folder, place.folder(module.folder), choice.component)
        for module in lent.modules
    )
    return _part(choice, lacking, lent, modules), place


def _lent_module(choice: PartChoice, module: Module, place: Place, lent: Part) -> Module:
    """A network of the cascade; before a download it has the catalogue's sizes."""
    folder = place.folder(module.folder)
    if lent.repository:
        return measured_if_here(folder, module, choice.component)
    return measured(module.folder, folder, choice.component)


def _lacking(choice: PartChoice, place: Place) -> tuple[str, ...]:
    """The folders of the component that are not in this place."""
    facts = catalog.facts(choice.component)
    there = folder_names(place.root) | place.elsewhere.keys()
    return tuple(name for name in (*facts.networks, *facts.extras) if name not in there)


def _part(
    choice: PartChoice, lacking: tuple[str, ...], lent: Part, modules: Iterable[Module]
) -> Part:
    return Part(
        lent.root,
        None if choice.folder else choice.source,
        tuple(modules),
        lent.extras,
        revision=choice.revision,
        borrowed=lacking,
        lender=lent.repository,
    )


def _completed(place: Place, lacking: tuple[str, ...], lent_place: Place | None) -> Place:
    """The place with the folders that the cascade's part supplies."""
    if lent_place is None:
        return place
    elsewhere = {name: lent_place.folder(name) for name in lacking}
    if "model_index.json" not in file_names(place.root):
        elsewhere["."] = lent_place.folder(".")
    return Place(place.root, {**place.elsewhere, **elsewhere})


def _remote_part(choice: PartChoice, lent: Part, lent_place: Place | None) -> tuple[Part, Place]:
    """A repository's part by the headers of its files; only its configurations are downloaded."""
    facts, repository = catalog.facts(choice.component), ask(choice.source, choice.revision)
    there = repository.folders
    lacking = tuple(name for name in (*facts.networks, *facts.extras) if name not in there)
    if facts.networks[0] in lacking:
        raise CascadeError(
            f"--part {choice}: this repository has no folder {facts.networks[0]}/: give one in "
            f"diffusers layout, see {GUIDE}"
        )
    wanted = {f"{module.folder}/config.json" for module in lent.modules}
    snapshot = repository.snapshot(wanted.union(configuration_files(choice.component, lent)))
    place = _completed(Place(snapshot), lacking, lent_place)
    modules = [
        _lent_module(choice, module, place, lent)
        if module.folder in lacking
        else repository.module(place.folder(module.folder))
        for module in lent.modules
    ]
    return _part(choice, lacking, lent, modules), place
