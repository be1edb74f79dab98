"""Files that are either there whole or not there at all, whatever kills the process."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_PARTIAL = ".partial"


def write_bytes(file: Path, content: bytes) -> None:
    """Write beside `file`, then rename over it; on failure `file` is as it was before."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def is_partial(file: Path) -> bool:
    """Whether a file is one that a killed writer left behind."""
    return file.name.startswith(".") and file.name.endswith(_PARTIAL)


def remove_partials(folder: Path) -> None:
    """Delete what killed writers left behind in a folder and below it."""
    for partial in folder.rglob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)
