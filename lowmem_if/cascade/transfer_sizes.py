"""Sizes of buffers and windows for loading and streaming, shared by planning, loading and simulation."""

from __future__ import annotations

from collections.abc import Sequence

WINDOW_UNITS = 2
"""Offload groups of a streaming network on the device at the same time: one computes, one loads."""

LEAST_WINDOW_BYTES = 64 * 2**20
"""Smallest window of a streaming network; more small layers are prefetched into it."""

STAGING_BYTES = 32 * 2**20
"""Size of each staging buffer: a power of two, because pinned memory is rounded up to one."""

STAGING_BUFFERS = 2

LOADER_THREADS = 4
"""Most threads that load one network; more threads are not faster. One thread reads 5 GB/s from the
page cache, and each thread writes about 1 GB/s into fresh memory."""

GUIDED_IMAGES = 2
"""UNet inputs per guided image: one with the prompt, one with the negative prompt."""

STRIP_BYTES = 16 * 2**20
"""Most bytes of a strip of rows in float32, where a decoder computes strip by strip."""

LEAST_STRIPS = 8
"""A smaller picture is cut into smaller strips, so that they take little of the whole."""


def strip_rows(channels: Sequence[int], height: int, width: int) -> int:
    """How many rows a strip has, at every size of the picture that is decoded.

    Args:
        channels: of the input of each block, from the latents' size on; the size doubles with each.
        height, width: of the latents.
    """
    widest = max(4 * count * (width << level) for level, count in enumerate(channels))
    rows = min(STRIP_BYTES // widest, height // LEAST_STRIPS)
    return max(2, rows // 2 * 2)
