"""Parse seeds: `7`, one per prompt `7,8`, or a series for every prompt `1..16` or `1..4,9`."""

from __future__ import annotations

from lowmem_if.errors import RequestError

MAX_SEED = 2**63 - 1
"""The largest seed that torch's generator accepts."""

MOST = 100_000
"""Most images of one request."""

_RANGE = ".."


def parse_seeds(text: str, prompts: int) -> tuple[int, ...]:
    """The seeds in a text for `prompts` prompts, as `make_request` accepts them.

    Raises:
        RequestError: the text is neither numbers nor series, or names too many.
    """
    seeds = parse_numbers("seed", text)
    return seeds * prompts if _RANGE in text else seeds


def parse_numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers and series, separated by commas: `3,7` or `1..4,9`.

    Raises:
        RequestError: the text is neither numbers nor series, or names too many.
    """
    series = [_series(name, part, text) for part in text.split(",")]
    count = sum(map(len, series))
    if count > MOST:
        raise _too_many(name, count)
    return tuple(number for part in series for number in part)


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
    first, dots, last = part.partition(_RANGE)
    try:
        begin = int(first)
        end = int(last) if dots else begin
    except ValueError:
        raise RequestError(
            f"{name} {text!r} is not a whole number, a list like 3,7, or a series like 1..16"
        ) from None
    if dots and not 0 <= begin <= end <= MAX_SEED:
        raise RequestError(
            f"{name} {part.strip()!r} is not a rising series between 0 and {MAX_SEED}"
        )
    return range(begin, end + 1)


def _too_many(name: str, count: int) -> RequestError:
    return RequestError(f"{count} {name}s are too many: one run draws at most {MOST} images")
