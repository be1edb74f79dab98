"""A network's sizes, from the headers of its files and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.cascade.configs import read_config
from lowmem_if.cascade.module_files import usable_variant, weight_variant
from lowmem_if.cascade.parts import Module, Weights
from lowmem_if.cascade.quantised_layers import is_quantised
from lowmem_if.cascade.safetensors_header import TensorHeader, are_bfloat16, read_headers
from lowmem_if.errors import CheckpointError

_QUANTISED = (".q.weight", ".k.weight", ".v.weight", ".o.weight", ".wi_0.weight", ".wi_1.weight")


def measured(name: str, folder: Path, component: str) -> Module:
    """The network `name` as the files of its folder describe it.

    The 8-bit file of a text encoder is used only if no other set is complete.

    Raises:
        CheckpointError: a file is missing or broken.
    """
    encodes = catalog.facts(component).encodes
    eight_bit = encodes and not usable_variant(folder, eight_bit=False)
    variant = weight_variant(folder, eight_bit=eight_bit)
    files = [folder / file for file in variant.files]
    if variant.index:
        read_config(folder / variant.index)
    return module_of(
        name, folder, read_config(folder / "config.json"), read_headers(files),
        sum(file.stat().st_size for file in files),
    )  # fmt: skip


def measured_if_here(folder: Path | None, module: Module, component: str) -> Module:
    """A network as its files describe it; as the catalogue describes it while a file is missing."""
    eight_bit = catalog.facts(component).encodes
    if folder is None or not usable_variant(folder, eight_bit=eight_bit):
        return module
    return measured(module.folder, folder, component)


def module_of(
    name: str,
    folder: Path,
    config: Mapping[str, Any],
    tensors: dict[str, TensorHeader],
    file_bytes: int,
) -> Module:
    """A network as its configuration and the headers of its files describe it.

    Raises:
        CheckpointError: the configuration has no sensible widths.
    """
    blocks = config.get("block_out_channels", [0])
    if not isinstance(blocks, list) or not isinstance(next(iter(blocks), None), int):
        raise CheckpointError(
            f"{folder / 'config.json'}: block_out_channels is not a list of numbers"
        )
    return Module(
        name,
        summarise(tensors, is_unet=name == "unet"),
        file_bytes,
        channels=blocks[0],
        is_bfloat16=are_bfloat16(tensors.values()),
    )


def summarise(tensors: dict[str, TensorHeader], *, is_unet: bool = False) -> Weights:
    """Count a module's parameters by what a storage dtype does with them.

    Only UNets and the text encoder, known by its layers' names, are ever quantised. An embedding with
    two names in a file is counted once (T5 ties `shared` and `embed_tokens`).
    """
    linear = kept = other = rows = 0
    for name, tensor in tensors.items():
        if name == "encoder.embed_tokens.weight" and "shared.weight" in tensors:
            continue
        if name.endswith((".SCB", ".weight_format")):
            continue
        if "DenseReluDense.wo.weight" in name:
            kept += tensor.numbers
        elif (
            is_quantised(name, tensor.shape)
            if is_unet
            else name.startswith("encoder.block.") and name.endswith(_QUANTISED)
        ):
            linear += tensor.numbers
            rows += tensor.shape[0]
        else:
            other += tensor.numbers
    return Weights(other, linear, kept, rows)
