"""Check single values that a user gives; each check raises a `RequestError` that names the value."""

from __future__ import annotations

import math
import operator
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.errors import RequestError
from lowmem_if.request.seeds import MAX_SEED, RANDOM, check_series

_KIND_NAMES = {str: "text", bool: "True or False"}


def as_tuple(value: Any) -> tuple[Any, ...]:
    """An iterable as a tuple, and a single value as a tuple of one."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return tuple(value)
    return (value,)


def check_kinds(values: Mapping[str, Any], kind: type) -> None:
    """Check that each value has the type `kind`; `values` maps names to values."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise RequestError(f"{name} must be {_KIND_NAMES[kind]}, not {value!r}")


def check_texts(texts: Iterable[Any]) -> None:
    """Check that prompts are strings that can be encoded as UTF-8."""
    for text in texts:
        if not isinstance(text, str):
            raise RequestError(f"a prompt must be text, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("a prompt is not valid Unicode: type it again") from None


def checked_text(value: Any) -> str:
    """A text that can be encoded as UTF-8."""
    check_texts((value,))
    text: str = value
    return text


def whole(name: str, value: Any, low: int, high: int) -> int:
    """The value as an int between `low` and `high`; integers of other libraries are accepted."""
    number = index(value)
    if number is None or not low <= number <= high:
        raise RequestError(f"{name} {value!r} is not a whole number from {low} to {high}")
    return number


def index(value: Any) -> int | None:
    """A whole number as an int; None for any other value."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def checked_size(size: Any) -> int:
    """The size as an int: 64, 256 or 1024."""
    number = index(size)
    if number not in catalog.SIZES:
        raise RequestError(f"size {size!r} is not one of 64, 256 and 1024")
    assert number is not None
    return number


def checked_seeds(given: Any, images: int, prompts: int) -> tuple[int, ...]:
    """Seeds for `prompts` prompts: one for each, or a series for each, in the prompts' order.

    None, or -1 as in other programs, draws one seed for all.
    """
    if isinstance(given, range):
        given = check_series(given) * prompts
    if given is None or as_tuple(given) == (RANDOM,):
        given = secrets.randbelow(2**31)
    seeds = as_tuple(given)
    seeds = tuple(whole("seed", seed, 0, MAX_SEED - images) for seed in seeds)
    if len(seeds) == 1:
        return seeds * prompts
    if not seeds or len(seeds) % prompts:
        raise RequestError(
            f"{len(seeds)} seeds for {prompts} prompts: give one seed, one for each prompt, "
            "or a series for all, like 1..4"
        )
    if len(seeds) > prompts and images > 1:
        raise RequestError(
            f"a series of seeds draws one image per seed: leave out images ({images}), or give one seed"
        )
    return seeds


def checked_strength(strength: Any) -> tuple[float, ...] | None:
    """Strengths of stages 1 and 2, above 0 up to 1; one number is used for both."""
    if strength is None:
        return None
    values = as_tuple(strength)
    if len(values) not in (1, 2):
        raise RequestError(
            f"{len(values)} values for strength: give one, or one for stage 1 and one for stage 2"
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise RequestError(f"strength {value!r} is not a number above 0 and up to 1")
    return float(values[0]), float(values[-1])


_BETWEEN = re.compile(r"[:xX/\N{MULTIPLICATION SIGN}]")


def checked_aspect(value: Any) -> tuple[int, int] | None:
    """Width and height without common factors, from a pair or a text like `3:2`, `3x2` or `3/2`."""
    if value is None:
        return None
    parts = _BETWEEN.split(value) if isinstance(value, str) else as_tuple(value)
    try:
        width, height = (int(p) if isinstance(p, str) else operator.index(p) for p in parts)
    except (ValueError, TypeError):
        raise RequestError(f"aspect {value!r} is not like 3:2") from None
    if not (0 < width < 10_000 and 0 < height < 10_000):
        raise RequestError(f"aspect {value!r} is not like 3:2")
    shared = math.gcd(width, height)
    return width // shared, height // shared
