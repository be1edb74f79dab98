"""Many pictures in one run."""

from __future__ import annotations

from typing import Unpack

from lowmem_if.engine.batch_source import Source
from lowmem_if.engine.options import GenerateOptions
from lowmem_if.engine.results import BatchResult
from lowmem_if.engine.session import Session


def batch(source: Source, **options: Unpack[GenerateOptions]) -> BatchResult:
    """Draw a picture for each row: all rows pass through one component before the next is loaded.

    Args:
        source: a file of JSON lines, CSV or prompts, one a line; or the rows themselves, each a prompt
            or a mapping of what `make_request` says of rows.
        options: see `GenerateOptions`; a row's own values win.

    Raises:
        BatchError: the file cannot be read, or none of its lines can be used. Some bad lines are no
            error: each is reported as a notice, and they are in the result.
        LowmemError: as `generate`.
    """
    with Session(keep_loaded=False) as session:
        return session.batch(source, **options)
