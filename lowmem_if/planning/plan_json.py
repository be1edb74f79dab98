"""The JSON form of a step: one flat object, with its estimate under `predicted`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from lowmem_if.cascade.catalog import component_name
from lowmem_if.cascade.lora.adapter import Lora, merge_bytes_of
from lowmem_if.planning.estimates.execution import TILES

_REQUIRED = (
    "component", "strategy", "storage_dtype", "compute_dtype", "device", "batch", "area", "tile",
)  # fmt: skip
_LATER = ("resident_bytes", "speedup", "layout", "decoding")
"""Config fields that plans of the first versions lack."""

_LORA = TypeAdapter(tuple[Lora, ...])


def flat_step(step: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped `Step` in the form that plans are written in.

    `merge_bytes` is left out, because `lora` determines it.
    """
    config = step["config"]
    rest = {name: step[name] for name in ("samplings", "reason", "instead_of", "lora")}
    return {
        **{name: config[name] for name in (*_REQUIRED, *_LATER)},
        "vae_tiling": config["decoding"] == TILES,  # which programs of the first versions read
        "predicted": step["estimate"],
        **rest,
    }


def nested_step(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step that `flat_step` wrote, in the form of `Step`.

    Raises:
        KeyError, pydantic.ValidationError: a field is missing, or the LoRAs are not valid.
    """
    lora = _LORA.validate_python(step.get("lora", ()))
    config = {name: step[name] for name in _REQUIRED}
    config["component"] = component_name(config["component"])
    config |= {name: step[name] for name in _LATER if name in step}
    if step.get("vae_tiling"):  # plans of earlier versions
        config["decoding"] = TILES
    return {
        "config": config | {"merge_bytes": merge_bytes_of(lora)},
        "estimate": step["predicted"],
        **{name: step[name] for name in ("samplings", "reason", "instead_of")},
        "lora": lora,
    }
