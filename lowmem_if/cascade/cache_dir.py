"""The folder for files that this package can make again: embeddings, converted weights, calibrations."""

from __future__ import annotations

import os
from pathlib import Path

from lowmem_if.errors import CacheError

VARIABLE = "LOWMEM_IF_CACHE"


def cache_folder(kind: str) -> Path:
    """The folder for one `kind` of files, in LOWMEM_IF_CACHE or else in the user's cache folder.

    Raises:
        CacheError: neither exists; some containers have users without a home folder.
    """
    if own := os.environ.get(VARIABLE):
        return Path(own) / kind
    system = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    if system.startswith("~"):  # pathlib would raise
        raise CacheError(
            f"this user has no home folder for cached files ({kind}): "
            f"set {VARIABLE} to a folder that you may write to"
        )
    return Path(system) / "lowmem-if" / kind
