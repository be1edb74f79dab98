"""Rows of CSV and TSV files, which have a header row."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from lowmem_if.errors import BatchError, RequestError
from lowmem_if.request.build import ROW_NAMES
from lowmem_if.request.prompt_files.columns import own_name
from lowmem_if.request.prompt_files.left_out import LeftOut, left_column

_DELIMITERS = "\t;,"

Record = tuple[int, Callable[[], Mapping[str, Any]]]
"""A line number, and a function that reads the row or raises the reason why it cannot."""


def is_header(first: str) -> bool:
    """Whether a first line names columns: at least two, all known, and one of them the prompt."""
    names = [own_name(cell.strip().strip('"')) for cell in first.split(_delimiter(first))]
    return len(names) > 1 and "prompt" in names and {*names} <= {None, *ROW_NAMES}


def csv_rows(text: str, left_out: LeftOut) -> Iterator[Record]:
    """The rows below the header row."""
    names: list[str | None] | None = None
    for number, row in _rows(text):
        if names is None:
            names = _checked_header(row)
            cells = () if isinstance(row, csv.Error) else row
            left_out.add(number, *map(left_column, (c for c in cells if own_name(c) is None)))
        else:
            yield number, partial(_csv_record, row, names)


def _rows(text: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """The rows that are not blank, each with the number of its first line.

    After an invalid row, reading continues at the next line, so an open quote affects no other row.
    """
    lines = io.StringIO(text, newline="").readlines()
    delimiter, begin = _delimiter(text), 0
    while begin < len(lines):
        rest = (lines[k] for k in range(begin, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, strict=True)
        done = 0
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield begin + done + 1, row
                done = reader.line_num
            return
        except csv.Error as error:
            yield begin + done + 1, error
            begin += done + 1


def _delimiter(text: str) -> str:
    first = next((line for line in text.splitlines() if line.strip()), "")
    return next((mark for mark in _DELIMITERS if mark in first), ",")


def _checked_header(row: list[str] | csv.Error) -> list[str | None]:
    """The name that each column has here; None for columns from which nothing is drawn."""
    if isinstance(row, csv.Error):
        raise BatchError(f"the header row is not CSV ({row}): name the columns, like prompt,seed")
    names = [own_name(cell) for cell in row]
    own = [name for name in names if name is not None]
    if unknown := [name for name in own if name not in ROW_NAMES]:
        raise BatchError(
            f"unknown columns in the header row: {', '.join(map(repr, unknown))}; "
            f"use {', '.join(ROW_NAMES)}"
        )
    if len(set(own)) < len(own):
        raise BatchError("the header row names a column twice: remove one")
    if not {"prompt", "image"} & {*own}:
        raise BatchError("the header row has no column 'prompt': add it")
    return names


def _csv_record(row: list[str] | csv.Error, names: list[str | None]) -> Mapping[str, Any]:
    if isinstance(row, csv.Error):
        raise RequestError(f"it is not CSV ({row})")
    if len(row) != len(names):
        raise RequestError(f"it has {len(row)} cells, but the header has {len(names)}")
    return {
        name: _parsed(name, cell) if name in _PARSERS else cell
        for name, cell in zip(names, row, strict=True)
        if name is not None and cell.strip()
    }


def _flag(cell: str) -> bool:
    if cell.strip().lower() not in ("true", "false"):
        raise ValueError(cell)
    return cell.strip().lower() == "true"


_PARSERS: dict[str, Callable[[str], Any]] = {
    "images": int, "size": int, "strength": float, "invert_mask": _flag, "mask_alpha": _flag,
}  # fmt: skip


def _parsed(name: str, cell: str) -> Any:
    try:
        return _PARSERS[name](cell)
    except ValueError:
        kind = "true or false" if _PARSERS[name] is _flag else "a number"
        raise RequestError(f"{name} {cell!r} is not {kind}") from None
