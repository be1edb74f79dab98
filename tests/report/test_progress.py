"""What a run says of itself while it goes: in a terminal, in a log, in a notebook."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, TEXT_ENCODER
from lowmem_if.engine.events import Event
from lowmem_if.report import progress
from lowmem_if.report.eta import Eta
from lowmem_if.report.progress import RunProgress, words_of


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Eta:
    return Eta(clock)


def draw(pace: Eta, clock: Clock, number: int, steps: int, seconds: float, until: int = 0) -> None:
    """One picture, step by step, and saved unless it stops at `until`."""
    for done in range(1, (until or steps) + 1):
        clock.now += seconds
        pace(Event("drawing", STAGE_1, number=number, done=done, total=steps))
    if not until:
        pace(Event("saved", STAGE_1, number=number))


def test_nothing_is_told_before_a_step_was_measured(pace: Eta, clock: Clock) -> None:
    """The first step includes what is done once, so the second is the first measure."""
    pace(Event("started", STAGE_1, total=2))
    assert pace.left_s is None
    draw(pace, clock, 0, 10, 3.0, until=1)
    assert pace.left_s is None
    draw(pace, clock, 0, 10, 3.0, until=2)
    assert pace.left_s is not None


def test_the_time_left_counts_all_images(pace: Eta, clock: Clock) -> None:
    """Steps of this image and of those to come, at the pace of the steps so far."""
    pace(Event("started", STAGE_1, total=3))
    draw(pace, clock, 0, 10, 2.0)
    assert pace.left_s == pytest.approx(40)
    draw(pace, clock, 1, 10, 2.0, until=4)
    assert pace.left_s == pytest.approx(2.0 * 16)
    assert pace.saved == (1, 3)
    assert pace.took_s == pytest.approx(28)


def test_images_of_a_batch_are_drawn_at_once(pace: Eta, clock: Clock) -> None:
    """Eight images in batches of four are two times the steps."""
    pace(Event("started", STAGE_1, total=8, batch=4))
    draw(pace, clock, 0, 10, 2.0, until=10)
    for number in range(4):
        pace(Event("saved", STAGE_1, number=number))
    assert pace.left_s == pytest.approx(20)


def test_images_that_are_there_from_before_take_no_time(pace: Eta, clock: Clock) -> None:
    """A resumed turn counts only what is not drawn yet."""
    pace(Event("started", STAGE_1, total=10))
    pace(Event("going_on", STAGE_1, done=8, total=10))
    draw(pace, clock, 8, 10, 1.0)
    assert pace.left_s == pytest.approx(10)
    assert pace.saved == (9, 10)


def test_one_slow_step_does_not_count(pace: Eta, clock: Clock) -> None:
    """The median forgets a pause."""
    pace(Event("started", STAGE_1, total=1))
    draw(pace, clock, 0, 20, 1.0, until=5)
    clock.now += 500
    draw(pace, clock, 0, 20, 1.0, until=8)
    assert pace.left_s == pytest.approx(12)


def test_loading_is_told_by_its_bytes(pace: Eta, clock: Clock) -> None:
    """Until the weights are there."""
    pace(Event("started", STAGE_1, total=1))
    pace(Event("loading", STAGE_1, done=0, total=100))
    assert pace.left_s is None
    clock.now += 5
    pace(Event("loading", STAGE_1, done=25, total=100))
    assert pace.left_s == pytest.approx(15)
    pace(Event("loading", STAGE_1, done=100, total=100))
    assert pace.left_s is None


def test_a_component_without_steps_is_told_by_its_pictures(pace: Eta, clock: Clock) -> None:
    """Finishing saves a picture at a time."""
    pace(Event("started", POSTPROCESS, total=5))
    for number in range(3):
        clock.now += 4
        pace(Event("saved", POSTPROCESS, number=number))
    assert pace.left_s == pytest.approx(8)


def test_prompts_are_one_go_whatever_number_of_images(pace: Eta, clock: Clock) -> None:
    """Sixty-four prompts of 64 images are 64 steps, not 64 times 64."""
    pace(Event("started", TEXT_ENCODER, total=64))
    for done in range(1, 5):
        clock.now += 2
        pace(Event("drawing", TEXT_ENCODER, done=done, total=64))
    assert pace.left_s == pytest.approx(120)


def test_the_line_of_progress_says_where_and_how_long(pace: Eta, clock: Clock) -> None:
    """Component, image of how many, step of how many, time left."""
    pace(Event("started", STAGE_1, total=2))
    draw(pace, clock, 0, 100, 3.0, until=12)
    event = Event("drawing", STAGE_1, number=0, done=12, total=100)
    assert words_of(event, pace) == "stage 1: image 1 of 2, step 12 of 100, 9 min 24 s left"


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal: long turns are heard of, quiet ones are not, and every step has its end."""
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1.0)
    told = {}
    for quiet in (False, True):
        stream = io.StringIO()
        with RunProgress(Console(file=stream, width=100), quiet=quiet) as report:
            report(Event("started", STAGE_1, total=1))
            report(Event("drawing", STAGE_1, done=1, total=2))
            report(Event("preview", STAGE_1, text="run/in_making/0000.png"))
            report(Event("preview", STAGE_1, text="run/in_making/0000.png"))
            report(Event("finished", STAGE_1))
        told[quiet] = stream.getvalue()
    assert "step 1 of 2" in told[False]
    assert "step 1 of 2" not in told[True]
    for text in told.values():
        assert text.count("pictures in the making: run/in_making") == 1
        assert "stage 1: done in" in text


def test_a_terminal_gets_a_bar_with_the_time_left() -> None:
    """The bar goes away; the line of the end stays."""
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, highlight=False)
    with RunProgress(console, quiet=False) as report:
        report(Event("started", STAGE_1, total=1))
        for done in range(1, 4):
            report(Event("drawing", STAGE_1, done=done, total=3))
        report(Event("finished", STAGE_1))
    assert "stage 1: done in" in stream.getvalue()


class Handle:
    """IPython's display handle, as far as it is used."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def update(self, page: str) -> None:
        self.pages.append(page)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    import IPython.display

    handle = Handle()
    monkeypatch.setattr(IPython.display, "display", lambda *_a, **_k: handle)
    monkeypatch.setattr(IPython.display, "HTML", str)
    return handle


def test_a_notebook_shows_the_pictures_as_they_come(handle: Handle, tmp_path: Path) -> None:
    """One output that is replaced: what was said, where it is, and the stages' pictures in order."""
    from lowmem_if.report.notebook import NotebookProgress

    file = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(file)
    report = NotebookProgress(images=1)
    report(Event("started", STAGE_1, total=2))
    report(Event("preview", STAGE_1, number=0, text=str(file)))
    assert "in the making" in handle.pages[-1]
    report(Event("saved", STAGE_1, number=0, text=str(file)))
    report(Event("saved", STAGE_1, number=1, text=str(file)))
    report(Event("notice", STAGE_1, text="<b>5 & 6</b>"))
    report(Event("finished", STAGE_1))
    report(Event("saved", POSTPROCESS, number=0, text=str(file)))
    page = handle.pages[-1]
    assert "in the making" not in page
    assert page.index("0000 stage 1") < page.index("0000 finished")
    assert "0001" not in page
    assert "&lt;b&gt;5 &amp; 6&lt;/b&gt;" in page
    assert page.count("data:image/jpeg;base64,") == 2


def test_outside_a_notebook_it_writes_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a script, with IPython or without, what the run has to say goes to standard error, once."""
    from lowmem_if.report.notebook import NotebookProgress

    for missing in (False, True):
        if missing:
            monkeypatch.setitem(sys.modules, "IPython.display", None)
        report = NotebookProgress()
        report(Event("started", STAGE_1, total=2))
        report(Event("notice", STAGE_1, text="cut after 77 tokens"))
        report(Event("finished", STAGE_1))
        written = capsys.readouterr()
        assert written.out == ""
        assert written.err.splitlines()[0] == "cut after 77 tokens"
        assert len(written.err.splitlines()) == 2
