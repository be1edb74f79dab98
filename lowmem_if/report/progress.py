"""Progress of runs and downloads on standard error: bars on a terminal, one line a step elsewhere.

Nothing is shown with `quiet`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lowmem_if.api.fetch import BytesReport
from lowmem_if.cascade.catalog import facts, label
from lowmem_if.engine.announcements.planned_event import RunPlanned
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
    WorkerStarting,
)
from lowmem_if.report.eta import Eta
from lowmem_if.units import format_seconds

_LINE_EVERY_S = 30.0


class RunProgress:
    """Shows the events of a run; a context manager, called with each event."""

    def __init__(self, out: Console, *, quiet: bool) -> None:
        self._out, self._quiet = out, quiet
        self._bars = None if quiet or not out.is_terminal else _run_bars(out)
        self._bar: TaskID | None = None
        self._lines = None if quiet or out.is_terminal else _SparseLines(self._say)
        self._eta = Eta()
        self._named_previews = False

    def __enter__(self) -> RunProgress:
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
        self._eta(event)
        if words := words_of(event, self._eta):
            self._show(words, event)
            if self._lines:
                self._lines(words)
        match event:
            case RunPlanned():
                self._say(event.text)
            case StepFinished():
                self._end_bar()
                self._say(f"{_name(event)}: done in {format_seconds(self._eta.took_s)}")
            case StepSkipped():
                self._say(f"{_name(event)}: done before")
            case CacheHit():
                self._say(f"{_name(event)}: still loaded")
            case Notice():
                self._say(f"note: {event.text}")
            case Retry():
                self._say(event.text)
            case Preview() if not self._named_previews:
                self._named_previews = True
                self._say(f"unfinished pictures: {Path(event.file).parent}")

    def _show(self, words: str, event: Event) -> None:
        if self._bars is None:
            return
        if self._bar is None:
            self._bars.start()  # only now: before, a question may be asked on the terminal
            self._bar = self._bars.add_task(words, total=None)
        done, total = (
            self._eta.saved if isinstance(event, ImageSaved) else (event.done, event.total)
        )
        self._bars.update(self._bar, description=words, completed=done, total=total or None)

    def _end_bar(self) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None

    def _say(self, words: str) -> None:
        if self._quiet:
            return
        (self._bars.console if self._bars else self._out).print(words, markup=False, soft_wrap=True)


class _SparseLines:
    """For logs and a notebook's shell cells, which have no bars: a line now and then in a long step."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said = say, time.monotonic()

    def __call__(self, words: str) -> None:
        if time.monotonic() - self._said > _LINE_EVERY_S:
            self._said = time.monotonic()
            self._say(words)


def words_of(event: Event, eta: Eta) -> str:
    """Where a run is, in one line, with the time left; empty if an event is no progress."""
    match event:
        case WorkerStarting():
            return "starting: importing torch and diffusers"
        case Loading():
            return f"{_name(event)}: loading{_left(eta)}"
        case Drawing():
            if facts(event.component).encodes:
                return f"{_name(event)}: {event.step} of {event.steps}{_left(eta)}"
            saved, images = eta.saved
            of = f" image {saved + 1} of {images}," if images > 1 else ""
            return f"{_name(event)}:{of} step {event.step} of {event.steps}{_left(eta)}"
        case ImageSaved():
            saved, images = eta.saved
            return f"{_name(event)}: {saved} of {images} image(s){_left(eta)}"
    return ""


def _left(eta: Eta) -> str:
    """The time left of this step and, if it is longer, that of the whole run."""
    left, run_left = eta.left_s or 0.0, eta.run_left_s or 0.0
    times = [f"{format_seconds(left)} left"] if left >= 1 else []
    if run_left > left + 1:
        times.append(f"{format_seconds(run_left)} for all steps")
    return "".join(f", {each}" for each in times)


def _name(event: Event) -> str:
    return label(event.component)


@contextmanager
def bytes_progress(out: Console, doing: str, *, quiet: bool) -> Iterator[BytesReport]:
    """Progress of `doing` ("downloading"): one bar over all bytes, or one line for each file."""
    if quiet:
        yield lambda _file, _done, _total: None
        return
    if not out.is_terminal:
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


def _run_bars(out: Console) -> Progress:
    """The description holds the time left of the whole step, so the bar shows none."""
    percent = TextColumn("{task.percentage:>3.0f}%")
    words = TextColumn("{task.description}", markup=False)
    return Progress(words, BarColumn(), percent, console=out, transient=True)


def _bars(out: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=out,
        transient=True,
    )
