"""What a run still has to do, in words and figures, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from runs import CPU, plan_of, run_here
from sample_pictures import noise

import lowmem_if as lm
from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER
from lowmem_if.engine.announcements.planned_event import RunPlanned
from lowmem_if.engine.announcements.run_summary import run_summary
from lowmem_if.engine.enlargement import continued
from lowmem_if.engine.events import Event
from lowmem_if.request.batch_request import request_of

RED, BLUE = "a red circle", "a blue star"


class Stopped(Exception):
    """Raised by a report that does not want the run."""


def stop(event: Event) -> None:
    if isinstance(event, RunPlanned):
        raise Stopped(event.text)


def test_a_new_run_says_pictures_size_time_memory_and_folder(tmp_path: Path) -> None:
    """The figures are the plan's own."""
    plan = plan_of("demo", [RED, BLUE], images=2, size=256)
    told = run_summary(plan, tmp_path / "run")
    assert told.seconds == pytest.approx(plan.seconds)
    assert told.text.startswith("2 prompts x 2 = 4 pictures to 256 px with demo: about ")
    assert told.text.endswith(f" RAM; run folder {tmp_path / 'run'}")
    assert "VRAM" not in told.text
    assert [step.component for step in told.steps] == [s.component for s in plan.steps]


def test_prompts_with_different_numbers_of_pictures_are_not_multiplied(tmp_path: Path) -> None:
    """Three pictures of one prompt and one of another are four, but not two times two."""
    rows: list[str | Mapping[str, Any]] = [{"prompt": RED, "images": 3}, BLUE]
    request, _bad = request_of(rows, cascade="demo", size=64, seed=1)
    told = run_summary(lm.make_plan(CPU, request), tmp_path)
    assert told.text.startswith("2 prompts, 4 pictures to 64 px with demo: about ")


def test_one_prompt_and_a_picture_without_one(tmp_path: Path) -> None:
    """One picture is one picture; the upscaler's result is four times as large as its input."""
    assert run_summary(plan_of("demo", RED), tmp_path).text.startswith("1 picture to 1024 px")
    picture = noise(tmp_path / "a.png", 100, 80)
    plan = plan_of("demo", "", mode="upscale", image=picture)
    assert run_summary(plan, tmp_path).text.startswith("1 picture to 320 px")


def test_what_is_in_the_folder_is_not_left(tiny: Path, tmp_path: Path) -> None:
    """Of three pictures one has to be drawn from the start and one only to be finished."""
    folder = run_here(plan_of(tiny, [RED, BLUE, "a"], size=256), tmp_path / "run")
    first, second, _third = folder.plan.request.images
    for spec in (first, second):
        folder.image_file(spec).unlink()
    for stage in (STAGE_1, STAGE_2):
        folder.tensor_file(stage, first).unlink()
    told = run_summary(folder.plan, folder.path, folder)
    assert told.text.startswith("2 of 3 pictures left, to 256 px")
    whole = {step.component: step.estimate.seconds for step in folder.plan.steps}
    left = {step.component: step.seconds for step in told.steps}
    assert left == pytest.approx(
        {
            STAGE_1: whole[STAGE_1] / 3,
            STAGE_2: whole[STAGE_2] / 3,
            POSTPROCESS: whole[POSTPROCESS] * 2 / 3,
        }
    )


@pytest.mark.parametrize("out", [None, "larger"])
def test_enlarging_tells_what_is_left_and_can_be_stopped(
    tiny: Path, tmp_path: Path, out: str | None
) -> None:
    """Stage 2 of the chosen picture and its end; a report that raises leaves everything as it was."""
    folder = run_here(plan_of(tiny, [RED, BLUE], size=64), tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    seen: list[Event] = []

    def refuse(event: Event) -> None:
        seen.append(event)
        raise Stopped

    with pytest.raises(Stopped):
        continued(
            folder, [1], 256, folder.plan.machine, tmp_path / out if out else None, report=refuse
        )
    assert sorted(tmp_path.rglob("*")) == before
    (told,) = seen
    assert isinstance(told, RunPlanned)
    assert [step.component for step in told.steps] == [STAGE_2, POSTPROCESS]
    words = "1 picture to 256 px" if out else "1 of 2 pictures left, to 256 px"
    assert told.text.startswith(words)


def test_a_report_that_raises_stops_a_run_before_its_folder_is_made(tmp_path: Path) -> None:
    """So a question can be asked; a finished run has nothing to tell."""
    with pytest.raises(Stopped, match="2 pictures to 64 px with demo"):
        lm.generate(RED, images=2, size=64, out=tmp_path / "run", report=stop)
    assert not (tmp_path / "run").exists()
    done = run_here(plan_of("demo", RED, size=64), tmp_path / "done")
    assert lm.resume(done.path, report=stop).images == done.images


def test_a_resumed_run_tells_first(tmp_path: Path) -> None:
    """`resume` reads the plan from the folder."""
    from lowmem_if.engine.run_folder.folder import RunFolder

    RunFolder.for_plan(tmp_path / "run", plan_of("demo", RED, size=64))
    with pytest.raises(Stopped, match="1 picture to 64 px with demo"):
        lm.resume(tmp_path / "run", report=stop)


def test_encoding_alone_counts_prompts(tmp_path: Path) -> None:
    """`embed` draws nothing."""
    told = run_summary(plan_of("demo", [RED, BLUE], mode="embed", size=64), tmp_path)
    assert told.text.startswith("2 prompts to encode with demo: about ")
    assert [step.component for step in told.steps] == [TEXT_ENCODER]
