"""Events: a class for each kind, the same through the pipe, and readable as in version 0.1."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from pydantic import ValidationError

from lowmem_if.engine.announcements.planned_event import PlannedStep, RunPlanned
from lowmem_if.engine.events import (
    CacheHit,
    Drawing,
    Event,
    Evicted,
    ImageSaved,
    Loading,
    Notice,
    Preview,
    ReleaseProof,
    Retry,
    RunOpened,
    StepFinished,
    StepResumed,
    StepSkipped,
    StepStarted,
    WorkerStarting,
)
from lowmem_if.engine.worker_answers import (
    AnyEvent,
    CacheState,
    CommandDone,
    CommandFailed,
    LoadedComponent,
    MemoryRanOut,
    SegmentsRefused,
    read_event,
)

ALL: tuple[tuple[Event, str], ...] = (
    (
        RunPlanned(2, 2, 4, 1, 64, "demo", "runs/ä", 5.0, (PlannedStep("stage_1", 9.0, 0, 7),)),
        "planned",
    ),
    (RunOpened("runs/ä"), "opened"),
    (WorkerStarting(), "starting"),
    (StepStarted("stage_1", 4, 2), "started"),
    (StepResumed("stage_1", 1, 4), "resumed"),
    (StepFinished("stage_1"), "finished"),
    (StepSkipped("stage_1"), "skipped"),
    (Loading("stage_1", 5, 10), "loading"),
    (CacheHit("stage_1", 10), "cache_hit"),
    (Drawing("stage_1", 3, 7, 50), "drawing"),
    (Preview("stage_1", 3, "a.png", 10, 50), "preview"),
    (ImageSaved("stage_1", 3, "a.png"), "saved"),
    (Evicted("stage_1", ReleaseProof(("UNet",), 1, 2, 3)), "evicted"),
    (Notice("look"), "notice"),
    (Retry("stage_1", "again"), "retry"),
    (CacheState((LoadedComponent("stage_1", "stream", "float16", "cpu", 9),)), "cache_state"),
    (CommandDone(), "done"),
    (CommandFailed("HubError", "no"), "error"),
    (MemoryRanOut("no", "RAM", 5), "out_of_memory"),
    (SegmentsRefused("no"), "segments_fail"),
)


def test_every_kind_is_in_this_list() -> None:
    """So that the other tests here hold for all kinds."""
    assert {type(event) for event, _ in ALL} == set(get_args(AnyEvent))


@pytest.mark.parametrize(("event", "kind"), ALL, ids=[kind for _, kind in ALL])
def test_an_event_is_the_same_behind_the_pipe(event: Event, kind: str) -> None:
    """One line of ASCII, in which `kind` names the class and nothing is JSON in a text."""
    line = event.to_line()
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["kind"] == event.kind == kind
    assert read_event(line) == event
    assert '\\"' not in line


def test_the_attributes_of_the_first_version_can_be_read() -> None:
    """Whatever the kind; what a kind has no use for is empty."""
    drawing = Drawing("stage_1", 3, 7, 50)
    assert (drawing.component, drawing.number, drawing.done, drawing.total) == ("stage_1", 3, 7, 50)
    assert (drawing.batch, drawing.text, drawing.name) == (1, "", "")
    assert (StepStarted("stage_1", 4, 2).total, StepStarted("stage_1", 4, 2).batch) == (4, 2)
    assert (Loading("stage_1", 5, 10).done, Loading("stage_1", 5, 10).total) == (5, 10)
    assert (StepResumed("stage_1", 1, 4).done, StepResumed("stage_1", 1, 4).total) == (1, 4)
    assert CacheHit("stage_1", 10).total == 10
    assert ImageSaved("stage_1", 3, "a.png").text == Preview("stage_1", 3, "a.png").text == "a.png"
    assert RunOpened("runs/a").text == "runs/a"
    assert (Notice("look").text, Notice("look").component) == ("look", "")
    proof = json.loads(Evicted("stage_1", ReleaseProof(("UNet",), 1, 2, 3)).text)
    assert (proof["alive"], proof["allowed_bytes"]) == (["UNet"], 3)
    with pytest.raises(AttributeError, match="Notice has no attribute 'nothing'"):
        getattr(Notice("look"), "nothing")  # noqa: B009  mypy knows that it does not exist


@pytest.mark.parametrize("line", ["{}", '{"kind": "new"}', '{"kind": "started"}', "text"])
def test_what_is_no_event_is_not_read(line: str) -> None:
    """A kind that does not exist, or a field that is missing."""
    with pytest.raises(ValidationError):
        read_event(line)
