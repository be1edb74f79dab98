"""Make a request from the rows of a batch; invalid rows are reported."""

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
    Notify,
    Row,
    ignored,
    parse_batch,
    parse_records,
    read_batch,
)
from lowmem_if.request.build import make_request
from lowmem_if.request.checks import check_texts
from lowmem_if.request.request import Request

_LISTED = 10
"""How many invalid lines the error at the end lists."""

STANDARD_INPUT = Path("-")

_TEXTS = ("prompt", "style_prompt", "negative_prompt")
"""The values of a row that the text encoder reads."""


def read_request(
    file: Path, *, notice: Notify = ignored, **values: Any
) -> tuple[Request, tuple[BadLine, ...]]:
    """The request for the rows of a file (`-`: standard input), and the file's invalid lines.

    Args:
        notice: called with each thing that the file says and that draws nothing.
        values: run-wide values, as arguments of `make_request`.

    Raises:
        BatchError: the file cannot be read, or has no valid row.
        RequestError, PictureError, LoraError: a run-wide value is not valid.
    """
    check, values = _checking(values)
    if file == STANDARD_INPUT:
        return _request(values, parse_batch(sys.stdin.buffer.read(), check, notice=notice))
    return _request(values, read_batch(file, check, notice))


def request_of(
    records: Iterable[str | Mapping[str, Any]], **values: Any
) -> tuple[Request, tuple[BadLine, ...]]:
    """The request for rows in memory: prompts, or mappings with the values of a row."""
    check, values = _checking(values)
    return _request(values, parse_records(records, check))


def read_texts(file: Path, notice: Notify = ignored) -> tuple[str, ...]:
    """Every prompt, style and negative prompt in a file (`-`: standard input), each once.

    The formats are those of a batch, so that a batch's own file can be encoded.

    Raises:
        BatchError: the file cannot be read, is empty, or one of its lines is not valid.
    """

    def check(row: Row) -> None:
        check_texts(row.get(name, "") for name in _TEXTS)

    if file == STANDARD_INPUT:
        batch = parse_batch(sys.stdin.buffer.read(), check, notice=notice)
    else:
        batch = read_batch(file, check, notice)
    if batch.bad_lines:
        raise BatchError(f"{file}, {batch.bad_lines[0]}")
    texts = [row[name] for row in batch.rows for name in _TEXTS if row.get(name, "").strip()]
    if not texts:
        raise BatchError(f"{file} holds no prompt: write one prompt per line")
    return tuple(dict.fromkeys(texts))


def _checking(values: Mapping[str, Any]) -> tuple[Check, dict[str, Any]]:
    """A function that checks one row, and the run-wide values; files are read and a seed drawn once.

    Raises:
        RequestError, PictureError, LoraError: a run-wide value is not valid.
    """
    common = make_request(lines=({"prompt": "any"},), **values)
    spec = common.images[0]
    once = {"image": spec.image, "mask": spec.mask, "cascade": common.cascade, "lora": common.lora,
            "embeds": common.embeds,
            "parts": {part.component: part for part in common.weights.parts}}  # fmt: skip
    complete = {**values, **once}
    if complete.get("seed") is None:
        complete["seed"] = common.seed

    def check(row: Row) -> object:
        return make_request(lines=(row,), **complete)

    return check, complete


def _request(values: Mapping[str, Any], batch: BatchFile) -> tuple[Request, tuple[BadLine, ...]]:
    if not batch.rows and not batch.bad_lines:
        raise BatchError("the batch is empty: write one prompt per line")
    if not batch.rows:
        others = f" (and {len(batch.bad_lines) - 1} more)" if batch.bad_lines[1:] else ""
        raise BatchError(f"no line is valid: {batch.bad_lines[0]}{others}")
    return make_request(lines=batch.rows, **values), batch.bad_lines


def unusable(bad_lines: Sequence[BadLine]) -> BatchError:
    """The error at the end of a batch whose other lines are all drawn."""
    numbers = ", ".join(str(line.number) for line in bad_lines[:_LISTED])
    others = ", ..." if bad_lines[_LISTED:] else ""
    noun = "lines" if bad_lines[1:] else "line"
    return BatchError(
        f"skipped {len(bad_lines)} invalid {noun} ({numbers}{others}); all others are done: "
        "fix skipped lines and run them as a new batch"
    )
