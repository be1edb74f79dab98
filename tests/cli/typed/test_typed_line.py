"""The words of a line, and the same line written for a shell."""

from __future__ import annotations

import shlex
import sys

import pytest

from lowmem_if.cli.main import app
from lowmem_if.cli.typed.typed_line import TypedLine, quoted


def line(text: str) -> TypedLine:
    name, *words = shlex.split(text)
    return TypedLine(app.commands[name], app, "lowmem-if", tuple(words))


@pytest.mark.parametrize(
    "word",
    [
        "fox",
        "a fox",
        "",
        "it's",
        'say "x"',
        "$HOME",
        "a`b`",
        "C:\\a b",
        "a!b",
        "x;y",
        "a\nb",
        "«a»",
    ],
)
def test_a_shell_reads_a_quoted_word_as_the_word(word: str) -> None:
    """Whatever it contains."""
    assert shlex.split(quoted(word)) == [word]


def test_windows_has_quotes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shells know no single quotes, and a backslash divides a path."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert quoted("C:\\my photos\\a.png") == '"C:\\my photos\\a.png"'
    assert quoted('say "x"') == '"say \\"x\\""'


def test_each_word_has_a_role() -> None:
    """Values of options are no prompts, nor is what stands after `--`."""
    typed = line("inpaint a.png --seed 3 m.png 'a fox' --json b --size=64 -- —c")
    assert typed.arguments == {0: "image", 3: "mask", 4: "prompts", 6: "prompts"}
    assert typed.prompts == {4: "a fox", 6: "b"}
    assert typed.values == {2}


def test_a_line_of_another_command_drops_options_that_it_lacks() -> None:
    """With their values; words after `--` remain."""
    typed = line("generate fox --aspect 3:2 --seed 3 --aspect=1:2 --json -- x")
    assert str(typed.of_command("vary")) == "lowmem-if vary fox --seed 3 --json -- x"
