"""Records of JSON files that are one value: an array, or one object over several lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from lowmem_if.errors import RequestError

_SPACE = re.compile(r"[\s,]*")
_ARRAY = re.compile(r"\[\s*([\"{\]]|$)")
_DECODER = json.JSONDecoder()


def is_one_value(text: str) -> bool:
    """Whether JSON text is an array, or an object that is not complete in its first line."""
    begun = text.lstrip()
    if _ARRAY.match(begun):
        return not _is_complete(begun.splitlines()[0]) or "\n" not in begun.strip()
    return begun.startswith("{") and not _is_complete(begun.splitlines()[0]) and _is_complete(begun)


def json_values(text: str) -> Iterator[tuple[int, Any]]:
    """The elements of an array, or the one object, each with the number of its first line.

    An error of syntax is the last element: a `RequestError` in place of a value.
    """
    position, line, counted = text.index(text.lstrip()[0]), 1, 0
    position += text[position] == "["
    while (position := _next(text, position)) < len(text) and text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield line, RequestError(f"it is not valid JSON ({error})")
            return
        yield line, value


def _next(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _is_complete(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
