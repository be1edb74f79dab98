"""Where this package keeps what it can make again: embeddings, converted weights, calibrations."""

from __future__ import annotations

import os
from pathlib import Path

from lowmem_if.errors import CacheError

VARIABLE = "LOWMEM_IF_CACHE"


def cache_folder(kind: str) -> Path:
    """The folder for one `kind` of things in LOWMEM_IF_CACHE, else in the user's cache folder.

    Raises:
        CacheError: there is neither, as for a user without a home folder in some containers.
    """
    if own := os.environ.get(VARIABLE):
        return Path(own) / kind
    system = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    if system.startswith("~"):  # pathlib would raise
        raise CacheError(
            f"there is no home folder to keep files for later runs in ({kind}): "
            f"set {VARIABLE} to a folder of yours"
        )
    return Path(system) / "lowmem-if" / kind
