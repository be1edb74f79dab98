"""Find the UNet that a LoRA is for: the one whose layers have the LoRA's names and shapes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lowmem_if.cascade.catalog import label
from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.locating.weights_choice import WeightsChoice
from lowmem_if.cascade.lora.adapter import STAGES, Lora
from lowmem_if.cascade.lora.lora_keys import Pair, plain_shape, read_pairs
from lowmem_if.cascade.module_files import weight_variant
from lowmem_if.cascade.safetensors_header import read_headers
from lowmem_if.errors import LoraError

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a network's weight -> its shape."""

_WEIGHT = ".weight"


class Misfit(Exception):
    """A LoRA is for another network; the message names the layer that does not fit."""


def fitted(pairs: Iterable[Pair], shapes: Shapes) -> dict[str, Pair]:
    """The weights that a LoRA changes: name of the weight -> the pair for it.

    Raises:
        Misfit: the network has no layer for a pair.
    """
    layers = {name.removesuffix(_WEIGHT) for name in shapes if name.endswith(_WEIGHT)}
    spelled: dict[str, list[str]] = {}
    for layer in layers:
        spelled.setdefault(layer.replace(".", "_"), []).append(layer)
    found: dict[str, Pair] = {}
    for pair in pairs:
        named = spelled.get(pair.layer, []) if pair.underscored else [pair.layer]
        if len(named) > 1:
            raise Misfit(f"{pair.down!r} could be for {' and '.join(sorted(named))}")
        name = "".join(named) + _WEIGHT
        if name not in shapes:
            raise Misfit(f"there is no layer for {pair.down!r}")
        if plain_shape(shapes[name]) != pair.shape:
            raise Misfit(
                f"{pair.down!r} is for a weight of shape {_sides(pair.shape)}, "
                f"but this weight is {_sides(shapes[name])}"
            )
        if name in found:
            raise Misfit(f"{found[name].down!r} and {pair.down!r} are for the same layer")
        found[name] = pair
    return found


def assign_stages(
    loras: Iterable[Lora], location: Location, components: Collection[str]
) -> tuple[Lora, ...]:
    """The LoRAs of a request, each with the stage that it is for; only `components` count.

    A stage whose weights are not on this disk cannot be compared. It is accepted if the user named it,
    or if it is the only stage that runs.

    Raises:
        LoraError: a LoRA fits no stage, or both.
    """
    loras = tuple(loras)
    running = [stage for stage in STAGES if stage in components] if loras else []
    shapes = {stage: _shapes(location, stage) for stage in running}
    return tuple(_assigned(lora, shapes, location.choice) for lora in loras)


def _assigned(lora: Lora, networks: Mapping[str, Shapes | None], weights: WeightsChoice) -> Lora:
    if not networks or (lora.stage and lora.stage not in networks):
        what = label(lora.stage) if lora.stage else "neither stage 1 nor stage 2"
        runs = "does not run" if lora.stage else "runs"
        raise LoraError(f"{lora.path}: {what} {runs} for this request: leave the LoRA out")
    if len(networks) > 1 and lora.stage is None and None in networks.values():
        raise LoraError(
            f"{lora.path} cannot be compared with the UNets of {weights.cascade}, which are not on "
            f"this disk: run `lowmem-if fetch {weights.options}`, or name the stage, like "
            f"stage_1={Path(lora.path).name}"
        )
    pairs = read_pairs(Path(lora.path))
    right, wrong = [], []
    for stage in (lora.stage,) if lora.stage else networks:
        shapes = networks[stage]
        try:
            if shapes is not None:
                fitted(pairs, shapes)
            right.append(stage)
        except Misfit as why:
            wrong.append(f"in {label(stage)} {why}")
    if not right:
        raise LoraError(f"{lora.path} fits no UNet that runs: {'; '.join(wrong)}")
    if len(right) > 1:
        name = Path(lora.path).name
        raise LoraError(
            f"{lora.path} fits {' and '.join(map(label, right))}: name the stage, like "
            f"{right[0]}={name} or {right[1]}={name}"
        )
    return replace(lora, stage=right[0])


def _shapes(location: Location, stage: str) -> Shapes | None:
    """The shapes of a stage's UNet, from its files' headers; None if the files are not on this disk."""
    place = location.place(stage)
    if place is None:
        return None
    folder = place.folder("unet")
    headers = read_headers(folder / name for name in weight_variant(folder).files)
    return {name: header.shape for name, header in headers.items()}


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
