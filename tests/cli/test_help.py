"""The help of the command line: every option explained, in groups, with examples that parse."""

from __future__ import annotations

import shlex
import subprocess
import sys

import click
import pytest

from lowmem_if.cli.command import CommandWithExamples
from lowmem_if.cli.main import app, main

COMMANDS = {
    name: each for name, each in app.commands.items() if isinstance(each, CommandWithExamples)
}


def test_every_command_is_declared_with_examples() -> None:
    """Each has a section, a help text and two examples."""
    assert COMMANDS.keys() == app.commands.keys()
    for command in COMMANDS.values():
        assert command.help
        assert len(command.examples) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_has_a_help_text_and_a_heading(name: str) -> None:
    """Options stand under headings, the common ones first."""
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", None) or getattr(parameter, "help_text", None), parameter
        assert isinstance(parameter, click.Argument) or getattr(parameter, "group", None)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_ends_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They are the last two lines, unbroken, so that they can be copied."""
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == "Examples:"
    assert tuple(line.strip() for line in lines[-2:]) == COMMANDS[name].examples


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_parse(name: str) -> None:
    """Each example is a valid command line of its own command."""
    for example in COMMANDS[name].examples:
        words = shlex.split(example.rpartition("|")[2])
        assert words[:2] == ["lowmem-if", name]
        COMMANDS[name].make_context(name, words[2:])


def test_common_options_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Cascade, size, seed and folder stand above everything else."""
    assert main(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    headings = ["Common options:", "Picture options:", "Machine and plan options:", "Run options:"]
    places = [text.index(heading) for heading in headings]
    assert places == sorted(places)
    assert places[0] < text.index("--cascade") < text.index("--out") < places[1]


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """By an option in one line, by a command with the libraries."""
    assert main(["--version"]) == 0
    short = capsys.readouterr().out
    assert short.startswith("lowmem-if ")
    assert main(["version"]) == 0
    assert "\ntorch " in capsys.readouterr().out


def test_shells_can_complete() -> None:
    """Click's own protocol: the words so far in the environment, the candidates on standard output."""
    environment = {"COMP_WORDS": "lowmem-if gen", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lowmem_if"],
        env=environment
        | {"_LOWMEM_IF_COMPLETE": "bash_complete", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["plain,generate"]
