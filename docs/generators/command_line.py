"""The commands and their options, as the parser itself describes them.

Only `_summaries` knows that click parses the command line. Everything else reads `--help`.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from itertools import takewhile

# `--help` is plain text of a known width then.
os.environ.update(COLUMNS="88", NO_COLOR="1", TERM="dumb")

from lowmem_if.cli import main as cli


def _summaries() -> dict[str, str]:
    """Command name -> the first line of its description, in the parser's order."""
    return {
        name: (command.help or "").splitlines()[0] for name, command in cli.app.commands.items()
    }


@cache
def help_of(*arguments: str) -> str:
    """What `lowmem-if ARGUMENTS --help` prints, without the name of the program that printed it."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        cli.main([*arguments, "--help"])
    lines = [line.rstrip() for line in printed.getvalue().strip().splitlines()]
    return re.sub(r"(?i)^usage: .*?(?= )", "Usage: lowmem-if", "\n".join(lines))


def commands() -> str:
    """A table with one line for each command."""
    rows = [
        f"| [`{name}`](#{_anchor(name)}) | {summary} |" for name, summary in _summaries().items()
    ]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def command_reference() -> str:
    """The help of every command, a section each."""
    sections = [
        f"({_anchor(name)})=\n## `lowmem-if {name}`\n\n```text\n{help_of(name)}\n```"
        for name in _summaries()
    ]
    return "\n\n".join(sections)


def _anchor(command: str) -> str:
    return f"command-{command}"


def unknown_words(text: str) -> Iterator[str]:
    """Every documented command line of a Markdown text that the parser would not understand.

    Command lines are those that begin with `lowmem-if` in a code block or between backticks. Their
    command and the names of their options are checked, not the values.
    """
    for line in _command_lines(text):
        words = shlex.split(line, comments=True)[1:]
        if not words or not words[0].isalpha() or words[0].isupper():
            continue  # `lowmem-if` alone, `lowmem-if --help`, `lowmem-if COMMAND`
        if words[0] not in _summaries():
            yield f"{line}: no such command"
            continue
        known = set(re.findall(r"--[a-z][a-z-]*", help_of(words[0])))
        for word in takewhile(lambda word: word != "--", words[1:]):
            option = word.partition("=")[0]
            if option.startswith("--") and option not in known:
                yield f"{line}: {words[0]} has no option {option}"


def _command_lines(text: str) -> Iterator[str]:
    text = text.replace("\\\n", " ")
    for line in text.splitlines():
        bare = line.strip().removeprefix("!").removeprefix("$ ")
        if bare.startswith("lowmem-if ") and "`" not in bare:
            yield bare
    yield from re.findall(r"`(lowmem-if [^`\n]+)`", text)
