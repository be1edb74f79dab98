"""Messages of other libraries that say nothing to a user of this package, silenced where they arise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

IMPORTING_PIPELINES = ("transformers.utils.import_utils", "requires torchvision")
"""diffusers' IF pipelines name an image processor of the safety checker; both of its forms do here."""


@contextmanager
def without(logger: str, words: str) -> Iterator[None]:
    """Drop the messages of a logger that contain some words, inside the block only."""
    emitting = logging.getLogger(logger)

    def is_meant(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    emitting.addFilter(is_meant)
    try:
        yield
    finally:
        emitting.removeFilter(is_meant)
