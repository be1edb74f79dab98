"""In which order a network's numbers are kept in memory, and how much time that saves.

Convolutions on a CPU compute with the channels of a pixel next to each other. Contiguous tensors have
the pixels of a channel next to each other, so every convolution reorders its input and its output.
"""

from __future__ import annotations

from lowmem_if.cascade import catalog
from lowmem_if.cascade.strategies import FAITHFUL, allows

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"

_SHARES = {
    ("bfloat16", catalog.STAGE_1): 0.79,
    ("bfloat16", catalog.STAGE_2): 0.54,
    ("bfloat16", catalog.UPSCALER): 0.58,
    ("float32", catalog.STAGE_1): 0.80,
}
"""Time of a guided step with `channels_last`, as a share of the contiguous one's (docs/log.md)."""


def layout_of(component: str, device: str, prefer: str) -> str:
    """The layout of a component's UNet: other networks, devices and `exact` keep the libraries' own."""
    faster = device == "cpu" and component in catalog.IMAGE_STAGES
    return CHANNELS_LAST if faster and allows(prefer, FAITHFUL) else CONTIGUOUS


def time_share(component: str, layout: str, dtype: str) -> float:
    """The time of a pass of a UNet as a share of its time with contiguous tensors."""
    return _SHARES.get((dtype, component), 1.0) if layout == CHANNELS_LAST else 1.0
