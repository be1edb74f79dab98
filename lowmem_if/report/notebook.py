"""A run as a notebook shows it: a line that says where it is, and the stages' pictures as they come."""

from __future__ import annotations

import base64
import io
import sys
import time
from contextlib import redirect_stdout
from html import escape
from pathlib import Path
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import label
from lowmem_if.engine.events import Event
from lowmem_if.report.eta import Eta
from lowmem_if.report.progress import words_of
from lowmem_if.units import format_seconds

_LEAST_WAIT_S = 0.5
_IN_MAKING, _FINISHED = "in the making", "finished"
_COLUMNS = {
    catalog.STAGE_1: "stage 1",
    catalog.STAGE_2: "stage 2",
    catalog.UPSCALER: "x4 upscaler",
    catalog.POSTPROCESS: _FINISHED,
}


class NotebookProgress:
    """A report for notebooks: `lm.generate(..., report=lm.NotebookProgress())`.

    Outside a notebook it writes what the run had to say to standard error, a line each.

    One output is updated in place: what is done and how long the step still takes, what the run had to
    say, and a row of pictures for each of the first images: after every stage, and in the making if
    `preview_every` was asked for.

    Args:
        images: rows at most; of a long batch the others are in its `gallery.html`.
        width: of a picture, in the browser's pixels.
    """

    def __init__(self, *, images: int = 4, width: int = 192) -> None:
        self._images, self._width = images, width
        self._pace = Eta()
        self._rows: dict[int, dict[str, str]] = {}
        self._said: list[str] = []
        self._line = "starting"
        self._shown = 0.0
        self._output = _notebook_output() or _TextOutput()

    def __call__(self, event: Event) -> None:
        self._pace(event)
        if words := words_of(event, self._pace):
            self._line = words
        match event.kind:
            case "finished":
                took = format_seconds(self._pace.took_s)
                self._said.append(f"{_name(event)}: done in {took}")
            case "skipped":
                self._said.append(f"{_name(event)}: was done already")
            case "warm":
                self._said.append(f"{_name(event)}: is loaded still")
            case "notice" | "retry":
                self._said.append(event.text)
            case "saved" | "preview" if event.text and event.number in self._kept(event.number):
                self._take(event)
        steady = event.kind not in ("drawing", "loading")
        if steady or time.monotonic() - self._shown > _LEAST_WAIT_S:
            self._show()

    def _kept(self, number: int) -> set[int]:
        """The rows there are, and this one while there is room."""
        return {*self._rows, *([number] if len(self._rows) < self._images else [])}

    def _take(self, event: Event) -> None:
        row = self._rows.setdefault(event.number, {})
        column = _IN_MAKING if event.kind == "preview" else _COLUMNS[event.component]
        row[column] = _picture(Path(event.text), self._width)
        if event.kind == "saved":
            row.pop(_IN_MAKING, None)

    def _show(self) -> None:
        self._shown = time.monotonic()
        said = "".join(f"<div>{escape(line)}</div>" for line in self._said)
        line = f"<div><b>{escape(self._line)}</b></div>" if self._line else ""
        pictures = "".join(self._row(number) for number in sorted(self._rows))
        self._output.show(f"{said}{line}{pictures}", self._said)

    def _row(self, number: int) -> str:
        order = [*_COLUMNS.values(), _IN_MAKING]
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
    """Lines on standard error, each of them once."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, _page: str, said: list[str]) -> None:
        for line in said[self._shown :]:
            sys.stderr.write(f"{line}\n")
        self._shown = len(said)


def _notebook_output() -> _HtmlOutput | None:
    """The output of the cell that runs; None where no notebook is listening, or IPython is missing."""
    try:
        from IPython.display import HTML, display
    except ImportError:
        return None
    with redirect_stdout(io.StringIO()):  # outside a notebook it prints the object
        handle: Any = display(HTML(""), display_id=True)
    return _HtmlOutput(HTML, handle) if handle is not None else None


def _name(event: Event) -> str:
    return label(event.component)


def _picture(file: Path, width: int) -> str:
    """A picture as a `data:` address, no larger than it is shown on a dense screen."""
    from PIL import Image

    with Image.open(file) as image:
        small = image.convert("RGB")
        small.thumbnail((2 * width, 2 * width))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
