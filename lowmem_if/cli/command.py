"""How commands are declared and how their help looks: options in groups, examples at the end.

Click was chosen over argparse because options are decorators, which several commands share, and
because it has shell completion; and over typer because there options cannot be shared without
generating signatures.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import click

from lowmem_if.cli.typed.check_line import confirm_single_words, refuse_mistakes

F = TypeVar("F", bound=Callable[..., Any])


class Decorator(Protocol):
    """Adds a parameter to a function that will be a command."""

    def __call__(self, function: F, /) -> F: ...


_CONTEXT = {"show_default": True, "max_content_width": 100}


class _Option(click.Option):
    """An option with the heading under which the help shows it."""

    def __init__(self, *given: Any, group: str, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.group = group


class _Argument(click.Argument):
    """An argument with a help text."""

    def __init__(self, *given: Any, help: str, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.help_text = help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.make_metavar(ctx), self.help_text


class CommandWithExamples(click.Command):
    """A command whose help has arguments, options in groups, and examples."""

    def __init__(
        self, *given: Any, section: str, examples: tuple[str, ...], **settings: Any
    ) -> None:
        super().__init__(*given, **({"context_settings": _CONTEXT} | settings))
        self.section, self.examples = section, examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = tuple(args)
        refuse_mistakes(ctx, words)
        left = super().parse_args(ctx, args)
        confirm_single_words(ctx, words)
        return left

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                plain = "Arguments" if isinstance(parameter, click.Argument) else "Other options"
                groups.setdefault(getattr(parameter, "group", plain), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


class CommandGroup(click.Group):
    """The commands in sections; an unknown one is answered with the nearest."""

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, each in self.commands.items():
            section = getattr(each, "section", "Other")
            sections.setdefault(section, []).append((name, each.get_short_help_str(limit=90)))
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = ctx.resilient_parsing or args[0] in self.commands or args[0].startswith("-")
        if not known:
            begun = [name for name in self.commands if name.startswith(args[0])]
            near = begun or difflib.get_close_matches(args[0], self.commands, n=1)
            ctx.fail(
                f"No such command {args[0]!r}" + (f": did you mean {near[0]!r}?" if near else ".")
            )
        return super().resolve_command(ctx, args)


def command(
    name: str, *examples: str, section: str
) -> Callable[[Callable[..., None]], CommandWithExamples]:
    """Declare a command; its help text is the function's docstring."""
    return click.command(name, cls=CommandWithExamples, section=section, examples=examples)


def option(*names: str, group: str, **settings: Any) -> Decorator:
    """Declare an option that the help shows under the heading `group`."""
    return click.option(*names, cls=_Option, group=group, **settings)


def argument(name: str, **settings: Any) -> Decorator:
    """Declare an argument with a help text."""
    return click.argument(name, cls=_Argument, **settings)


def together(*decorators: Decorator) -> Decorator:
    """Several options as one decorator; the help shows them in this order."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate
