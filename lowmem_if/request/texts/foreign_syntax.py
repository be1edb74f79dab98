"""Syntax of other programs in prompts, which IF reads as text: what to write instead.

The forms are those of AUTOMATIC1111's web UI and its relatives, of wildcard extensions, and of
Midjourney.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from lowmem_if.units import shorten

_LISTED = 10
"""How many prompts get a notice of their own."""

_SHOWN = 40
"""Most characters of a prompt that a notice quotes."""

_OPTIONS = {"ar": "--aspect", "aspect": "--aspect", "no": "--negative-prompt", "seed": "--seed",
            "steps": "--steps", "size": "--size", "cfg": "--guidance-scale"}  # fmt: skip
"""Options that other programs read inside a prompt -> the option of this program."""


@dataclass(frozen=True, slots=True)
class _Form:
    """One form: how it looks, and what to do about a match."""

    pattern: re.Pattern[str]
    advice: Callable[[re.Match[str]], str]


def _says(text: str) -> Callable[[re.Match[str]], str]:
    return lambda _match: text


def _lora(match: re.Match[str]) -> str:
    return f"use --lora {match['name']}.safetensors:{match['scale'] or '1'}"


def _option(match: re.Match[str]) -> str:
    option = _OPTIONS.get(match["option"])
    return f"use {option} {match['value'] or ''}".strip() if option else "no option is read here"


_FORMS = (
    _Form(re.compile(r"<(?:lora|lyco|locon):(?P<name>[^:<>]+)(?::(?P<scale>[\d.]+))?[^<>]*>"), _lora),
    _Form(re.compile(r"<(?:hypernet|embedding|wlr):[^<>]+>"), _says("there is nothing like it here")),
    _Form(
        re.compile(r"\([^()]*:\s*\d*\.?\d+\s*\)|\(\([^()]*\)\)"),
        _says("words have no weights: describe in words what matters"),
    ),
    _Form(
        re.compile(r"\[[^\[\]]*\]"),
        _says("brackets neither weaken nor replace words: leave them out"),
    ),
    _Form(re.compile(r"\bBREAK\b"), _says("a prompt is one text of at most 77 tokens")),
    _Form(
        re.compile(r"\{[^{}]*\|[^{}]*\}|__[\w/*-]+__"),
        _says("nothing is chosen: write each choice as a prompt of its own"),
    ),
    _Form(
        re.compile(r"(?:^|(?<=\s))--(?P<option>[a-z]+)(?:[ =](?P<value>[^\s-]\S*))?"), _option
    ),
)  # fmt: skip


def syntax_notices(texts: Iterable[str]) -> tuple[str, ...]:
    """A notice for each text with syntax of other programs, and one for all beyond the first ten."""
    notices = [notice for text in dict.fromkeys(texts) if (notice := _notice(text))]
    more = len(notices) - _LISTED
    return (
        *notices[:_LISTED],
        *(
            [f"{more} more prompts have syntax of other programs, which is read as text"]
            * (more > 0)
        ),
    )


def _notice(text: str) -> str:
    """What is read as text, each with advice; empty if there is nothing."""
    found = dict(_found(text))
    if not found:
        return ""
    advice = ", ".join(f"{part} ({what})" for part, what in found.items())
    return f"in {shorten(text, _SHOWN)!r} IF reads as text what other programs obey: {advice}"


def _found(text: str) -> Iterator[tuple[str, str]]:
    if text.isupper():
        return  # BREAK is a word like the others
    for form in _FORMS:
        for match in form.pattern.finditer(text):
            yield shorten(match[0], _SHOWN), form.advice(match)
