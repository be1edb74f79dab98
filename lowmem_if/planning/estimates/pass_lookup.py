"""The memory table's entry for one network, as one config computes it."""

from __future__ import annotations

from lowmem_if.cascade.parts import Module
from lowmem_if.planning.estimates.execution import ExecutionConfig
from lowmem_if.planning.estimates.memory_table import FUSED, MATH, PassProfile, look_up

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


def attention_of(device: str) -> str:
    """The attention kernel that torch uses on a device: on Apple's it holds the whole score matrix."""
    return MATH if device.startswith("mps") else FUSED


def pass_of(module: Module, config: ExecutionConfig) -> PassProfile | None:
    """The entry of a network in the number type that it computes in; None if the table lacks it."""
    in_float32 = module.is_vae or module.weights.kept
    return look_up(
        module,
        item_bytes=ITEM_BYTES["float32" if in_float32 else config.compute_dtype],
        attention=attention_of(config.device),
    )
