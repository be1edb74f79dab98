"""Parse seeds: `7`, one per prompt `7,8`, or a series for every prompt `1..16`, `1-16` or `1..4,9`."""

from __future__ import annotations

import re

from lowmem_if.errors import RequestError

MAX_SEED = 2**63 - 1
"""The largest seed that torch's generator accepts."""

MOST = 100_000
"""Most images of one request."""

_SERIES = re.compile(
    r"\s*(\d+)\s*(?:\.\.|-|[\N{EN DASH}\N{EM DASH}\N{HORIZONTAL ELLIPSIS}])\s*(\d+)\s*"
)
"""A series as `1..16`; a hyphen and what programs turn both into are read as well."""

RANDOM = -1
"""A seed that many programs read as: choose one."""


def parse_seeds(text: str, prompts: int) -> tuple[int, ...]:
    """The seeds in a text for `prompts` prompts, as `make_request` accepts them.

    Raises:
        RequestError: the text is neither numbers nor series, or names too many.
    """
    seeds = parse_numbers("seed", text)
    is_series = any(_SERIES.fullmatch(part) for part in text.split(","))
    return seeds * prompts if is_series else seeds


def parse_numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers and series, separated by commas: `3,7`, `1..4,9` or `1-4,9`.

    Raises:
        RequestError: the text is neither numbers nor series, or names too many.
    """
    series = [_series(name, part, text) for part in text.split(",")]
    count = sum(map(len, series))
    if count > MOST:
        raise _too_many(name, count)
    return tuple(number for part in series for number in part)


def is_drawn(seed: object) -> bool:
    """Whether a run-wide seed is left to chance: None, or -1 as in other programs."""
    return seed is None or (isinstance(seed, int) and not isinstance(seed, bool) and seed == RANDOM)


def check_series(series: range) -> tuple[int, ...]:
    """The numbers of a series.

    Raises:
        RequestError: it has more numbers than a request may have images.
    """
    try:
        count = len(series)
    except OverflowError:
        count = abs(series.stop - series.start)
    if count > MOST:
        raise _too_many("seed", count)
    return tuple(series)


def _series(name: str, part: str, text: str) -> range:
    match = _SERIES.fullmatch(part)
    try:
        begin, end = map(int, match.groups()) if match else (int(part), int(part))
    except ValueError:
        raise RequestError(
            f"{name} {text!r} is not a whole number, a list like 3,7, or a series like 1..16"
        ) from None
    if match and not 0 <= begin <= end <= MAX_SEED:
        raise RequestError(
            f"{name} {part.strip()!r} is not a rising series between 0 and {MAX_SEED}"
        )
    return range(begin, end + 1)


def _too_many(name: str, count: int) -> RequestError:
    return RequestError(f"{count} {name}s are too many: one run draws at most {MOST} images")
