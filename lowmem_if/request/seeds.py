"""Seeds as people write them: `7`, one a prompt `7,8`, a series for every prompt `1..16` or `1..4,9`."""

from __future__ import annotations

from lowmem_if.errors import RequestError

MAX_SEED = 2**63 - 1
"""What torch's generator takes."""

MOST = 100_000
"""Pictures that one request may ask for."""

_RANGE = ".."


def parse_seeds(text: str, prompts: int) -> tuple[int, ...]:
    """The seeds that a text names, for `prompts` prompts: as `Request` takes them.

    Raises:
        RequestError: it is neither numbers nor series of them, or names too many.
    """
    seeds = parse_numbers("seed", text)
    return seeds * prompts if _RANGE in text else seeds


def parse_numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas, and series of them: `3,7` or `1..4,9`.

    Raises:
        RequestError: it is something else, or names too many.
    """
    series = [_series(name, part, text) for part in text.split(",")]
    count = sum(map(len, series))
    if count > MOST:
        raise _too_many(name, count)
    return tuple(number for part in series for number in part)


def check_series(series: range) -> tuple[int, ...]:
    """The numbers of a series, if it is no longer than a request may be."""
    try:
        count = len(series)
    except OverflowError:
        count = abs(series.stop - series.start)
    if count > MOST:
        raise _too_many("seed", count)
    return tuple(series)


def _series(name: str, part: str, text: str) -> range:
    first, dots, last = part.partition(_RANGE)
    try:
        begin = int(first)
        end = int(last) if dots else begin
    except ValueError:
        raise RequestError(
            f"{name} {text!r} is not a whole number, several with commas, or a series like 1..16"
        ) from None
    if dots and not 0 <= begin <= end <= MAX_SEED:
        raise RequestError(
            f"{name} {part.strip()!r}: a series goes up, from 0 to {MAX_SEED} at most"
        )
    return range(begin, end + 1)


def _too_many(name: str, count: int) -> RequestError:
    return RequestError(f"{count} {name}s are too many: {MOST} pictures are the most in one run")
