"""Sizes and durations as people write them. In this project GB is 1e9 bytes and GiB is 2**30."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from lowmem_if.errors import RequestError

GB = 10**9
GIB = 2**30
_MAX_BYTES = 2**63

_FACTORS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": GB, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": GIB, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


_FEW = 1024
"""A number below this without a unit is meant in GB: no memory has so few bytes."""


def parse_bytes(text: str) -> int:
    """The bytes of `8GB`, `7.5GiB` or a plain number: below 1024 in GB, else in bytes; above zero."""
    match = _SIZE.fullmatch(text)
    unit = "gb" if is_bare(text) else match.group(2).lower() if match else ""
    factor = _FACTORS.get(unit) if match else None
    size = float(match.group(1)) * factor if match and factor else 0
    if not 1 <= size < _MAX_BYTES:
        raise RequestError(f"{text!r} is not a memory size: write 8GB, 7.5GiB or a number of bytes")
    return int(size)


def is_bare(text: str) -> bool:
    """Whether a memory size has no unit and is read in GB."""
    match = _SIZE.fullmatch(text)
    return bool(match and not match.group(2) and 0 < float(match.group(1)) < _FEW)


def format_bytes(size: int) -> str:
    """`8.6 GB`, `14.2 MB` or `812 B`, for people."""
    for unit, factor in (("GB", GB), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def counted(number: int, thing: str) -> str:
    """`1 picture` or `3 pictures`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def shorten(text: str, length: int) -> str:
    """The beginning of a text, for a message about it."""
    return text if len(text) <= length else text[: length - 3] + "..."


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`: did you mean 'x'?` for the name that is most similar; empty if none is similar."""
    near = difflib.get_close_matches(name, sorted(names), n=1)
    return f": did you mean {near[0]!r}?" if near else ""


def unknown_name(what: str, name: object, known: Iterable[str]) -> RequestError:
    """The error for a name that is not among those known: lists them, and names the most similar."""
    known = tuple(known)
    near = did_you_mean(name.lower(), known) if isinstance(name, str) else ""
    return RequestError(f"unknown {what} {name!r}: use one of {', '.join(known)}{near}")


def format_seconds(seconds: float) -> str:
    """`3 min 4 s` or `0.8 s`, for people."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds:.1f} s"
