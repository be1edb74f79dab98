"""The disk that weights are kept on: its free bytes, and scratch folders on it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


def weights_folder() -> Path:
    """The folder of the Hugging Face cache, or its nearest parent that exists."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def free_for_weights() -> tuple[int, str]:
    """(Free bytes for weights, a note if they cannot be read)."""
    try:
        return shutil.disk_usage(weights_folder()).free, ""
    except OSError as error:
        return 0, f"free disk space cannot be read ({error.strerror or error})"


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder on the disk of the weights, or if that is not writable, the usual one.

    Raises:
        OSError: neither is writable.
    """
    try:
        return tempfile.TemporaryDirectory(prefix=".lowmem-if-", dir=weights_folder())
    except OSError:
        return tempfile.TemporaryDirectory(prefix=".lowmem-if-")
