"""Signs that no shell reads as they were meant: typographic quotes, dashes, spaces that do not divide.

Word processors, web pages and chats turn `--` into a dash and `"` into typographic quotes, which no
shell reads. What follows would be drawn as prompts of its own, each for minutes or hours.
"""

from __future__ import annotations

import difflib
import re

from lowmem_if.cli.typed.typed_line import Mistake, TypedLine

_DASHES = "-\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{EM DASH}\N{HORIZONTAL BAR}" \
    "\N{MINUS SIGN}\N{SMALL EM DASH}\N{SMALL HYPHEN-MINUS}\N{FULLWIDTH HYPHEN-MINUS}"  # fmt: skip
_DASHED = re.compile(rf"([{_DASHES}]+)([^\W\d_][{_DASHES}\w]*)(.*)", re.DOTALL)
_INSIDE = re.compile(rf"\s([{_DASHES}]{{2,}}|[{_DASHES[1:]}])([A-Za-z][\w-]*)(?=[\s=]|$)")
_DOUBLE = "“”„‟«»「」『』\N{FULLWIDTH QUOTATION MARK}"
_SINGLE = "'`\N{LEFT SINGLE QUOTATION MARK}" \
    "\N{RIGHT SINGLE QUOTATION MARK}\N{SINGLE LOW-9 QUOTATION MARK}" \
    "\N{SINGLE HIGH-REVERSED-9 QUOTATION MARK}\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}" \
    "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}\N{FULLWIDTH APOSTROPHE}"  # fmt: skip
_QUOTE_AFTER_NAME = re.compile(rf"(--[\w-]+=)?[{_DOUBLE}{_SINGLE}].*", re.DOTALL)
_SIMILAR = 0.75
"""How similar a dashed word must be to an option's name to be read as this option."""


def typographic_quotes(line: TypedLine) -> Mistake | None:
    """`“a`, `fox”`: a text in quotes that the shell did not read as quotes."""
    for index, word in enumerate(line.words[: line.length]):
        name = match[1] or "" if (match := _QUOTE_AFTER_NAME.fullmatch(word)) else ""
        end = _quoted_until(line, index, len(name)) if match else None
        if end is None:
            continue
        text = " ".join(line.words[index:end])[len(name) :].strip(_DOUBLE + _SINGLE + " ")
        if text:
            return Mistake(
                f"{word!r} begins with a quotation mark that the shell does not read as one",
                (line.with_words(index, end, name + text),),
            )
    return _closing_quote(line)


def _quoted_until(line: TypedLine, begin: int, skipped: int) -> int | None:
    """The index after the words of a quoted text; None if the quotes belong to the text."""
    first = line.words[begin][skipped:]
    marks = _DOUBLE if first[0] in _DOUBLE else _SINGLE
    if len(first) > 1 and any(mark in first[1:] for mark in marks):
        whole = first[-1] in marks and not any(mark in first[1:-1] for mark in marks)
        return begin + 1 if whole else None
    if " " in first and marks == _SINGLE:
        return None  # an apostrophe: 'tis the season
    depth = 1
    for end in range(begin + 1, line.length):
        word = line.words[end]
        if word.startswith("--"):
            break
        depth += (word[:1] != "" and word[0] in marks) - (word[:1] != "" and word[-1] in marks)
        if not depth:
            return end + 1
    return begin + 1 if marks == _DOUBLE else None


def _closing_quote(line: TypedLine) -> Mistake | None:
    """`snow”` without a beginning."""
    for index, word in line.prompts.items():
        if word[-1:] and word[-1] in _DOUBLE and not any(mark in word[:-1] for mark in _DOUBLE):
            text = word.rstrip(_DOUBLE)
            if not text.strip() and len(line.prompts) == 1:
                continue  # nothing would be left
            return Mistake(
                f"{word!r} ends with a quotation mark that the shell does not read as one",
                (line.with_words(index, index + 1, *([text] if text.strip() else [])),),
            )
    return None


def dashes(line: TypedLine) -> Mistake | None:
    """`—size`, `-size`: an option whose two hyphens were turned into something else."""
    values = line.values
    for index, word in enumerate(line.words[: line.length]):
        match = None if index in values else _DASHED.fullmatch(word)
        if match is None or word in line.options:
            continue
        dash, name, rest = match.groups()
        option = _option(line, name, rest)
        is_text = option is None and " " in word.strip()
        if set(dash) == {"-"} and not is_text and (option is None or dash == "--"):
            continue  # click knows what to say
        kind = "hyphens" if dash == "--" else "one hyphen" if dash == "-" else "a dash"
        what = f"{word!r} begins with {kind}, " + ("as options do" if is_text else "not with --")
        if option and not rest and line.options[option] and index + 1 >= line.length:
            return Mistake(f"{what}, and no value follows it")
        meant = [option + rest] if option else [name + rest]
        return Mistake(what, (line.with_words(index, index + 1, *meant),))
    return None


def _option(line: TypedLine, name: str, rest: str) -> str | None:
    """The option with this name, or a similar one; None if the rest is not that of an option."""
    if rest and not rest.startswith("="):
        return None
    given = "--" + re.sub(rf"[{_DASHES}_]", "-", name.lower())
    near = difflib.get_close_matches(given, line.options, n=1, cutoff=_SIMILAR)
    return near[0] if near else None


def option_inside(line: TypedLine) -> Mistake | None:
    """`"a fox --size 64"`: an option within the quotes, or after a space that no shell divides at."""
    for index, prompt in line.prompts.items():
        for match in _INSIDE.finditer(prompt):
            option, rest = f"--{match[2]}", prompt[match.end() :]
            if option not in line.options or not prompt[: match.start()].strip():
                continue
            if line.options[option] and not rest.strip(" ="):
                continue
            words = (prompt[: match.start()].rstrip(), *(option + rest).split())
            return Mistake(
                f"{option} stands inside the prompt {prompt!r}",
                (line.with_words(index, index + 1, *words),),
            )
    return None
