"""`lowmem-if config`: what it shows, sets and refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lowmem_if.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["config", *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_value_is_set_shown_and_removed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing says where each value comes from."""
    assert "not there yet" in run(capsys)[1]
    assert run(capsys, "ram", "9GB")[0] == 0
    assert run(capsys, "cascade", "if-m")[0] == 0
    assert run(capsys, "ram") == (0, "9GB\n")
    monkeypatch.setenv("LOWMEM_IF_CASCADE", "if-l")
    listed = run(capsys)[1]
    assert "ram = 9GB" in listed
    assert "cascade = if-l (from LOWMEM_IF_CASCADE)" in listed
    assert run(capsys, "ram", "--unset")[0] == 0
    assert "ram is not set" in run(capsys, "ram")[1]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("cascad", "demo", "did you mean 'cascade'?"),
        ("ram", "much", "not a memory size"),
        ("size", "65", "64, 256 and 1024"),
        ("cascade", "if-xx", "did you mean 'if-xl'?"),
        ("pin", "stage_1=fast", "unknown strategy 'fast'"),
        ("steps", "1,x", "not a whole number"),
        ("prefer", "quick", "unknown preference"),
        ("profile", "colab", "no profile 'colab'"),
    ],
)
def test_what_a_plan_would_refuse_is_not_written(
    capsys: pytest.CaptureFixture[str], name: str, value: str, told: str
) -> None:
    """In one line, with the plan's own words."""
    code, line = run(capsys, name, value)
    assert code == 2 or "no profile" in line or "no cascade" in line
    assert code != 0
    assert line.count("\n") == 1
    assert told in line
    assert not Path(os.environ["LOWMEM_IF_CONFIG"]).exists()


def test_a_value_that_only_does_not_fit_here_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Another machine may share the file."""
    assert run(capsys, "ram", "100MB")[0] == 0
    assert run(capsys, "ram") == (0, "100MB\n")
