"""Bytes of a component's weights: stored, in place under a strategy, and while it is idle."""

from __future__ import annotations

from lowmem_if.cascade.parts import Module, Part, Weights
from lowmem_if.cascade.quantised_layers import INT4, INT8, quantised_bytes
from lowmem_if.cascade.strategies import MODEL_OFFLOAD, QUANTISED, RESIDENT, STREAM
from lowmem_if.cascade.transfer_sizes import (
    LEAST_WINDOW_BYTES,
    STAGING_BUFFERS,
    STAGING_BYTES,
    WINDOW_UNITS,
)
from lowmem_if.planning.estimates.execution import ExecutionConfig
from lowmem_if.planning.estimates.pass_lookup import ITEM_BYTES, pass_of

ALLOCATOR_ROUNDING = 1.015
"""torch's allocator counts the remainders of blocks that it does not split: up to 1.2 % in dry runs."""

RESIDENT_GRAIN_BYTES = 10**8
"""The resident share of a streaming network is reported to a tenth of a GB and chosen no finer."""

STAGING_RAM_BYTES = STAGING_BUFFERS * STAGING_BYTES
"""The pinned buffers through which one network loads to an accelerator (`files/staging.py`)."""

_RESIDENT_SHARES = tuple(eighths / 8 for eighths in range(8))

_LARGEST_LAYER = 0.04
"""Share of a network's bytes in its largest layer, if the table lacks it (I-XL 3.3 %, T5-XXL 2.8 %)."""

_BLOCK_WINDOW, _CLIP_WINDOW = 0.082, 0.31
"""Window of a streaming text encoder over its bytes: two of T5-XXL's 24 blocks, or the upscaler's CLIP
embedding and the next layer. Other networks have a window for two of their largest layers."""


def stored_bytes(weights: Weights, storage: str, compute: str) -> int:
    """What a module's weights take in memory, by number type.

    transformers keeps T5's `wo` in float32 if the rest is float16 or int8 (`_keep_in_fp32_modules`), but
    not if it is bfloat16. nf4 adds one float32 scale per 64 numbers.
    """
    rest = ITEM_BYTES[compute if storage in QUANTISED else storage]
    kept = 2 if "bfloat16" in (storage, compute) and storage != "float32" else 4
    if storage in (INT8, INT4):
        linear = quantised_bytes(weights.linear, weights.linear_rows, storage)
    elif storage == "nf4":
        linear = weights.linear // 2 + 4 * weights.linear // 64
    else:
        linear = rest * weights.linear
    return linear + kept * weights.kept + rest * weights.other


def _computing_bytes(module: Module, config: ExecutionConfig) -> int:
    """What one network's weights would take in the types that they compute in."""
    storage = config.float_dtype if config.quantises_unet else config.storage_dtype
    return stored_bytes(module.weights, storage, config.compute_dtype)


def module_bytes(module: Module, config: ExecutionConfig) -> int:
    """What one network's weights take in memory under a config, all of them together."""
    return stored_bytes(module.weights, config.storage_dtype, config.compute_dtype)


def in_place_bytes(part: Part, config: ExecutionConfig) -> int:
    """What a component's weights take once it is loaded; for a streaming one, its resident part."""
    sizes = {module.folder: module_bytes(module, config) for module in part.modules}
    if config.strategy != STREAM:
        return sum(sizes.values()) + _numbers_bytes(part.largest, config)
    windows = {module.folder: _window_bytes(module, config) for module in part.modules}
    large = part.largest
    most = sizes[large.folder] - (0 if config.quantises_unet else windows[large.folder])
    kept = min(most, config.resident_bytes)
    return sum(windows.values()) + kept + _numbers_bytes(large, config)


def _numbers_bytes(module: Module, config: ExecutionConfig) -> int:
    """What the numbers take that are made of one layer's whole numbers while it computes."""
    return layer_bytes(module, config) if config.quantises_unet and module.is_unet else 0


def at_rest(part: Part, config: ExecutionConfig) -> tuple[int, int]:
    """(VRAM, RAM) that a loaded component takes while it is idle."""
    weights = in_place_bytes(part, config)
    if config.float_dtype == "bfloat16":
        weights += upcast_bytes(part, config)  # for good; from float16 only while it decodes
    if config.device == "cpu":
        return 0, weights
    if config.strategy in (RESIDENT, STREAM):
        pinned = pinned_bytes(part) if config.strategy == STREAM else 0
        return int(ALLOCATOR_ROUNDING * weights), pinned
    # A pipeline offloads its networks to RAM when it ends, but a text encoder works without one.
    on_device = config.strategy == MODEL_OFFLOAD and config.facts.encodes
    return weights if on_device else 0, weights


def upcast_bytes(part: Part, config: ExecutionConfig) -> int:
    """Extra bytes of the VAE's 16-bit weights, since it always decodes in float32."""
    vae = next((module for module in part.modules if module.is_vae), None)
    if config.strategy == STREAM:
        return 0  # its layers are upcast as they load
    return 2 * vae.weights.parameters if vae and ITEM_BYTES[config.float_dtype] == 2 else 0


def pinned_bytes(part: Part) -> int:
    """Pinned RAM of a streaming component: staging buffers for each of its networks."""
    return len(part.modules) * STAGING_RAM_BYTES


def layer_bytes(module: Module, config: ExecutionConfig) -> int:
    """What the largest layer of a network takes while it computes."""
    row = pass_of(module, config)
    if row is not None:
        return row.largest_layer_bytes
    return int(_LARGEST_LAYER * _computing_bytes(module, config))


def streams(module: Module, config: ExecutionConfig) -> bool:
    """Whether a network is larger than its window, so that its weights really stream."""
    window = _window_bytes(module, config)
    return config.strategy == STREAM and window < _computing_bytes(module, config)


def bytes_a_pass(part: Part, config: ExecutionConfig) -> float:
    """File bytes that a streaming component reads again in each of its passes."""
    large = part.largest
    whole = module_bytes(large, config)
    on_file = whole if config.quantises_unet else large.file_bytes
    return (1 - min(config.resident_bytes, whole) / whole) * on_file


def resident_choices(part: Part, config: ExecutionConfig) -> list[int]:
    """How many bytes of a streaming component may be resident, most first.

    Only 0 for the text encoder, which needs each of its weights once.
    """
    if config.facts.encodes:
        return [0]
    whole = module_bytes(part.largest, config)
    grains = {int(share * whole) // RESIDENT_GRAIN_BYTES for share in _RESIDENT_SHARES}
    return [grain * RESIDENT_GRAIN_BYTES for grain in sorted(grains, reverse=True)]


def _window_bytes(module: Module, config: ExecutionConfig) -> int:
    """Room for the layers of a network that are on the device at a time; all of a small network.

    A CPU uses the whole numbers of a quantised UNet where the file is mapped.
    """
    if config.quantises_unet and module.is_unet:
        codes = layer_bytes(module, config) // ITEM_BYTES[config.compute_dtype]
        return 0 if config.device == "cpu" else max(WINDOW_UNITS * codes, LEAST_WINDOW_BYTES)
    size = _computing_bytes(module, config)
    if module.folder == "text_encoder":
        share = _CLIP_WINDOW if config.facts.draws else _BLOCK_WINDOW
        window = int(share * size)
    else:
        window = WINDOW_UNITS * layer_bytes(module, config)
    return min(size, max(window, LEAST_WINDOW_BYTES))
