"""Read a batch file: JSON lines, CSV with a header row, or one prompt per line.

A row may set only the values in `ROW_NAMES`. An invalid row is reported with its line number and the
reason; the other rows are not affected.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lowmem_if.errors import BatchError, PictureError, RequestError
from lowmem_if.request.build import ROW_NAMES, check_names
from lowmem_if.request.pictures.picture_objects import picture_of
from lowmem_if.request.seeds import parse_seeds

JSON_LINES, CSV, PLAIN = "JSON lines", "CSV", "plain prompts"
_SUFFIXES = {
    ".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".json": JSON_LINES, ".csv": CSV, ".tsv": CSV,
    ".txt": PLAIN,
}  # fmt: skip
_DELIMITERS = "\t;,"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class BadLine:
    """An invalid line: its number in the file, from 1, and what is wrong with it."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}"


Row = Mapping[str, Any]
"""The values of one row, as keyword arguments of `make_request` with one `prompt`."""


@dataclass(frozen=True, slots=True)
class BatchFile:
    """The valid rows of a file, in order, and its invalid lines."""

    rows: tuple[Row, ...]
    bad_lines: tuple[BadLine, ...]


Check = Callable[[Row], object]
"""A function that raises `RequestError` for a row that no cascade can draw."""


_Record = tuple[int, Callable[[], Mapping[str, Any]]]
"""A line number, and a function that reads the row or raises the reason why it cannot."""


def read_batch(file: Path, check: Check) -> BatchFile:
    """Read the rows of a file. Its name decides the format; for other names, its first line does.

    Raises:
        BatchError: the file cannot be read, or its header row is not valid.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BatchError(f"{file} cannot be read ({error.strerror}): give another file") from error
    kind = _SUFFIXES.get(file.suffix.lower())
    return parse_batch(content, check, kind=kind, folder=file.parent)


def parse_batch(
    content: bytes, check: Check, *, kind: str | None = None, folder: Path | None = None
) -> BatchFile:
    """Read the rows of a file's content.

    Args:
        check: called with each row.
        kind: `JSON_LINES`, `CSV` or `PLAIN`; None: the first line decides.
        folder: folder of relative image paths; None: the working directory.
    """
    # Bytes that are not UTF-8 decode to surrogates, which no prompt may contain: only their row fails.
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    text = content.decode(encoding, errors="surrogateescape")
    records = {JSON_LINES: _json_lines, CSV: _csv_rows, PLAIN: _prompts}[kind or _kind(text)](text)
    return _batch(records, check, folder)


def parse_records(records: Iterable[str | Mapping[str, Any]], check: Check) -> BatchFile:
    """Read rows from memory, numbered from 1: prompts, or mappings like a row of JSON lines."""
    numbered = enumerate(records, start=1)
    return _batch(((n, partial(_as_record, record)) for n, record in numbered), check, None)


def _batch(records: Iterable[_Record], check: Check, folder: Path | None) -> BatchFile:
    """The records, divided into valid rows and invalid lines."""
    rows: list[Row] = []
    bad: list[BadLine] = []
    for number, read in records:
        try:
            row = _row(read(), folder)
            check(row)
            rows.append(row)
        except (RequestError, PictureError) as error:
            bad.append(BadLine(number, str(error)))
    return BatchFile(tuple(rows), tuple(bad))


def _kind(text: str) -> str:
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if first.startswith("{"):
        return JSON_LINES
    cells = _header(first)
    return CSV if len(cells) > 1 and set(cells) <= set(ROW_NAMES) else PLAIN


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank; only the line ends of editors count."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield number, line.strip()


def _prompts(text: str) -> Iterator[_Record]:
    for number, line in _numbered(text):
        yield number, partial(_plain_record, line)


def _plain_record(line: str) -> Mapping[str, Any]:
    return {"prompt": line}


def _json_lines(text: str) -> Iterator[_Record]:
    for number, line in _numbered(text):
        yield number, partial(_json_record, line)


def _json_record(line: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"it is not valid JSON ({error})") from error
    return _as_record(record)


def _as_record(record: Any) -> Mapping[str, Any]:
    if isinstance(record, str):
        return {"prompt": record}
    if not isinstance(record, Mapping):
        raise RequestError('write an object, like {"prompt": "a red circle", "seed": 7}')
    return record


def _csv_rows(text: str) -> Iterator[_Record]:
    names: list[str] | None = None
    for number, row in _rows(text):
        if names is None:
            names = _checked_header(row)
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


def _header(first: str) -> list[str]:
    return [cell.strip().strip('"').lower() for cell in first.split(_delimiter(first))]


def _checked_header(row: list[str] | csv.Error) -> list[str]:
    if isinstance(row, csv.Error):
        raise BatchError(f"the header row is not CSV ({row}): name the columns, like prompt,seed")
    names = [cell.strip().lower() for cell in row]
    if unknown := [name for name in names if name not in ROW_NAMES]:
        raise BatchError(
            f"unknown columns in the header row: {', '.join(map(repr, unknown))}; "
            f"use {', '.join(ROW_NAMES)}"
        )
    if len(set(names)) < len(names):
        raise BatchError("the header row names a column twice: remove one")
    if not {"prompt", "image"} & {*names}:
        raise BatchError("the header row has no column 'prompt': add it")
    return names


def _csv_record(row: list[str] | csv.Error, names: list[str]) -> Mapping[str, Any]:
    if isinstance(row, csv.Error):
        raise RequestError(f"it is not CSV ({row})")
    if len(row) != len(names):
        raise RequestError(f"it has {len(row)} cells, but the header has {len(names)}")
    record = dict(zip(names, row, strict=True))
    return {
        name: _parsed(name, cell) if name in _PARSERS else cell
        for name, cell in record.items()
        if cell.strip()
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


def _row(record: Mapping[str, Any], folder: Path | None) -> Row:
    """A record as a row; `make_request` checks most of its values."""
    check_names(record)
    values = {name: value for name, value in record.items() if value is not None}
    if isinstance(seed := values.get("seed"), str):
        values["seed"] = parse_seeds(seed, 1)
    for name in ("image", "mask"):
        path = values.get(name)
        if isinstance(path, str) and folder is not None and "://" not in path:
            path = str(folder / os.path.expanduser(path))  # noqa: PTH111  raises nothing
        if path is not None:
            values[name] = picture_of(path, name)
    return values
