"""Pictures in the making: seen every few steps, and no pixel of the run is another for it."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image
from runs import plan_of, results, run_here

from lowmem_if.api.run import resume
from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, UPSCALER
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker.executor import work
from lowmem_if.errors import RequestError
from lowmem_if.planning.plan import Plan


@pytest.fixture
def plan(tiny: Path) -> Plan:
    return plan_of(tiny, seed=(3, 4), steps=4)


def test_every_few_steps_each_stage_shows_what_it_is_drawing(plan: Plan, tmp_path: Path) -> None:
    """A small file a picture, there when the event comes, gone when the picture is finished."""
    seen: list[tuple[str, int, int]] = []

    def look(event: Event) -> None:
        if event.kind == "preview":
            with Image.open(event.text) as picture:
                assert max(picture.size) <= 64
                assert picture.mode == "RGB"
            seen.append((event.component, event.number, event.done))

    folder = RunFolder.for_plan(tmp_path / "run", plan)
    work(folder, look, preview_every=2)
    expected = [
        (stage, n, done)
        for stage in (STAGE_1, STAGE_2, UPSCALER)
        for n in (0, 1)
        for done in (2, 4)
    ]
    assert seen == expected
    assert not list((folder.path / "in_making").iterdir())


def test_looking_changes_no_bit(plan: Plan, tmp_path: Path) -> None:
    """Tensors, stages' pictures and finished pictures are those of a run that nobody looked at."""
    looked = RunFolder.for_plan(tmp_path / "looked", plan)
    work(looked, lambda _event: None, preview_every=1)
    assert results(looked.path) == results(run_here(plan, tmp_path / "run").path)


def test_the_last_look_of_a_stage_is_close_to_its_picture(tiny: Path, tmp_path: Path) -> None:
    """What is shown is what the scheduler takes the finished picture for."""
    shown = {}

    def look(event: Event) -> None:
        if event.kind == "preview" and event.component == STAGE_1:
            shown[event.done] = numpy.asarray(Image.open(event.text)).astype(int)

    folder = RunFolder.for_plan(tmp_path / "run", plan_of(tiny, size=64, steps=6))
    work(folder, look, preview_every=3)
    drawn = numpy.asarray(Image.open(folder.path / "stage_1" / "0000.png")).astype(int)
    assert abs(shown[6] - drawn).mean() <= 1
    assert abs(shown[6] - drawn).mean() <= abs(shown[3] - drawn).mean()


def test_a_streaming_upscaler_is_not_looked_at(tiny: Path, tmp_path: Path) -> None:
    """Its VAE is not there while it draws; the other stages show theirs."""
    seen: list[str] = []
    plan = plan_of(tiny, pins=("upscaler=stream", "stage_1=stream"))
    folder = RunFolder.for_plan(tmp_path / "run", plan)
    work(
        folder, lambda e: seen.append(e.component) if e.kind == "preview" else None, preview_every=1
    )
    assert set(seen) == {STAGE_1, STAGE_2}


def test_a_negative_number_of_steps_is_refused(plan: Plan, tmp_path: Path) -> None:
    """Zero is never; less is a mistake."""
    folder = RunFolder.for_plan(tmp_path / "run", plan)
    with pytest.raises(RequestError, match="preview every -1"):
        resume(folder.path, preview_every=-1)
