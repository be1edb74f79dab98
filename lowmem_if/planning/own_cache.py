"""Where this package keeps what it may make again: embeddings, converted weights."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder for one `kind` of things in LOWMEM_IF_CACHE, else in the user's cache folder."""
    own = os.environ.get("LOWMEM_IF_CACHE")
    system = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(own) if own else Path(system) / "lowmem-if") / kind
