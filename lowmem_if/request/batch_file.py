"""Read a batch file: JSON lines or an array, CSV with a header row, or one prompt per line.

A row may set only the values in `ROW_NAMES`. An invalid row is reported with its line number and the
reason; the other rows are not affected.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lowmem_if.errors import BatchError, PictureError, RequestError
from lowmem_if.request.build import check_names
from lowmem_if.request.pictures.picture_objects import picture_of
from lowmem_if.request.prompt_files.columns import renamed, without_use
from lowmem_if.request.prompt_files.csv_rows import Record, csv_rows, is_header
from lowmem_if.request.prompt_files.file_text import checked_encoding, text_of
from lowmem_if.request.prompt_files.json_rows import is_one_value, json_values
from lowmem_if.request.prompt_files.left_out import COMMENT, LeftOut, is_comment, left_column
from lowmem_if.request.prompt_files.option_lines import is_option_line, option_line
from lowmem_if.request.seeds import parse_seeds

JSON_LINES, CSV, PLAIN = "JSON lines", "CSV", "plain prompts"
_SUFFIXES = {
    ".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".json": JSON_LINES, ".csv": CSV, ".tsv": CSV,
    ".txt": PLAIN,
}  # fmt: skip


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


Notify = Callable[[str], object]
"""Is called with something that the user should know."""


def ignored(_text: str) -> None:
    """Say nothing."""


Check = Callable[[Row], object]
"""A function that raises `RequestError` for a row that no cascade can draw."""


def read_batch(file: Path, check: Check, notice: Notify = ignored) -> BatchFile:
    """Read the rows of a file. Its name decides the format; for other names, its first line does.

    Args:
        notice: called with each thing that the file says and that draws nothing.

    Raises:
        BatchError: the file cannot be read, or its header row is not valid.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BatchError(f"{file} cannot be read ({error.strerror}): give another file") from error
    kind = _SUFFIXES.get(file.suffix.lower())
    return parse_batch(content, check, kind=kind, folder=file.parent, name=str(file), notice=notice)


def parse_batch(
    content: bytes,
    check: Check,
    *,
    kind: str | None = None,
    folder: Path | None = None,
    name: str = "the input",
    notice: Notify = ignored,
) -> BatchFile:
    """Read the rows of a file's content.

    Args:
        check: called with each row.
        kind: `JSON_LINES`, `CSV` or `PLAIN`; None: the first line decides.
        folder: folder of relative image paths; None: the working directory.
        name: what messages call the file.
        notice: called with each thing that the file says and that draws nothing.

    Raises:
        BatchError: it is no text, or its header row is not valid.
    """
    text, left_out = text_of(content, name), LeftOut()
    records = _READERS[kind or _kind(text)](text, left_out)
    batch = _batch(records, check, folder)
    for what in left_out.notices():
        notice(what)
    return batch


def parse_records(records: Iterable[str | Mapping[str, Any]], check: Check) -> BatchFile:
    """Read rows from memory, numbered from 1: prompts, or mappings like a row of JSON lines."""
    numbered = enumerate(records, start=1)
    return _batch(((n, partial(_as_record, record)) for n, record in numbered), check, None)


def _batch(records: Iterable[Record], check: Check, folder: Path | None) -> BatchFile:
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
    if first.startswith("{") or is_one_value(text):
        return JSON_LINES
    return CSV if is_header(first) else PLAIN


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank; only the line ends of editors count."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield number, line.strip()


def _uncommented(text: str, left_out: LeftOut) -> Iterator[tuple[int, str]]:
    for number, line in _numbered(text):
        if is_comment(line):
            left_out.add(number, COMMENT)
        else:
            yield number, line


def _prompts(text: str, left_out: LeftOut) -> Iterator[Record]:
    for number, line in _uncommented(text, left_out):
        yield number, partial(_plain_record, line, number, left_out)


def _plain_record(line: str, number: int, left_out: LeftOut) -> Mapping[str, Any]:
    if not is_option_line(line):
        return {"prompt": line}
    row, others = option_line(line)
    left_out.add(number, *others)
    return row


def _json_rows(text: str, left_out: LeftOut) -> Iterator[Record]:
    if is_one_value(text):
        for number, value in json_values(text):
            yield number, partial(_json_record, value, number, left_out)
        return
    for number, line in _uncommented(text, left_out):
        yield number, partial(_json_line, line, number, left_out)


def _json_line(line: str, number: int, left_out: LeftOut) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"it is not valid JSON ({error})") from error
    return _json_record(record, number, left_out)


def _json_record(record: Any, number: int, left_out: LeftOut) -> Mapping[str, Any]:
    if isinstance(record, RequestError):
        raise record
    values = _as_record(record)
    left_out.add(number, *map(left_column, without_use(values)))
    return renamed(values)


def _as_record(record: Any) -> Mapping[str, Any]:
    if isinstance(record, str):
        return {"prompt": record}
    if not isinstance(record, Mapping):
        raise RequestError('write an object, like {"prompt": "a red circle", "seed": 7}')
    return record


def _row(record: Mapping[str, Any], folder: Path | None) -> Row:
    """A record as a row; `make_request` checks most of its values."""
    check_names(record)
    values = {name: value for name, value in record.items() if value is not None}
    for value in values.values():
        if isinstance(value, str):
            checked_encoding(value)
    if isinstance(seed := values.get("seed"), str):
        values["seed"] = parse_seeds(seed, 1)
    for name in ("image", "mask"):
        path = values.get(name)
        if isinstance(path, str) and folder is not None and "://" not in path:
            path = str(folder / os.path.expanduser(path))  # noqa: PTH111  raises nothing
        if path is not None:
            values[name] = picture_of(path, name)
    return values


_READERS: dict[str, Callable[[str, LeftOut], Iterator[Record]]] = {
    JSON_LINES: _json_rows, CSV: csv_rows, PLAIN: _prompts,
}  # fmt: skip
