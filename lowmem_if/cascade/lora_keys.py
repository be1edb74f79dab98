"""What a LoRA file holds, read from its header: pairs of small matrices, each for one layer.

Understood are, with and without `unet.` before them:
- peft's keys, which diffusers writes today: `LAYER.lora_A.weight` (down), `LAYER.lora_B.weight` (up);
- older diffusers': `LAYER.lora.down.weight`, and of attention processors
  `ATTENTION.processor.to_q_lora.down.weight`, `add_k_proj_lora` and `to_out_lora` among them;
- kohya's: `lora_unet_LAYER.lora_down.weight`, with underscores for the dots of LAYER.

How much a product counts is `LAYER.alpha` over its rank, or what diffusers keeps in the file's metadata
(peft's configuration); without either it counts once.

Sources: diffusers 0.42, `utils/state_dict_utils.py` (`UNET_TO_DIFFUSERS`), `loaders/peft.py`,
`loaders/lora_conversion_utils.py`; peft 0.21, `tuners/lora/layer.py` (`update_layer`,
`get_delta_weight`), `utils/other.py` (`get_pattern_key`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

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

_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps peft's configuration (`loaders/lora_base.py`)."""

_LEAVE_WEIGHTS_ALONE = ("gaussian", "eva", "orthogonal")
"""Of the beginnings that peft can give a LoRA by name those that don't change the network's weights."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two small matrices, down (rank, in) and up (out, rank); their product is added to a weight.

    Attributes:
        layer: what it changes, by the name in the network; with underscores for dots if `underscored`.
        down, up, alpha: the keys in the file; alpha None: the product counts `factor` times.
        shape: of the weight, (out, in) or (out, in, height, width).
        numbers: of both matrices.
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
    """The pairs of a LoRA file, in its order; every tensor of it belongs to one.

    Raises:
        LoraError: it holds something else, or a pair that is none.
        CheckpointError: it is missing or no sound safetensors file.
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
        raise LoraError(f"{file} holds no tensors: give a file with a LoRA")
    factor_of = _factors(file, metadata)
    return tuple(
        _pair(file, layer, underscored, keys, headers, factor_of)
        for (layer, underscored), keys in found.items()
    )


def plain_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A weight's shape without sides of one pixel: those of a linear layer and of a 1x1 convolution."""
    return shape[:2] if set(shape[2:]) <= {1} else shape


def _parsed(file: Path, key: str) -> tuple[str, bool, str]:
    """(layer, whether its dots are underscores, `down`, `up` or `alpha`)."""
    if key.startswith(_OF_TEXT_ENCODERS):
        raise LoraError(
            f"{file} is for a text encoder, too ({key!r}), which no LoRA is merged into: "
            "save the UNet's part alone"
        )
    # As diffusers does it (KEYS_TO_ALWAYS_REPLACE).
    name = key.removeprefix(_UNET).replace(".processor.", ".")
    matrix, alpha = _MATRIX.fullmatch(name), _ALPHA.fullmatch(name)
    match = matrix or alpha
    if match is None:
        raise LoraError(
            f"{file}: {key!r} is no part of a LoRA of two matrices a layer; "
            "other kinds (DoRA, LoHa, LoKr, biases, whole weights) are not merged"
        )
    layer: str = match["layer"]
    kind = "alpha"
    if matrix:
        said: str = matrix["peft"] or matrix["kohya"] or matrix["diffusers"]
        kind = _KINDS.get(said, said)
    if layer.startswith(_KOHYA):
        return layer.removeprefix(_KOHYA), True, kind
    # diffusers' attention has a list there, whose first entry is the layer.
    return re.sub(r"(?:^|(?<=\.))to_out$", "to_out.0", layer), False, kind


def _pair(
    file: Path,
    layer: str,
    underscored: bool,
    keys: Mapping[str, str],
    headers: Mapping[str, TensorHeader],
    factor_of: Callable[[str, int], float] | None,
) -> Pair:
    for kind, other in (("down", "up"), ("up", "down")):
        if kind not in keys:
            there = keys.get(other) or keys["alpha"]
            raise LoraError(f"{file}: {there!r} has no {kind!r} beside it: copy the file again")
    down, up = headers[keys["down"]], headers[keys["up"]]
    rank = down.shape[0] if down.shape else 0
    if (
        min(len(down.shape), len(up.shape)) < 2
        or not 0 < rank == up.shape[1]
        or not set(up.shape[2:]) <= {1}
        or not (down.is_floating and up.is_floating)
    ):
        raise LoraError(
            f"{file}: {keys['down']!r} {_told(down)} and {keys['up']!r} {_told(up)} are no pair of "
            "matrices with one rank"
        )
    alpha = keys.get("alpha")
    if alpha is not None and headers[alpha].numbers != 1:
        raise LoraError(f"{file}: {alpha!r} is no number but {_told(headers[alpha])}")
    if alpha is not None and factor_of is not None:
        raise LoraError(f"{file} says twice how much it counts, by {alpha!r} and by its metadata")
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


def _told(header: TensorHeader) -> str:
    return f"({header.dtype} {'x'.join(map(str, header.shape))})"


class _Configuration(BaseModel):
    """What of peft's `LoraConfig` decides what is added to a weight."""

    model_config = ConfigDict(frozen=True)

    r: PositiveInt
    lora_alpha: float
    rank_pattern: dict[str, PositiveInt] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str | None = True


def _factors(file: Path, metadata: Mapping[str, str]) -> Callable[[str, int], float] | None:
    """How often a layer's product counts, by its name and rank; None if the metadata says nothing."""
    if _METADATA not in metadata:
        return None
    try:
        said: Any = json.loads(metadata[_METADATA])
        settings = _Configuration(**{key.removeprefix(_UNET): said[key] for key in said})
        patterns = [*settings.rank_pattern, *settings.alpha_pattern]
        for pattern in patterns:
            re.compile(pattern)
    except (ValueError, TypeError, AttributeError, ValidationError, re.error) as error:
        line = str(error).splitlines()[0]
        raise LoraError(f"{file}: its {_METADATA} makes no sense ({line})") from error
    begun = settings.init_lora_weights
    if settings.use_dora or (isinstance(begun, str) and begun not in _LEAVE_WEIGHTS_ALONE):
        what = "DoRA" if settings.use_dora else f"a LoRA that began as {begun}"
        raise LoraError(f"{file} is {what}, which is not merged: convert it to a plain LoRA")

    def factor(layer: str, rank: int) -> float:
        expected = _by_pattern(settings.rank_pattern, layer, settings.r)
        if rank != expected:
            raise LoraError(f"{file}: {layer} has rank {rank}, its metadata says {expected}")
        alpha: float = _by_pattern(settings.alpha_pattern, layer, settings.lora_alpha)
        return alpha / (math.sqrt(rank) if settings.use_rslora else rank)

    return factor


def _by_pattern(patterns: Mapping[str, Any], layer: str, otherwise: Any) -> Any:
    """The value of the first pattern that is the layer's name or the end of it, as peft finds it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return otherwise
