"""Refuse a line that looks like a mistake, with the line that was meant, before anything is planned.

Words after `--`, the rows of files and prompts in Python are never doubted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from lowmem_if.cli.output import note
from lowmem_if.cli.typed.misplaced_names import cascade_or_profile, file_names
from lowmem_if.cli.typed.misread_signs import dashes, option_inside, typographic_quotes
from lowmem_if.cli.typed.typed_line import Kind, Mistake, TypedLine
from lowmem_if.errors import RequestError

KINDS: tuple[Kind, ...] = (
    typographic_quotes, dashes, option_inside, cascade_or_profile, file_names,
)  # fmt: skip
"""All kinds of mistakes, in the order in which they are looked for."""

_MOST = 20
"""Most corrections of one line."""

_FREE = ("plan",)
"""Commands that draw nothing: they give a notice and never ask."""


def refuse_mistakes(context: click.Context, words: Sequence[str]) -> None:
    """Check the words of one command before they are parsed.

    Raises:
        RequestError: they look like a mistake; the text contains the corrected line.
    """
    line = _line(context, words)
    if line and (mistake := _first(line)):
        raise RequestError(_message(mistake))


def confirm_single_words(context: click.Context, words: Sequence[str]) -> None:
    """`generate a fox in the snow`: ask on a terminal whether so many prompts are meant; else say it.

    Raises:
        RequestError: they are not; the text contains the corrected line.
    """
    line = _line(context, words)
    if line is None or not _are_single_words(line) or line.seeds_each_prompt:
        return
    what = f"{len(line.prompts)} prompts, each of one word"
    one = f"for one prompt, type {_joined(line)}"
    if line.command.name in _FREE or not (sys.stdin.isatty() and sys.stderr.isatty()):
        note(f"{what}; {one}")
        return
    if not click.confirm(f"{what}: continue?", default=False, err=True):
        raise RequestError(f"{what}: {one}")


def _line(context: click.Context, words: Sequence[str]) -> TypedLine | None:
    """The line of a command of the program; None while a shell completes it."""
    parent = context.parent
    if context.resilient_parsing or parent is None or not isinstance(parent.command, click.Group):
        return None
    return TypedLine(context.command, parent.command, parent.command_path, tuple(words))


def _message(mistake: Mistake) -> str:
    """What is wrong, and the lines that were meant, without any other mistake, joined for a shell."""
    lines, more = mistake.meant, mistake.more
    for _ in range(_MOST):
        others = [(line, _first(line)) for line in lines]
        if not any(other for _, other in others):
            break
        more = next((other.more for _, other in others if other and other.more), more)
        if any(other and not other.meant for _, other in others):
            return mistake.what
        lines = tuple(
            meant for line, other in others for meant in (other.meant if other else (line,))
        )
    joined = " && ".join(str(_joined(line)) for line in lines)
    return f"{mistake.what}{more}" + (f": type {joined}" if joined else "")


def _first(line: TypedLine) -> Mistake | None:
    return next(filter(None, (kind(line) for kind in KINDS)), None)


def _are_single_words(line: TypedLine) -> bool:
    prompts = line.prompts.values()
    return len(prompts) > 1 and all(len(prompt.split()) == 1 for prompt in prompts)


def _joined(line: TypedLine) -> TypedLine:
    """The line with its prompts as one, if each is a single word."""
    if not _are_single_words(line):
        return line
    first, *others = line.prompts
    words = dict(enumerate(line.words)) | {first: " ".join(line.prompts.values())}
    left = (word for index, word in words.items() if index not in others)
    return line.with_words(0, len(line.words), *left)
