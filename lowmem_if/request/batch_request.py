"""From the rows of a batch to a request; rows that cannot be used are reported."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowmem_if.errors import BatchError
from lowmem_if.request.batch_file import (
    BadLine,
    BatchFile,
    Check,
    Row,
    parse_batch,
    parse_records,
    read_batch,
)
from lowmem_if.request.build import make_request
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
    check, values = _checking(values)
    if file == STANDARD_INPUT:
        return _asked(values, parse_batch(sys.stdin.buffer.read(), check))
    return _asked(values, read_batch(file, check))


def request_of(
    records: Iterable[str | Mapping[str, Any]], **values: Any
) -> tuple[Request, tuple[BadLine, ...]]:
    """The same for rows at hand: prompts, or mappings of what a row may say."""
    check, values = _checking(values)
    return _asked(values, parse_records(records, check))


def _checking(values: Mapping[str, Any]) -> tuple[Check, dict[str, Any]]:
    """What checks one row, and the run-wide values with files read and a seed drawn once.

    Raises:
        RequestError, PictureError, LoraError: a run-wide value cannot be used.
    """
    common = make_request(lines=({"prompt": "any"},), **values)
    spec = common.images[0]
    once = {"image": spec.image, "mask": spec.mask, "cascade": common.cascade, "lora": common.lora}
    settled = {**values, **once}
    if settled.get("seed") is None:
        settled["seed"] = common.seed

    def check(row: Row) -> object:
        return make_request(lines=(row,), **settled)

    return check, settled


def _asked(values: Mapping[str, Any], batch: BatchFile) -> tuple[Request, tuple[BadLine, ...]]:
    if not batch.rows and not batch.bad_lines:
        raise BatchError("the batch is empty: write one prompt a line")
    if not batch.rows:
        others = f" (and {len(batch.bad_lines) - 1} more)" if batch.bad_lines[1:] else ""
        raise BatchError(f"no line can be used: {batch.bad_lines[0]}{others}")
    return make_request(lines=batch.rows, **values), batch.bad_lines


def unusable(bad_lines: Sequence[BadLine]) -> BatchError:
    """What is said at the end of a batch that was drawn but for these lines."""
    numbers = ", ".join(str(line.number) for line in bad_lines[:_NAMED])
    others = ", ..." if bad_lines[_NAMED:] else ""
    return BatchError(
        f"{len(bad_lines)} line(s) could not be used ({numbers}{others}), all others are drawn: "
        "put right, they are a batch of their own"
    )
