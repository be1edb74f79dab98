"""How much of a streaming network's file may stay in the system's page cache."""

from __future__ import annotations

import psutil

from lowmem_if.hardware.cgroups import tightest_group
from lowmem_if.weights.streaming.offload_groups import OffloadGroup, spread

RESERVE_BYTES = 700_000_000
"""Available memory that is left to everything else when deciding how much of a file stays cached."""


def cacheable(groups: list[OffloadGroup], window_bytes: int) -> set[OffloadGroup]:
    """The groups whose pages may stay in the system's cache when they are unloaded.

    A file that is read in a circle and does not fit into memory evicts exactly what is needed next. If
    some of it is dropped after use instead, the rest stays cached.
    """
    limited = tightest_group()
    available = psutil.virtual_memory().available
    available = min(available, limited.available_bytes if limited else 1 << 62)
    budget = max(0, available - window_bytes - RESERVE_BYTES)
    return spread(groups, budget, lambda group: group.file_bytes)
