"""What a run says of itself while it goes: in a terminal, in a log, in a notebook."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER
from lowmem_if.engine.announcements.planned_event import PlannedStep, RunPlanned
from lowmem_if.engine.events import (
    Drawing,
    ImageSaved,
    Loading,
    Notice,
    Preview,
    StepFinished,
    StepResumed,
    StepSkipped,
    StepStarted,
)
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
def eta(clock: Clock) -> Eta:
    return Eta(clock)


def draw(eta: Eta, clock: Clock, number: int, steps: int, seconds: float, until: int = 0) -> None:
    """One picture, step by step, and saved unless it stops at `until`."""
    for done in range(1, (until or steps) + 1):
        clock.now += seconds
        eta(Drawing(STAGE_1, number, done, steps))
    if not until:
        eta(ImageSaved(STAGE_1, number, ""))


def test_nothing_is_told_before_a_step_was_measured(eta: Eta, clock: Clock) -> None:
    """The first step includes what is done once, so the second is the first measure."""
    eta(StepStarted(STAGE_1, 2))
    assert eta.left_s is None
    draw(eta, clock, 0, 10, 3.0, until=1)
    assert eta.left_s is None
    draw(eta, clock, 0, 10, 3.0, until=2)
    assert eta.left_s is not None


def test_the_time_left_counts_all_images(eta: Eta, clock: Clock) -> None:
    """Steps of this image and of those to come, at the eta of the steps so far."""
    eta(StepStarted(STAGE_1, 3))
    draw(eta, clock, 0, 10, 2.0)
    assert eta.left_s == pytest.approx(40)
    draw(eta, clock, 1, 10, 2.0, until=4)
    assert eta.left_s == pytest.approx(2.0 * 16)
    assert eta.saved == (1, 3)
    assert eta.took_s == pytest.approx(28)


def test_images_of_a_batch_are_drawn_at_once(eta: Eta, clock: Clock) -> None:
    """Eight images in batches of four are two times the steps."""
    eta(StepStarted(STAGE_1, 8, 4))
    draw(eta, clock, 0, 10, 2.0, until=10)
    for number in range(4):
        eta(ImageSaved(STAGE_1, number, ""))
    assert eta.left_s == pytest.approx(20)


def test_images_that_are_there_from_before_take_no_time(eta: Eta, clock: Clock) -> None:
    """A resumed turn counts only what is not drawn yet."""
    eta(StepStarted(STAGE_1, 10))
    eta(StepResumed(STAGE_1, 8, 10))
    draw(eta, clock, 8, 10, 1.0)
    assert eta.left_s == pytest.approx(10)
    assert eta.saved == (9, 10)


def test_one_slow_step_does_not_count(eta: Eta, clock: Clock) -> None:
    """The median forgets a pause."""
    eta(StepStarted(STAGE_1, 1))
    draw(eta, clock, 0, 20, 1.0, until=5)
    clock.now += 500
    draw(eta, clock, 0, 20, 1.0, until=8)
    assert eta.left_s == pytest.approx(12)


def test_loading_is_told_by_its_bytes(eta: Eta, clock: Clock) -> None:
    """Until the weights are there."""
    eta(StepStarted(STAGE_1, 1))
    eta(Loading(STAGE_1, 0, 100))
    assert eta.left_s is None
    clock.now += 5
    eta(Loading(STAGE_1, 25, 100))
    assert eta.left_s == pytest.approx(15)
    eta(Loading(STAGE_1, 100, 100))
    assert eta.left_s is None


def test_a_component_without_steps_is_told_by_its_pictures(eta: Eta, clock: Clock) -> None:
    """Finishing saves a picture at a time."""
    eta(StepStarted(POSTPROCESS, 5))
    for number in range(3):
        clock.now += 4
        eta(ImageSaved(POSTPROCESS, number, ""))
    assert eta.left_s == pytest.approx(8)


def test_prompts_are_one_go_whatever_number_of_images(eta: Eta, clock: Clock) -> None:
    """Sixty-four prompts of 64 images are 64 steps, not 64 times 64."""
    eta(StepStarted(TEXT_ENCODER, 64))
    for done in range(1, 5):
        clock.now += 2
        eta(Drawing(TEXT_ENCODER, 0, done, 64))
    assert eta.left_s == pytest.approx(120)


def test_the_line_of_progress_says_where_and_how_long(eta: Eta, clock: Clock) -> None:
    """Component, image of how many, step of how many, time left."""
    eta(StepStarted(STAGE_1, 2))
    draw(eta, clock, 0, 100, 3.0, until=12)
    event = Drawing(STAGE_1, 0, 12, 100)
    assert words_of(event, eta) == "stage 1: image 1 of 2, step 12 of 100, 9 min 24 s left"


def planned(*seconds: tuple[str, float]) -> RunPlanned:
    steps = tuple(PlannedStep(component, each, 0, 10**9) for component, each in seconds)
    return RunPlanned(1, 2, 2, 0, 256, "demo", "runs/a", 5.0, steps)


def test_the_time_left_of_all_steps_rests_on_the_plan_until_they_are_measured(
    eta: Eta, clock: Clock
) -> None:
    """The plan predicts the steps to come; a stage that is twice as slow makes the next so, too."""
    assert eta.run_left_s is None
    eta(planned((TEXT_ENCODER, 30), (STAGE_1, 100), (STAGE_2, 200)))
    eta(StepStarted(TEXT_ENCODER, 1))
    clock.now += 10
    assert eta.run_left_s == pytest.approx(20 + 100 + 200)
    eta(StepFinished(TEXT_ENCODER))
    eta(StepStarted(STAGE_1, 2))
    draw(eta, clock, 0, 10, 10.0, until=2)
    event = Drawing(STAGE_1, 0, 2, 10)
    assert eta.left_s == pytest.approx(180)
    assert eta.run_left_s == pytest.approx(180 + 2 * 200)
    words = "stage 1: image 1 of 2, step 2 of 10, 3 min 0 s left, 9 min 40 s for all steps"
    assert words_of(event, eta) == words


def test_nothing_is_left_after_the_last_picture(eta: Eta, clock: Clock) -> None:
    """Although the plan expected more: a run that is done says no time."""
    steps = (PlannedStep(STAGE_1, 100.0, 0, 0),)
    eta(RunPlanned(1, 1, 1, 0, 64, "demo", "run", 1.0, steps))
    eta(StepStarted(STAGE_1, 1))
    draw(eta, clock, 0, 2, 1.0)
    assert (eta.left_s, eta.run_left_s) == (0.0, 0.0)
    assert words_of(ImageSaved(STAGE_1, 0, ""), eta) == "stage 1: 1 of 1 image(s)"


def test_what_was_done_before_is_not_left(eta: Eta, clock: Clock) -> None:
    """A step that is skipped takes no time, and the last step's time is all there is."""
    eta(planned((STAGE_1, 100), (STAGE_2, 200)))
    eta(StepSkipped(STAGE_1))
    eta(StepStarted(STAGE_2, 1))
    assert eta.run_left_s == pytest.approx(200)
    draw(eta, clock, 0, 10, 5.0, until=4)
    assert eta.run_left_s == eta.left_s == pytest.approx(30)


def test_the_summary_is_shown_before_anything_runs_and_not_if_quiet() -> None:
    """One line with pictures, size, time, memory and folder."""
    for quiet in (False, True):
        stream = io.StringIO()
        with RunProgress(Console(file=stream, width=40), quiet=quiet) as report:
            report(planned((STAGE_1, 4000)))
        line = (
            "2 pictures to 256 px with demo: about 1 h 6 min, peak 1.0 GB RAM; run folder runs/a\n"
        )
        assert stream.getvalue() == ("" if quiet else line)


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal: long steps get a line, and each preview folder and end of a step; quiet, none."""
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1.0)
    told = {}
    for quiet in (False, True):
        stream = io.StringIO()
        with RunProgress(Console(file=stream, width=100), quiet=quiet) as report:
            report(StepStarted(STAGE_1, 1))
            report(Drawing(STAGE_1, 0, 1, 2))
            report(Preview(STAGE_1, 0, "run/in_making/0000.png"))
            report(Preview(STAGE_1, 0, "run/in_making/0000.png"))
            report(StepFinished(STAGE_1))
        told[quiet] = stream.getvalue()
    assert "step 1 of 2" in told[False]
    assert told[False].count("unfinished pictures: run/in_making") == 1
    assert "stage 1: done in" in told[False]
    assert told[True] == ""


def test_a_terminal_gets_a_bar_with_the_time_left() -> None:
    """The bar goes away; the line of the end stays."""
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, highlight=False)
    with RunProgress(console, quiet=False) as report:
        report(StepStarted(STAGE_1, 1))
        for done in range(1, 4):
            report(Drawing(STAGE_1, 0, done, 3))
        report(StepFinished(STAGE_1))
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
    report(StepStarted(STAGE_1, 2))
    report(Preview(STAGE_1, 0, str(file)))
    assert "unfinished" in handle.pages[-1]
    report(ImageSaved(STAGE_1, 0, str(file)))
    report(ImageSaved(STAGE_1, 1, str(file)))
    report(Notice("<b>5 & 6</b>", STAGE_1))
    report(StepFinished(STAGE_1))
    report(ImageSaved(POSTPROCESS, 0, str(file)))
    page = handle.pages[-1]
    assert "unfinished" not in page
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
        report(StepStarted(STAGE_1, 2))
        report(Notice("cut after 77 tokens", STAGE_1))
        report(StepFinished(STAGE_1))
        written = capsys.readouterr()
        assert written.out == ""
        assert written.err.splitlines()[0] == "cut after 77 tokens"
        assert len(written.err.splitlines()) == 2
