"""The request of a batch, from a file or from memory, with everything that the user should know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowmem_if.engine.events import Notice, Report
from lowmem_if.request.batch_file import BadLine
from lowmem_if.request.batch_request import read_request, request_of
from lowmem_if.request.request import Request

Source = str | Path | Iterable[str | Mapping[str, Any]]
"""A file of rows, or the rows."""


def batch_request(
    source: Source, values: Mapping[str, Any], report: Report
) -> tuple[Request, tuple[BadLine, ...]]:
    """The request for all rows, and the lines that cannot be used, each reported as a notice.

    Args:
        values: run-wide values, as arguments of `make_request`.

    Raises:
        BatchError: the file cannot be read, or has no valid row.
        RequestError, PictureError, LoraError: a run-wide value is not valid.
    """
    if isinstance(source, str | Path):
        request, bad_lines = read_request(
            Path(source), notice=lambda text: report(Notice(text)), **values
        )
    else:
        request, bad_lines = request_of(source, **values)
    for line in bad_lines:
        report(Notice(str(line)))
    return request, bad_lines
