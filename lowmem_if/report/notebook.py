"""A run in a notebook: a line of progress, and the pictures of each stage."""

from __future__ import annotations

import io
import sys
import time
from contextlib import redirect_stdout
from html import escape
from pathlib import Path
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import label
from lowmem_if.engine.events import (
    CacheHit,
    Drawing,
    Event,
    ImageSaved,
    Loading,
    Notice,
    Preview,
    Retry,
    StepFinished,
    StepSkipped,
)
from lowmem_if.engine.results import data_address
from lowmem_if.report.eta import Eta
from lowmem_if.report.progress import words_of
from lowmem_if.units import format_seconds

_LEAST_WAIT_S = 0.5
_UNFINISHED, _FINISHED = "unfinished", "finished"
_COLUMNS = {
    catalog.STAGE_1: "stage 1",
    catalog.STAGE_2: "stage 2",
    catalog.UPSCALER: "x4 upscaler",
    catalog.POSTPROCESS: _FINISHED,
}


class NotebookProgress:
    """A report for notebooks: `lm.generate(..., report=lm.NotebookProgress())`.

    Outside a notebook it writes notices and finished steps to standard error, a line each.

    One output is updated in place: the progress and the time left, the notices, and a row of pictures
    for each of the first images: one after every stage, and the unfinished one with `preview_every`.

    Args:
        images: how many rows at most; the gallery of a batch has all of them.
        width: width of a picture in the browser's pixels.
    """

    def __init__(self, *, images: int = 4, width: int = 192) -> None:
        self._images, self._width = images, width
        self._eta = Eta()
        self._rows: dict[int, dict[str, str]] = {}
        self._said: list[str] = []
        self._line = "starting"
        self._shown = 0.0
        self._output = _notebook_output() or _TextOutput()

    def __call__(self, event: Event) -> None:
        self._eta(event)
        if words := words_of(event, self._eta):
            self._line = words
        match event:
            case StepFinished():
                took = format_seconds(self._eta.took_s)
                self._said.append(f"{_name(event)}: done in {took}")
            case StepSkipped():
                self._said.append(f"{_name(event)}: done before")
            case CacheHit():
                self._said.append(f"{_name(event)}: still loaded")
            case Notice() | Retry():
                self._said.append(event.text)
            case ImageSaved() | Preview() if event.file and event.image_number in self._kept(
                event.image_number
            ):
                self._take(event)
        steady = not isinstance(event, Drawing | Loading)
        if steady or time.monotonic() - self._shown > _LEAST_WAIT_S:
            self._show()

    def _kept(self, number: int) -> set[int]:
        """The rows there are, and this one while there is room."""
        return {*self._rows, *([number] if len(self._rows) < self._images else [])}

    def _take(self, event: ImageSaved | Preview) -> None:
        row = self._rows.setdefault(event.image_number, {})
        column = _UNFINISHED if isinstance(event, Preview) else _COLUMNS[event.component]
        row[column] = data_address(Path(event.file), self._width)
        if isinstance(event, ImageSaved):
            row.pop(_UNFINISHED, None)

    def _show(self) -> None:
        self._shown = time.monotonic()
        said = "".join(f"<div>{escape(line)}</div>" for line in self._said)
        line = f"<div><b>{escape(self._line)}</b></div>" if self._line else ""
        pictures = "".join(self._row(number) for number in sorted(self._rows))
        self._output.show(f"{said}{line}{pictures}", self._said)

    def _row(self, number: int) -> str:
        order = [*_COLUMNS.values(), _UNFINISHED]
        columns = sorted(self._rows[number].items(), key=lambda cell: order.index(cell[0]))
        cells = "".join(
            f'<figure style="margin:4px"><img width={self._width} style="image-rendering:pixelated" '
            f'src="{source}"><figcaption>{number:04} {name}</figcaption></figure>'
            for name, source in columns
        )
        return f'<div style="display:flex;flex-wrap:wrap">{cells}</div>'


class _HtmlOutput:
    """One output of a notebook cell, replaced at every update."""

    def __init__(self, html: Any, handle: Any) -> None:
        self._html, self._handle = html, handle

    def show(self, page: str, _said: list[str]) -> None:
        self._handle.update(self._html(page))


class _TextOutput:
    """Lines on standard error, each once."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, _page: str, said: list[str]) -> None:
        for line in said[self._shown :]:
            sys.stderr.write(f"{line}\n")
        self._shown = len(said)


def _notebook_output() -> _HtmlOutput | None:
    """The output of the running cell; None outside a notebook or without IPython."""
    try:
        from IPython.display import HTML, display
    except ImportError:
        return None
    with redirect_stdout(io.StringIO()):  # outside a notebook it prints the object
        handle: Any = display(HTML(""), display_id=True)
    return _HtmlOutput(HTML, handle) if handle is not None else None


def _name(event: Event) -> str:
    return label(event.component)
