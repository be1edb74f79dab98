"""Progress of runs and downloads on standard error: bars on a terminal, one line a step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lowmem_if.planning.units import format_seconds
from lowmem_if.running.events import Event
from lowmem_if.running.fetching import BytesReport


class RunProgress:
    """Shows events as they come; a context manager, called with each event."""

    def __init__(self, out: Console, *, quiet: bool) -> None:
        self._out = out
        self._bars = None if quiet or not out.is_terminal else _bars(out)
        self._bar: TaskID | None = None
        self._images = 1
        self._drawn = 0
        self._began = time.monotonic()

    def __enter__(self) -> RunProgress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        name = event.component.replace("_", " ")
        match event.kind:
            case "starting":
                self._show("starting: importing torch and diffusers", 0, None)
            case "started":
                self._images, self._drawn, self._began = event.total, 0, time.monotonic()
            case "loading":
                self._show(f"{name}: loading", event.done, event.total)
            case "drawing":
                of = f" image {event.number:04}" if self._images > 1 else ""
                self._show(f"{name}:{of}", event.done, event.total)
            case "saved":
                self._drawn += 1
                self._show(f"{name}: {self._drawn} of {self._images} image(s)", 1, 1)
            case "finished":
                self._end_bar()
                self._say(f"{name}: done in {format_seconds(time.monotonic() - self._began)}")
            case "skipped":
                self._say(f"{name}: was done already")
            case "notice" | "retry":
                self._say(event.text)

    def _show(self, words: str, done: int, total: int | None) -> None:
        if self._bars is None:
            return
        if self._bar is None:
            self._bar = self._bars.add_task(words, total=None)
        self._bars.update(self._bar, description=words, completed=done, total=total)

    def _end_bar(self) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None

    def _say(self, words: str) -> None:
        (self._bars.console if self._bars else self._out).print(words, markup=False, soft_wrap=True)


@contextmanager
def bytes_progress(out: Console, doing: str, *, quiet: bool) -> Iterator[BytesReport]:
    """Progress of `doing` ("downloading"): one bar over all bytes, or a line a file."""
    if quiet or not out.is_terminal:
        said: set[str] = set()

        def say(file: str, _done: int, _total: int) -> None:
            if file not in said:
                said.add(file)
                out.print(f"{doing} {file}", markup=False, soft_wrap=True)

        yield say
        return
    with _bars(out) as bars:
        bar = bars.add_task(doing)

        def show(file: str, done: int, total: int) -> None:
            bars.update(bar, description=f"{doing} {file}", completed=done, total=total)

        yield show


def _bars(out: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=out,
        transient=True,
    )
