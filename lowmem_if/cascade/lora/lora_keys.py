"""Read a LoRA file's header: pairs of small matrices, each for one layer.

The reader accepts these keys, with or without the prefix `unet.`:
- peft's keys, which diffusers writes today: `LAYER.lora_A.weight` (down), `LAYER.lora_B.weight` (up);
  peft's own files also have the prefix `base_model.model.`;
- older diffusers keys: `LAYER.lora.down.weight`, and for attention processors
  `ATTENTION.processor.to_q_lora.down.weight`, also with `add_k_proj_lora` and `to_out_lora`;
- kohya's keys: `lora_unet_LAYER.lora_down.weight`, with underscores for the dots of LAYER.

A product is multiplied by `LAYER.alpha` over its rank, or by the factor of peft's configuration, which
is in the file's metadata (diffusers) or next to the file (peft). Without either, the factor is 1.

Sources: diffusers 0.42, `utils/state_dict_utils.py` (`UNET_TO_DIFFUSERS`), `loaders/peft.py`,
`loaders/lora_conversion_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lowmem_if.cascade.lora.peft_configuration import PREFIX, Factor, factor_by_peft
from lowmem_if.cascade.safetensors_header import TensorHeader, read_header_and_metadata
from lowmem_if.errors import LoraError

_KOHYA, _UNET = "lora_unet_", "unet."
_OF_TEXT_ENCODERS = ("text_encoder", "lora_te")

_MATRIX = re.compile(
    r"(?P<layer>.+?)"
    r"(?:\.lora_(?P<peft>[AB])|\.lora_(?P<kohya>down|up)"
    r"|(?:\.lora|\.lora_linear_layer|_lora)\.(?P<diffusers>down|up))"
    r"\.weight"
)
_ALPHA = re.compile(r"(?P<layer>.+?)(?:\.lora|_lora)?\.alpha")
_KINDS = {"A": "down", "B": "up"}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two small matrices, down (rank, in) and up (out, rank); their product is added to a weight.

    Attributes:
        layer: name of the layer that it changes; with underscores for dots if `underscored`.
        down, up, alpha: the keys in the file; without an alpha, `factor` multiplies the product.
        shape: shape of the weight, (out, in) or (out, in, height, width).
        numbers: how many numbers both matrices have.
    """

    layer: str
    underscored: bool
    down: str
    up: str
    alpha: str | None
    factor: float
    rank: int
    shape: tuple[int, ...]
    numbers: int


def read_pairs(file: Path) -> tuple[Pair, ...]:
    """The pairs of a LoRA file, in its order; every tensor in the file belongs to one.

    Raises:
        LoraError: the file contains something else, or a pair that is not valid.
        CheckpointError: the file is missing or not a valid safetensors file.
    """
    headers, metadata = read_header_and_metadata(file)
    found: dict[tuple[str, bool], dict[str, str]] = {}
    for key in headers:
        layer, underscored, kind = _parsed(file, key)
        keys = found.setdefault((layer, underscored), {})
        if kind in keys:
            raise LoraError(f"{file}: {keys[kind]!r} and {key!r} are for the same layer: keep one")
        keys[kind] = key
    if not found:
        raise LoraError(f"{file} contains no tensors: give a file with a LoRA")
    factor_of = factor_by_peft(file, headers, metadata)
    return tuple(
        _pair(file, layer, underscored, keys, headers, factor_of)
        for (layer, underscored), keys in found.items()
    )


def plain_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A weight's shape without trailing ones: linear layers and 1x1 convolutions then look alike."""
    return shape[:2] if set(shape[2:]) <= {1} else shape


def _parsed(file: Path, key: str) -> tuple[str, bool, str]:
    """(layer, whether its dots are underscores, `down`, `up` or `alpha`)."""
    name = key.removeprefix(PREFIX)
    if name.startswith(_OF_TEXT_ENCODERS):
        raise LoraError(
            f"{file} also changes a text encoder ({key!r}), but LoRAs are merged into UNets only: "
            "save the UNet's part as a file of its own"
        )
    # diffusers does the same (KEYS_TO_ALWAYS_REPLACE).
    name = name.removeprefix(_UNET).replace(".processor.", ".")
    matrix, alpha = _MATRIX.fullmatch(name), _ALPHA.fullmatch(name)
    match = matrix or alpha
    if match is None:
        raise LoraError(
            f"{file}: {key!r} does not belong to a LoRA with two matrices per layer; "
            "other kinds (DoRA, LoHa, LoKr, biases, whole weights) are not supported"
        )
    layer: str = match["layer"]
    kind = "alpha"
    if matrix:
        spelled: str = matrix["peft"] or matrix["kohya"] or matrix["diffusers"]
        kind = _KINDS.get(spelled, spelled)
    if layer.startswith(_KOHYA):
        return layer.removeprefix(_KOHYA), True, kind
    # In diffusers, `to_out` is a list, and its first entry is the layer.
    return re.sub(r"(?:^|(?<=\.))to_out$", "to_out.0", layer), False, kind


def _pair(
    file: Path,
    layer: str,
    underscored: bool,
    keys: Mapping[str, str],
    headers: Mapping[str, TensorHeader],
    factor_of: Factor | None,
) -> Pair:
    for kind, other in (("down", "up"), ("up", "down")):
        if kind not in keys:
            there = keys.get(other) or keys["alpha"]
            raise LoraError(f"{file}: {there!r} has no matching {kind!r}: copy the file again")
    down, up = headers[keys["down"]], headers[keys["up"]]
    rank = down.shape[0] if down.shape else 0
    if (
        min(len(down.shape), len(up.shape)) < 2
        or not 0 < rank == up.shape[1]
        or not set(up.shape[2:]) <= {1}
        or not (down.is_floating and up.is_floating)
    ):
        raise LoraError(
            f"{file}: {keys['down']!r} {_described(down)} and {keys['up']!r} {_described(up)} are not "
            "two matrices of the same rank"
        )
    alpha = keys.get("alpha")
    if alpha is not None and headers[alpha].numbers != 1:
        raise LoraError(f"{file}: {alpha!r} is not a number but {_described(headers[alpha])}")
    if alpha is not None and factor_of is not None:
        raise LoraError(
            f"{file} sets its factor twice: by {alpha!r} and in peft's configuration: remove one"
        )
    return Pair(
        layer,
        underscored,
        keys["down"],
        keys["up"],
        alpha,
        factor_of(layer, rank) if factor_of else 1.0,
        rank,
        plain_shape((up.shape[0], *down.shape[1:])),
        down.numbers + up.numbers,
    )


def _described(header: TensorHeader) -> str:
    return f"({header.dtype} {'x'.join(map(str, header.shape))})"
