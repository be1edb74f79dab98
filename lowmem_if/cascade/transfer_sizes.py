"""Sizes of what is in flight while weights load and stream: predicted, used and simulated from here."""

from __future__ import annotations

WINDOW_UNITS = 2
"""Offload groups of a streaming network that are on the device at a time: one computes, one loads."""

LEAST_WINDOW_BYTES = 64 * 2**20
"""Smallest window of a streaming network; small layers are prefetched further ahead."""

STAGING_BYTES = 32 * 2**20
"""Each of the staging buffers: a power of two, which is what pinned memory is rounded to."""

STAGING_BUFFERS = 2

LOADER_THREADS = 4
"""Most threads that load one network. More read no faster: the page cache gives 5 GB/s to one thread,
fresh memory about 1 GB/s to each."""

GUIDED_IMAGES = 2
"""Images that a guided image takes through a UNet: one with its prompt, one with the negative prompt."""
