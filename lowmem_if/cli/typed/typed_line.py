"""The words of a command as the shell passed them on, and how to write them for a shell again."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import click

_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_EXPANDED = re.compile(r'["$`\\!]')
_END = "--"
"""Ends the options: words after it are prompts as they are, which nothing here doubts."""

PROMPTS = "prompts"


@dataclass(frozen=True, slots=True)
class TypedLine:
    """One command with its words.

    Attributes:
        command: what knows its options and arguments.
        group: the commands of the program, by name.
        program: what stands before the command's name.
        words: the words after the command's name, without quotes.
    """

    command: click.Command
    group: click.Group
    program: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        """The line as text that a shell reads as these words."""
        return " ".join((self.program, self.command.name or "", *map(quoted, self.words)))

    @property
    def length(self) -> int:
        """How many words stand before `--`."""
        return self.words.index(_END) if _END in self.words else len(self.words)

    @property
    def options(self) -> dict[str, bool]:
        """Name of an option, like `--size` -> whether a value follows it."""
        found = {"--help": False}
        for each in self.command.params:
            if isinstance(each, click.Option):
                found |= dict.fromkeys((*each.opts, *each.secondary_opts), not each.is_flag)
        return found

    @property
    def values(self) -> frozenset[int]:
        """Indexes of the words that are values of options."""
        return frozenset(index for index, role in enumerate(self._roles()) if role == "value")

    @property
    def arguments(self) -> dict[int, str]:
        """Index of a word that is neither an option nor a value -> the name of its argument."""
        own = [each for each in self.command.params if isinstance(each, click.Argument)]
        given = [index for index, role in enumerate(self._roles()) if role == "argument"]
        names = [each.name or "" for each in own]
        if own and own[-1].nargs < 0:
            names += names[-1:] * (len(given) - len(names))
        return dict(zip(given, names, strict=False))

    @property
    def prompts(self) -> dict[int, str]:
        """Index of a prompt -> the prompt."""
        named = self.arguments.items()
        return {index: self.words[index] for index, name in named if name == PROMPTS}

    @property
    def seeds_each_prompt(self) -> bool:
        """Whether several seeds were given with commas, as for so many prompts."""
        pairs = zip(self.words, (*self.words[1:], ""), strict=True)
        given = [value for word, value in pairs if word == "--seed"]
        given += [word for word in self.words if word.startswith("--seed=")]
        return any("," in seeds for seeds in given)

    def with_words(self, begin: int, end: int, *words: str) -> TypedLine:
        """The line with other words in place of those from `begin` up to `end`."""
        return replace(self, words=(*self.words[:begin], *words, *self.words[end:]))

    def of_command(self, name: str) -> TypedLine:
        """The line as one of another command, without the options that this one does not have."""
        line = replace(self, command=self.group.commands[name])
        roles, kept, dropped = self._roles(), [], False
        for word, role in zip(self.words, (*roles, *["end"] * len(self.words)), strict=False):
            if role != "value":
                dropped = role == "option" and word.partition("=")[0] not in line.options
            kept += [] if dropped else [word]
        return replace(line, words=tuple(kept))

    def _roles(self) -> tuple[str, ...]:
        """For each word before `--`: `option`, `value` of an option, or `argument`."""

        def roles() -> Iterator[str]:
            options, follows = self.options, False
            for word in self.words[: self.length]:
                is_option = not follows and (word.startswith("--") or word in options)
                yield "value" if follows else "option" if is_option else "argument"
                follows = is_option and options.get(word, False)

        return tuple(roles())


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with a line, and what was meant.

    Attributes:
        meant: the lines that were meant, which run one after another; none if they cannot be known.
        more: what these lines do not do, in words.
    """

    what: str
    meant: tuple[TypedLine, ...] = ()
    more: str = ""


Kind = Callable[[TypedLine], Mistake | None]
"""Finds one kind of mistakes; None: there is none in this line."""


def quoted(word: str) -> str:
    """A word as a shell reads it: in double quotes, which every shell has, where that is possible."""
    if _PLAIN.fullmatch(word):
        return word
    if sys.platform == "win32":
        return subprocess.list2cmdline([word])
    return shlex.quote(word) if _EXPANDED.search(word) else f'"{word}"'
