"""Where a cascade's files lie on this disk, and what their headers say.

A name of the catalogue is looked up in the Hugging Face cache, `demo` in the package itself, anything
else is a folder with `stage_1/`, `stage_2/` and `upscaler/` in diffusers layout. Nothing is downloaded
and no tensor is read here.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowmem_if.errors import CascadeError, CheckpointError
from lowmem_if.planning import catalog
from lowmem_if.planning.catalog import Cascade, Module, Part, Weights
from lowmem_if.planning.headers import TensorHeader, read_headers
from lowmem_if.planning.variants import Variant, choose_variant

DEMO_FOLDER = Path(__file__).parents[1] / "demo"
"""The cascade that is bundled with the package."""

_QUANTISED = (".q.weight", ".k.weight", ".v.weight", ".o.weight", ".wi_0.weight", ".wi_1.weight")


@dataclass(frozen=True, slots=True)
class Location:
    """A cascade and, for each root (`stage_1`, `stage_2`, `upscaler`), its folder if it is here."""

    cascade: Cascade
    folders: dict[str, Path]

    def folder(self, component: str, *, storage: str = "float16") -> Path | None:
        """The folder that holds what `component` needs for `storage`; None if it is not here."""
        part = self.cascade.parts.get(component)
        folder = self.folders.get(part.root) if part else None
        if part is None or folder is None:
            return None
        eight_bit = storage == "int8"
        usable = all(_usable(folder / m.folder, eight_bit=eight_bit) for m in part.modules)
        return folder if usable and all((folder / e).is_dir() for e in part.extras) else None


def locate(
    name: str, *, components: Collection[str] = catalog.COMPONENTS, revision: str = "main"
) -> Location:
    """Find a cascade by its name or folder; sizes are read from the files that are here.

    Args:
        name: a name of the catalogue or a folder.
        components: those that will be used; the others are not looked at.
        revision: of the Hub repositories, a branch, tag or commit.

    Raises:
        CascadeError: no cascade of that name, or the folder holds none.
        CheckpointError: a weight file or configuration that is here is broken.
    """
    if name == catalog.DEMO:
        return _local_cascade(catalog.DEMO, DEMO_FOLDER, components)
    if name in catalog.PUBLISHED:
        return _published_cascade(catalog.PUBLISHED[name], revision)
    if (folder := existing_folder(name)) is not None:
        return _local_cascade(str(folder), folder, components)
    known = ", ".join(catalog.CASCADES)
    raise CascadeError(f"no cascade or folder {name!r}: use {known} or a folder with stage_1/")


def existing_folder(name: str) -> Path | None:
    """The folder that a user's text names, absolute; None if it names none."""
    try:
        folder = Path(name).expanduser()
        return folder.resolve() if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a zero byte
        return None


def snapshot_folder(repository: str, revision: str = "main") -> Path | None:
    """The folder of a downloaded repository in the Hugging Face cache, None if it is not there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    root = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    reference = root / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = root / "snapshots" / commit
    return folder if folder.is_dir() else None


def weight_variant(folder: Path, *, eight_bit: bool = False) -> Variant:
    """The weight files to load from one module folder.

    Raises:
        CheckpointError: there are none, or a shard is missing.
    """
    variant = choose_variant(_names(folder), eight_bit=eight_bit)
    if variant is None:
        raise CheckpointError(f"{folder}: no safetensors weights; fetch or copy the folder again")
    if variant.missing:
        raise CheckpointError(
            f"{folder}: {', '.join(variant.missing)} missing; fetch or copy the folder again"
        )
    if len(variant.files) > 1 and variant.index is None:
        raise CheckpointError(f"{folder}: the shards have no index file; fetch the folder again")
    return variant


def read_config(file: Path) -> dict[str, Any]:
    """A JSON configuration file; a missing or broken one is a `CheckpointError`."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read ({error.strerror}); fetch it again"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file}: no valid JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: not a JSON object; fetch it again")
    return config


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def _usable(folder: Path, *, eight_bit: bool) -> Variant | None:
    """The complete set of files that a module would be loaded from; None while one is missing."""
    names = _names(folder)
    variant = choose_variant(names, eight_bit=eight_bit)
    if variant is None or variant.missing or "config.json" not in names:
        return None
    return variant if variant.index or len(variant.files) == 1 else None


def _local_cascade(name: str, folder: Path, components: Collection[str]) -> Location:
    roots = {root: folder / root for root in ("stage_1", "stage_2", "upscaler")}
    present = {root: path for root, path in roots.items() if path.is_dir()}
    if "stage_1" not in present:
        raise CascadeError(
            f"{folder} is no cascade: it has no stage_1/ folder; "
            "--cascade takes a name or a folder with stage_1/, stage_2/ and upscaler/"
        )
    parts = {}
    for component in components:
        root, modules, extras = catalog.FOLDERS[component]
        if root not in present:
            raise CascadeError(f"{folder} has no {root}/ folder, which {component} needs")
        measured = tuple(_measure(present[root] / module) for module in modules)
        parts[component] = Part(root, None, measured, extras)
    defaults = catalog.DEMO_DEFAULTS if name == catalog.DEMO else catalog.IF_DEFAULTS
    return Location(Cascade(name, parts, defaults), present)


def _published_cascade(cascade: Cascade, revision: str) -> Location:
    folders = {}
    for part in cascade.parts.values():
        folder = snapshot_folder(part.repository, revision) if part.repository else None
        if folder:
            folders[part.root] = folder
    parts = {
        component: replace(
            part, modules=tuple(_measure_if_here(folders.get(part.root), m) for m in part.modules)
        )
        for component, part in cascade.parts.items()
    }
    return Location(replace(cascade, parts=parts), folders)


def _measure_if_here(root: Path | None, module: Module) -> Module:
    if root is None or not any(_usable(root / module.folder, eight_bit=e) for e in (False, True)):
        return module
    return _measure(root / module.folder)


def _measure(folder: Path) -> Module:
    """A module as its own files describe it."""
    eight_bit = not _usable(folder, eight_bit=False) and choose_variant(
        _names(folder), eight_bit=True
    )
    variant = weight_variant(folder, eight_bit=bool(eight_bit))
    files = [folder / name for name in variant.files]
    config = read_config(folder / "config.json")
    blocks = config.get("block_out_channels", [0])
    if not isinstance(blocks, list) or not isinstance(next(iter(blocks), None), int):
        raise CheckpointError(f"{folder / 'config.json'}: block_out_channels is no list of numbers")
    return Module(
        folder.name,
        summarise(read_headers(files)),
        sum(file.stat().st_size for file in files),
        channels=blocks[0],
    )


def summarise(tensors: dict[str, TensorHeader]) -> Weights:
    """Sort a module's tensors by what a storage type does with them.

    Only the text encoder is ever quantised, so only its layer names count as `linear` and `kept`;
    an embedding that a file holds under two names is one (T5 ties `shared` and `embed_tokens`).
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
