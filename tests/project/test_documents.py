"""The checks of documents: `docs/blocks.py` and its generators."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def found_in(generator: str, check: str, text: str) -> list[str]:
    """What a check of a generator reports; in another process, because generators set variables."""
    code = f"import sys; from generators.{generator} import {check} as check"
    code += "; print(*check(sys.argv[1]), sep=chr(10))"
    run = subprocess.run(
        [sys.executable, "-c", code, text],
        cwd=DOCS,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(DOCS.parent)},
    )
    return [line for line in run.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('    lowmem-if plan "a --strange prompt" --cascade if-xl', []),
        ("    lowmem-if plan x --cascad if-xl", ["plan has no option --cascad"]),
        ("Run `lowmem-if draw x` now.", ["no such command"]),
        ("    lowmem-if vary a.png x \\\n        --styl y", ["vary has no option --styl"]),
        ("`lowmem-if COMMAND --help`", []),
    ],
    ids=["right", "option", "command", "continued line", "placeholder"],
)
def test_documented_commands_and_options_must_exist(text: str, found: list[str]) -> None:
    """A command line with a word that the parser lacks is reported."""
    problems = found_in("command_line", "unknown_words", text)
    assert [problem.rpartition(": ")[2] for problem in problems] == found


def test_quoted_messages_must_be_in_the_package() -> None:
    """A heading that quotes a message is found with its varying parts left out, or reported."""
    text = "### does not fit: it needs ... GB of ... and\n### nobody ever says this\n"
    assert found_in("messages", "unknown_messages", text) == ["nobody ever says this"]


def test_named_files_must_exist() -> None:
    """A file that a document names and that is not there is reported."""
    text = "`cli/main.py`, `docs/blocks.py`, `profiles/NAME.toml`, `planning/nothing.py`"
    assert found_in("modules", "unknown_files", text) == ["planning/nothing.py"]
