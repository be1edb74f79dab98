"""Find a cascade's files on this disk, and read their headers.

A name in the catalogue is looked up in the Hugging Face cache, and `demo` in the package itself. Any
other name is a folder with `stage_1/`, `stage_2/` and `upscaler/` in diffusers' layout. This module
downloads nothing and reads no tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lowmem_if.cascade import catalog
from lowmem_if.cascade.configs import check_configurations, read_config
from lowmem_if.cascade.module_files import (
    file_names,
    files_in,
    folder_names,
    is_whole,
    usable_variant,
    weight_variant,
)
from lowmem_if.cascade.parts import Cascade, Module, Part, Weights
from lowmem_if.cascade.safetensors_header import (
    TensorHeader,
    are_bfloat16,
    read_headers,
    unreadable,
)
from lowmem_if.cascade.variants import lacks_vocabulary
from lowmem_if.errors import CascadeError, CheckpointError

DEMO_FOLDER = Path(__file__).parents[1] / "demo"
"""The folder of the bundled cascade."""

_ROOTS = tuple(dict.fromkeys(facts.root for facts in catalog.COMPONENT.values()))

_QUANTISED = (".q.weight", ".k.weight", ".v.weight", ".o.weight", ".wi_0.weight", ".wi_1.weight")


@dataclass(frozen=True, slots=True)
class Location:
    """A cascade and, for each root (`stage_1`, `stage_2`, `upscaler`), its folder if it exists."""

    cascade: Cascade
    folders: dict[str, Path]

    def folder(self, component: str, *, storage: str = "float16") -> Path | None:
        """The folder with all that `component` needs for `storage`; None if anything is missing."""
        part = self.cascade.parts.get(component)
        folder = self.folders.get(part.root) if part else None
        if part is None or folder is None:
            return None
        return folder if is_whole(folder, component, part, eight_bit=storage == "int8") else None

    def files(self, component: str, *, storage: str = "float16") -> tuple[Path, ...]:
        """Every file on this disk that `component` reads for `storage`, as paths in its root."""
        part = self.cascade.parts[component]
        return files_in(self.folders[part.root], component, part, eight_bit=storage == "int8")


def locate(
    name: str,
    *,
    components: Collection[str] = catalog.COMPONENTS,
    revision: str = "main",
) -> Location:
    """Find a cascade by its name or folder; sizes are read from the files on this disk.

    Args:
        name: a name in the catalogue, or a folder.
        components: the components that will be used; the others are not examined.
        revision: a branch, tag or commit of the Hub repositories.

    Raises:
        CascadeError: no cascade has this name, or the folder contains none.
        CheckpointError: a weight file or configuration is broken or cannot be read, or a local cascade
            lacks one.
    """
    if name == catalog.DEMO:
        return _local_cascade(catalog.DEMO, DEMO_FOLDER, components)
    if name in catalog.PUBLISHED:
        return _published_cascade(catalog.PUBLISHED[name], revision, components)
    if (folder := existing_folder(name)) is not None:
        return _local_cascade(str(folder), folder, components)
    known = ", ".join(catalog.CASCADES)
    raise CascadeError(f"no cascade or folder {name!r}: use {known} or a folder with stage_1/")


def existing_folder(name: str) -> Path | None:
    """The absolute path of the folder that a user's text names; None if there is no such folder."""
    try:
        folder = Path(name).expanduser()
        return folder.resolve() if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a zero byte
        return None


def snapshot_folder(repository: str, revision: str = "main") -> Path | None:
    """The folder of a downloaded repository in the Hugging Face cache; None if it is not there."""
    root = storage_folder(repository)
    commit = _commit(root / "refs" / revision) or revision
    return root / "snapshots" / commit if commit in folder_names(root / "snapshots") else None


def storage_folder(repository: str) -> Path:
    """The folder in which the Hugging Face cache keeps all revisions of a repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _commit(reference: Path) -> str:
    """The commit of a branch or tag in the cache; empty if the cache does not know it."""
    try:
        return reference.read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return ""
    except OSError as error:
        raise unreadable(reference, error) from error


def _local_cascade(name: str, folder: Path, components: Collection[str]) -> Location:
    present = folder_names(folder)
    roots = {root: folder / root for root in _ROOTS if root in present}
    if "stage_1" not in roots:
        raise CascadeError(
            f"{folder} is not a cascade: it has no stage_1/ folder; "
            "--cascade takes a name or a folder with stage_1/, stage_2/ and upscaler/"
        )
    parts = {}
    for component in components:
        facts = catalog.COMPONENT[component]
        root, modules, extras = facts.root, facts.networks, facts.extras
        if root not in roots:
            raise CascadeError(f"{folder} has no {root}/ folder, which {component} needs")
        measured = tuple(
            _measure(roots[root] / module, eight_bit=component == catalog.TEXT_ENCODER)
            for module in modules
        )
        _check_extras(roots[root], extras)
        parts[component] = Part(root, None, measured, extras)
    _check_contents(roots, parts)
    tiny = name == catalog.DEMO or catalog.KNOWN_WORDS in file_names(roots["stage_1"] / "tokenizer")
    defaults = catalog.DEMO_DEFAULTS if tiny else catalog.IF_DEFAULTS
    return Location(Cascade(name, parts, defaults), roots)


def _check_extras(root: Path, extras: tuple[str, ...]) -> None:
    """Raise `CheckpointError` if a small folder of a local cascade is missing."""
    for extra in extras:
        if extra not in folder_names(root):
            raise CheckpointError(
                f"{root / extra}: this folder is missing; copy it from the source of the cascade"
            )
        if lacks_vocabulary(extra, file_names(root / extra)):
            raise CheckpointError(
                f"{root / extra}: it has neither spiece.model nor vocab.json with merges.txt; "
                "fetch or copy the folder again"
            )


def _check_contents(roots: Mapping[str, Path], parts: Mapping[str, Part]) -> None:
    """Raise `CheckpointError` if a component's JSON file is broken or belongs to another network."""
    check_configurations(roots, parts)
    for part in parts.values():
        for folder in (roots[part.root] / extra for extra in part.extras):
            for name in sorted(file_names(folder)):
                if name.endswith(".json"):
                    read_config(folder / name)


def _published_cascade(cascade: Cascade, revision: str, components: Collection[str]) -> Location:
    folders = {}
    for part in cascade.parts.values():
        folder = snapshot_folder(part.repository, revision) if part.repository else None
        if folder:
            folders[part.root] = folder
    parts = {
        component: replace(
            part,
            modules=tuple(
                _measure_if_here(folders.get(part.root), module, component)
                for module in part.modules
            ),
        )
        for component, part in cascade.parts.items()
        if component in components
    }
    location = Location(replace(cascade, parts=cascade.parts | parts), folders)
    whole = {
        component: part
        for component, part in parts.items()
        if any(location.folder(component, storage=storage) for storage in ("float16", "int8"))
    }
    _check_contents(folders, whole)
    return location


def _measure_if_here(root: Path | None, module: Module, component: str) -> Module:
    """A module as its files describe it; as the catalogue describes it while a file is missing."""
    eight_bit = component == catalog.TEXT_ENCODER
    if root is None or not usable_variant(root / module.folder, eight_bit=eight_bit):
        return module
    return _measure(root / module.folder, eight_bit=eight_bit)


def _measure(folder: Path, *, eight_bit: bool) -> Module:
    """A module as its files describe it; the 8-bit file is used only if no other set is complete."""
    eight_bit = eight_bit and not usable_variant(folder, eight_bit=False)
    variant = weight_variant(folder, eight_bit=eight_bit)
    files = [folder / name for name in variant.files]
    if variant.index:
        read_config(folder / variant.index)
    config = read_config(folder / "config.json")
    blocks = config.get("block_out_channels", [0])
    if not isinstance(blocks, list) or not isinstance(next(iter(blocks), None), int):
        raise CheckpointError(
            f"{folder / 'config.json'}: block_out_channels is not a list of numbers"
        )
    tensors = read_headers(files)
    return Module(
        folder.name,
        summarise(tensors),
        sum(file.stat().st_size for file in files),
        channels=blocks[0],
        is_bfloat16=are_bfloat16(tensors.values()),
    )


def summarise(tensors: dict[str, TensorHeader]) -> Weights:
    """Count a module's parameters by what a storage dtype does with them.

    Only the text encoder is ever quantised, so only its layer names count as `linear` and `kept`. An
    embedding with two names in a file is counted once (T5 ties `shared` and `embed_tokens`).
    """
    linear = kept = other = rows = 0
    for name, tensor in tensors.items():
        if name == "encoder.embed_tokens.weight" and "shared.weight" in tensors:
            continue
        if name.endswith((".SCB", ".weight_format")):
            continue
        if "DenseReluDense.wo.weight" in name:
            kept += tensor.numbers
        elif name.startswith("encoder.block.") and name.endswith(_QUANTISED):
            linear += tensor.numbers
            rows += tensor.shape[0]
        else:
            other += tensor.numbers
    return Weights(other, linear, kept, rows)
