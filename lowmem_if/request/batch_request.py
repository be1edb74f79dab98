"""From lines to a request: what is good of them is asked for, what is not is told."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowmem_if.errors import BatchError
from lowmem_if.request.batch_file import BadLine, BatchFile, parse_batch, parse_records, read_batch
from lowmem_if.request.batch_row import BatchRow
from lowmem_if.request.request import Request

_NAMED = 10

STANDARD_INPUT = Path("-")


def read_request(file: Path, **values: Any) -> tuple[Request, tuple[BadLine, ...]]:
    """The request for the lines of a file (`-`: of standard input), and those nobody could draw.

    Args:
        values: what holds for all lines, as fields of `Request`.

    Raises:
        BatchError: the file cannot be read, or none of its lines can be used.
        RequestError: a value for all lines cannot be used.
    """
    common = _common(values)
    if file == STANDARD_INPUT:
        return _asked(common, parse_batch(sys.stdin.buffer.read(), common.of_line))
    return _asked(common, read_batch(file, common.of_line))


def request_of(
    records: Iterable[str | Mapping[str, Any]], **values: Any
) -> tuple[Request, tuple[BadLine, ...]]:
    """The same for lines that are at hand: prompts, or what a line of JSON may say."""
    common = _common(values)
    return _asked(common, parse_records(records, common.of_line))


def _common(values: dict[str, Any]) -> Request:
    """What is asked for all lines; the one line in it stands for them."""
    return Request((), lines=(BatchRow("any"),), **values)


def _asked(common: Request, batch: BatchFile) -> tuple[Request, tuple[BadLine, ...]]:
    if not batch.lines and not batch.bad_lines:
        raise BatchError("the batch is empty: write one prompt a line")
    if not batch.lines:
        others = f" (and {len(batch.bad_lines) - 1} more)" if batch.bad_lines[1:] else ""
        raise BatchError(f"no line can be used: {batch.bad_lines[0]}{others}")
    return replace(common, lines=batch.lines), batch.bad_lines


def unusable(bad_lines: Sequence[BadLine]) -> BatchError:
    """What is said at the end of a batch that was drawn but for these lines."""
    numbers = ", ".join(str(line.number) for line in bad_lines[:_NAMED])
    others = ", ..." if bad_lines[_NAMED:] else ""
    return BatchError(
        f"{len(bad_lines)} line(s) could not be used ({numbers}{others}), all others are drawn: "
        "put right, they are a batch of their own"
    )
