"""A run of many hours is asked about on a terminal, and nowhere else."""

from __future__ import annotations

import sys

import click
import pytest

from lowmem_if.cli.long_runs import LONG_RUN_S, ask_if_long
from lowmem_if.engine.announcements.planned_event import PlannedStep, RunPlanned
from lowmem_if.engine.events import Notice

TERMINAL = ("stdin", "stdout", "stderr")


def planned(seconds: float) -> RunPlanned:
    return RunPlanned(1, 1, 1, 0, 64, "demo", "a", 0.0, (PlannedStep("stage_1", seconds, 0, 1),))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions; each is answered with no."""
    questions: list[str] = []

    def confirm(text: str, **_options: object) -> bool:
        questions.append(text)
        return False

    monkeypatch.setattr(click, "confirm", confirm)
    return questions


def terminals(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in TERMINAL:
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda name=name: name in names)


def test_a_long_run_is_asked_about_and_can_be_refused(
    monkeypatch: pytest.MonkeyPatch, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """No means exit 1 and one line that says that nothing was changed."""
    terminals(monkeypatch, *TERMINAL)
    with pytest.raises(click.exceptions.Exit) as stopped:
        ask_if_long(planned(LONG_RUN_S + 1), yes=False)
    assert stopped.value.exit_code == 1
    assert asked == ["This takes about 3 h 0 min. Start it?"]
    assert "nothing was changed" in capsys.readouterr().err


@pytest.mark.parametrize("missing", TERMINAL)
def test_scripts_are_never_asked(
    monkeypatch: pytest.MonkeyPatch, asked: list[str], missing: str
) -> None:
    """One stream that is no terminal is enough: a question would hang, or nobody would see it."""
    terminals(monkeypatch, *(name for name in TERMINAL if name != missing))
    ask_if_long(planned(10 * LONG_RUN_S), yes=False)
    assert not asked


def test_neither_short_runs_nor_yes_are_asked_about(
    monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    """Nor any other event."""
    terminals(monkeypatch, *TERMINAL)
    ask_if_long(planned(LONG_RUN_S), yes=False)
    ask_if_long(planned(10 * LONG_RUN_S), yes=True)
    ask_if_long(Notice("long"), yes=False)
    assert not asked
