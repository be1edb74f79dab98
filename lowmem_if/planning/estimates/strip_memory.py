"""Memory and traffic of a VAE that decodes in strips (`stages/decoding`), for pictures of any size.

No table is needed: one activation of the picture's full size is alive, and a few strips. The largest
activation has twice the first block's channels, at the picture's size. While that block halves its
channels, both results take the memory of its input.
"""

from __future__ import annotations

from lowmem_if.cascade.parts import Module
from lowmem_if.cascade.transfer_sizes import LEAST_STRIPS, STRIP_BYTES
from lowmem_if.planning.estimates.execution import ExecutionConfig
from lowmem_if.planning.estimates.memory_table import MATH
from lowmem_if.planning.estimates.pass_lookup import attention_of
from lowmem_if.request.image_spec import FACTOR
from lowmem_if.request.input_tiles import UPSCALER_SIDE

ITEM_BYTES = 4
"""A decoder computes in float32."""

SCORE_BYTES = 128 * 2**20
"""Most bytes of attention scores where no kernel avoids them; the decoder has the same limit."""

_STRIPS = 2.7
"""Strips in work at once: a window, the window at twice its size, a result. Dry runs of 256 to 2048
pixels have 2.4 to 2.9."""

_CPU_STRIPS = 5.0
"""The same on a CPU, where oneDNN holds a convolution's input and result once more in its own order."""

_TRAVELS = 19.5
"""How many times the largest activation the strips of all layers, read and written, amount to."""


def whole_bytes(module: Module, config: ExecutionConfig) -> int:
    """The largest activation of a picture, which is the most that all strips take together."""
    pixels = (FACTOR * UPSCALER_SIDE) ** 2 * config.drawn_area
    return int(2 * module.channels * pixels * ITEM_BYTES)


def strip_bytes(module: Module, config: ExecutionConfig) -> int:
    """Bytes in addition to the strips that are kept: those in work, and one picture's output.

    In the middle of the decoder are keys and values of all pixels, when the kept strips are small.
    """
    largest = whole_bytes(module, config)
    strip = min(STRIP_BYTES, largest // (FACTOR * LEAST_STRIPS))
    working = int((_CPU_STRIPS if config.device == "cpu" else _STRIPS) * strip)
    if config.decodes_in_ram:
        scores = SCORE_BYTES if attention_of(config.device) == MATH else 0
        # Latents have a sixteenth of the pixels and four times the channels: an eighth of the largest.
        working += 2 * largest // 8 + scores
    return working


def kept_bytes(module: Module, config: ExecutionConfig) -> int:
    """Bytes of the strips on the device that computes."""
    return 0 if config.decodes_in_ram else whole_bytes(module, config)


def ram_bytes(module: Module, config: ExecutionConfig) -> int:
    """Bytes of the strips that RAM keeps while an accelerator computes."""
    return whole_bytes(module, config) if config.decodes_in_ram else 0


def bus_bytes(module: Module, config: ExecutionConfig) -> float:
    """Bytes that travel between RAM and the accelerator for one picture."""
    return _TRAVELS * whole_bytes(module, config) if config.decodes_in_ram else 0.0
