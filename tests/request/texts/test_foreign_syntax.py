"""Syntax of other programs in prompts: one notice a prompt, with what to write instead."""

from __future__ import annotations

from typing import Any

import pytest

from lowmem_if.cli.main import main
from lowmem_if.engine.events import Event, Notice
from lowmem_if.engine.session import Session
from lowmem_if.errors import DoesNotFit
from lowmem_if.request.texts.foreign_syntax import syntax_notices


@pytest.mark.parametrize(
    ("prompt", "part", "advice"),
    [
        ("a (red:1.3) fox", "(red:1.3)", "no weights"),
        ("a (dark red : .8) fox", "(dark red : .8)", "no weights"),
        ("a ((red)) fox", "((red))", "no weights"),
        ("a [blurry] fox", "[blurry]", "leave them out"),
        ("a fox BREAK in snow", "BREAK", "at most 77 tokens"),
        ("a fox <lora:mine:0.8>", "<lora:mine:0.8>", "use --lora mine.safetensors:0.8"),
        ("a fox <lora:mine>", "<lora:mine>", "use --lora mine.safetensors:1"),
        ("a {red|blue} fox", "{red|blue}", "a prompt of its own"),
        ("a __colour__ fox", "__colour__", "a prompt of its own"),
        ("a fox --ar 16:9", "--ar 16:9", "use --aspect 16:9"),
        ("a fox --v 6", "--v 6", "no option is read here"),
    ],
)
def test_each_form_is_named_with_advice(prompt: str, part: str, advice: str) -> None:
    """What is read as text, and what to do."""
    (notice,) = syntax_notices([prompt, prompt])
    assert notice.startswith(f"in {prompt!r} IF reads as text what other programs obey: {part} (")
    assert advice in notice


@pytest.mark.parametrize(
    "prompt",
    ["a fox (red) at 10:30", "BREAK THE ICE", "a -- b", "time (8:30 pm) clock", "f(x) = y", ""],
)
def test_plain_texts_get_no_notice(prompt: str) -> None:
    """Brackets and colons occur in plain English."""
    assert syntax_notices([prompt]) == ()


def test_many_prompts_get_ten_notices_and_a_count() -> None:
    """A batch does not fill the screen."""
    *ten, last = syntax_notices([f"a [{k}] fox" for k in range(13)])
    assert len(ten) == 10
    assert last == "3 more prompts have syntax of other programs, which is read as text"


def test_a_session_reports_them_before_it_plans() -> None:
    """For every function that draws, in Python and at the command line."""
    events: list[Event] = []

    def no_plan(*_given: Any, **_options: Any) -> Any:
        raise DoesNotFit("stage_1", "RAM", 2, 1, "")

    with Session(report=events.append, planner=no_plan) as session, pytest.raises(DoesNotFit):
        session.generate("a [red] fox", size=64)
    assert [type(event) for event in events] == [Notice]


def test_plan_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    """As notes."""
    assert main(["plan", "a fox", "--negative-prompt", "(blur:1.2)", "--size", "64"]) == 0
    assert capsys.readouterr().err.startswith("note: in '(blur:1.2)' IF reads as text")
