"""Read peft's configuration of a LoRA: the factor of each layer's product, from alpha and rank.

peft writes it as `adapter_config.json` next to `adapter_model.safetensors`; diffusers keeps the same
fields in the metadata of its own file.

Sources: peft 0.21, `tuners/lora/config.py` (`LoraConfig`), `tuners/lora/layer.py` (`update_layer`,
`get_delta_weight`), `utils/other.py` (`get_pattern_key`), `peft_model.py` (`save_pretrained`);
diffusers 0.42, `loaders/lora_base.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from lowmem_if.errors import LoraError

PREFIX = "base_model.model."
"""What peft puts in front of each key of a file that it saves."""

WEIGHTS, CONFIGURATION = "adapter_model.safetensors", "adapter_config.json"
"""The files of a folder that peft saves."""

METADATA = "lora_adapter_metadata"
"""The metadata key of peft's configuration in files of diffusers."""

_UNET = "unet."

_LEAVE_WEIGHTS_ALONE = ("gaussian", "eva", "orthogonal")
"""The named initialisations of peft that do not change the network's weights."""

_VARIANTS = {
    "use_dora": "DoRA", "use_qalora": "QALoRA", "use_bdlora": "BD-LoRA", "kasa_config": "KaSA",
    "arrow_config": "an Arrow router", "alora_invocation_tokens": "an activated LoRA",
    "layer_replication": "a LoRA of replicated layers", "target_parameters": "a LoRA of parameters",
    "lora_bias": "a LoRA with biases", "modules_to_save": "a LoRA with whole layers",
}  # fmt: skip
"""The fields of a configuration that add more to a layer than a product of two matrices."""

Factor = Callable[[str, int], float]
"""The factor of a layer's product, from the layer's name and the product's rank."""


class _Configuration(BaseModel):
    """The fields of peft's `LoraConfig` that decide what is added to a weight."""

    model_config = ConfigDict(frozen=True)

    r: PositiveInt
    lora_alpha: float
    peft_type: str | None = "LORA"
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = False
    init_lora_weights: bool | str | None = True


def configuration_file(file: Path, keys: Collection[str]) -> Path | None:
    """Where a LoRA's configuration is, if it is a file in peft's own layout; it may be missing."""
    if file.name == WEIGHTS or any(key.startswith(PREFIX) for key in keys):
        return file.with_name(CONFIGURATION)
    return None


def factor_by_peft(file: Path, keys: Collection[str], metadata: Mapping[str, str]) -> Factor | None:
    """The factors that peft's configuration gives the layers of a file; None without one.

    Raises:
        LoraError: the configuration is missing, not valid, or of an unsupported kind.
    """
    if METADATA in metadata:
        return _factor(file, f"its {METADATA}", metadata[METADATA])
    configuration = configuration_file(file, keys)
    if configuration is None:
        return None
    try:
        text = configuration.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LoraError(
            f"{file} is saved by peft, but {CONFIGURATION} with its alpha is not next to it: "
            "copy the whole folder"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise LoraError(f"{configuration} cannot be read ({error}): copy it again") from error
    return _factor(file, f"its {CONFIGURATION}", text)


def _factor(file: Path, where: str, text: str) -> Factor:
    try:
        content: Any = json.loads(text)
        fields = {key.removeprefix(_UNET): content[key] for key in content}
        _check_supported(file, fields)
        config = _Configuration(**fields)
        ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
        for pattern in (*ranks, *alphas):
            re.compile(pattern)
    except (ValueError, TypeError, AttributeError, ValidationError, re.error) as error:
        reason = " ".join(str(error).split("\n")[:3])
        raise LoraError(f"{file}: {where} is not valid ({reason}): copy it again") from error

    def factor(layer: str, rank: int) -> float:
        expected = _by_pattern(ranks, layer, config.r)
        if rank != expected:
            raise LoraError(
                f"{file}: {layer} has rank {rank}, but {where} says {expected}: "
                "they belong to different trainings"
            )
        alpha: float = _by_pattern(alphas, layer, config.lora_alpha)
        return alpha / (math.sqrt(rank) if config.use_rslora else rank)

    return factor


def _check_supported(file: Path, fields: Mapping[str, Any]) -> None:
    """Raise `LoraError` for a kind of adapter that is not a sum of a weight and a product."""
    kind, initial = fields.get("peft_type") or "LORA", fields.get("init_lora_weights")
    what = next((name for field, name in _VARIANTS.items() if fields.get(field)), "")
    if str(kind).upper() != "LORA":
        what = f"an adapter of type {kind}"
    elif isinstance(initial, str) and initial not in _LEAVE_WEIGHTS_ALONE:
        what = f"a LoRA initialised by {initial}"
    if what:
        raise LoraError(f"{file} is {what}, which is not supported: convert it to a plain LoRA")


def _by_pattern(patterns: Mapping[str, Any], layer: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the layer's name or its end, as in peft."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return otherwise
