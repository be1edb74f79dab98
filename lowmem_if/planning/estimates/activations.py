"""Bytes that a component needs in addition to its weights while it computes.

Published networks are in the memory table. The activations of another network are assumed to grow with
width x pixels x number size x batch, like those of its largest published relative. On a CPU measured
factors apply, since the heap and oneDNN hold more than tensors do.
"""

from __future__ import annotations

from lowmem_if.cascade import catalog
from lowmem_if.cascade.parts import Module
from lowmem_if.cascade.strategies import STREAM
from lowmem_if.planning.estimates.execution import WHOLE, ExecutionConfig
from lowmem_if.planning.estimates.memory_layout import CHANNELS_LAST
from lowmem_if.planning.estimates.memory_table import MATH
from lowmem_if.planning.estimates.pass_lookup import ITEM_BYTES, attention_of, pass_of
from lowmem_if.planning.estimates.strip_memory import kept_bytes, strip_bytes
from lowmem_if.planning.estimates.weight_bytes import layer_bytes, streams

TEXTS_A_PASS = 256
"""How many prompts a streaming text encoder processes per pass over its weights, at most."""

_TEXT_ACTIVATION_BYTES = 25_000_000
"""One prompt of 77 tokens through T5-XXL."""

_TEXT_NUMBERS = 77 * 4096
"""Numbers in the hidden states of one prompt of T5-XXL."""

_STATE_BYTES = {"float16": 4, "bfloat16": 2, "float32": 4}
"""Bytes per number of these states: with float16 weights, transformers computes them in float32."""

_SMALL_ACTIVATION_BYTES = 50_000_000
"""The safety checker and the image that it examines."""

_RESULT_BYTES = 3 * 3 * 4 * 1024**2
"""Three copies of a square image's float32 numbers."""

_HEAP_SLACK, _CPU_VAE_SLACK = 1.15, 1.3
"""Anonymous memory of a CPU run over its activations. Freed memory remains in the heap for a while,
unless weights stream; oneDNN's convolutions of 1024 pixels have scratch memory of their own."""

_STRIPS_SLACK, _STREAMED_STRIPS_SLACK = 1.5, 1.1
"""Anonymous memory of decoding in strips on a CPU over its activations. Freed strips remain in the heap,
in holes between others, unless weights stream (docs/log.md: 256 and 512 pixels)."""

_CPU_LAYERS, _CPU_STREAMED_LAYERS = 2.6, 1.75
"""How many of a UNet's largest layers a CPU holds twice, since oneDNN reorders weights at every call.
Where weights stream, the heap returns freed memory. With these factors I-M, I-L, I-XL, II-M, II-L and x4
are predicted at 0.94 to 1.09 times what was measured (bench/RESULTS.md)."""

_LAST_LAYERS, _LAST_STREAMED_LAYERS = 1.4, 0.75
_LAST_SLACK = {catalog.STAGE_1: 1.9}
"""The same with channels last, where weights that are in this order are reordered in parts. Stage 1's
activations are small blocks, which remain in the heap; those of the others are returned at once. I-M,
II-M and I-XL in 32, 8 and 4 bits are predicted at 0.95 to 1.10 (bench/RESULTS.md)."""

_UNET_FACTOR = {catalog.STAGE_1: 30.2, catalog.STAGE_2: 28.1, catalog.UPSCALER: 30.6}
"""From a guided image in the dry runs of I-XL (173,918,976 bytes in 16 bits), II-L (587,612,800) and the
x4 UNet (1,023,419,392)."""

_VAE_FACTOR, _VAE_SIDE = 6.0, 1024


def texts_together(texts: int) -> int:
    """How many of `texts` prompts a streaming encoder processes per pass over its weights."""
    return max(1, min(texts, TEXTS_A_PASS))


def activation_bytes(module: Module, config: ExecutionConfig) -> int:
    """Peak bytes of one network in addition to its weights."""
    if module.is_vae and config.decoding != WHOLE:
        return kept_bytes(module, config) + strip_bytes(module, config)
    row = pass_of(module, config)
    if row is not None:
        return int(row.activations(config.at_once) * _growth(module, config))
    item = ITEM_BYTES[config.compute_dtype]
    if module.is_vae:
        pixels = _VAE_SIDE**2 * config.drawn_area
        return int(_VAE_FACTOR * module.channels * pixels * ITEM_BYTES["float32"])
    if module.is_unet:
        side = config.facts.side
        factor = _UNET_FACTOR[config.component]
        return int(factor * module.channels * side**2 * config.drawn_area * item * config.batch)
    if config.facts.encodes:
        return _TEXT_ACTIVATION_BYTES
    return _SMALL_ACTIVATION_BYTES


def cpu_working_bytes(module: Module, config: ExecutionConfig) -> int:
    """What a CPU takes for one network in addition to its weights."""
    activations = activation_bytes(module, config)
    if module.is_vae:
        strips = _STREAMED_STRIPS_SLACK if config.strategy == STREAM else _STRIPS_SLACK
        return int((_CPU_VAE_SLACK if config.decoding == WHOLE else strips) * activations)
    layers, slack = _reordering(module, config)
    reordered = int(layers * layer_bytes(module, config)) if module.is_unet else 0
    return int(slack * activations) + reordered


def _reordering(module: Module, config: ExecutionConfig) -> tuple[float, float]:
    """(largest layers that a CPU holds twice, heap over activations)."""
    last, moves = config.layout == CHANNELS_LAST, streams(module, config)
    if moves:
        return (_LAST_STREAMED_LAYERS if last else _CPU_STREAMED_LAYERS), 1.0
    if last and module.is_unet:
        return _LAST_LAYERS, _LAST_SLACK.get(config.component, 1.0)
    return _CPU_LAYERS, _HEAP_SLACK


def waiting_bytes(config: ExecutionConfig) -> int:
    """Hidden states of all prompts that a streaming text encoder holds between its blocks."""
    together = config.facts.encodes and config.strategy == STREAM
    return config.batch * _TEXT_NUMBERS * _STATE_BYTES[config.compute_dtype] if together else 0


def result_bytes(config: ExecutionConfig) -> int:
    """Copies of a finished image that is larger than 1024 x 1024, needed to write it."""
    large = config.facts.decodes or config.facts.postprocesses
    return int(_RESULT_BYTES * max(0.0, config.area - 1)) if large else 0


def _growth(module: Module, config: ExecutionConfig) -> float:
    """How many times the activations of the table's square image a network needs for this image.

    They grow with the pixels; attention that holds the whole score matrix grows with their square.
    """
    if not (module.is_unet or module.is_vae):
        return 1.0
    area = config.drawn_area
    return area**2 if attention_of(config.device) == MATH and area > 1 else area
