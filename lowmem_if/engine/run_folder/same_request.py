"""Whether two plans are for the same request, and what differs if they are not."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from lowmem_if.planning.plan import Plan
from lowmem_if.units import shorten


def request_difference(old: Plan, new: Plan) -> str:
    """What differs between the requests, pins or preferences of two plans; empty if nothing does."""
    for name in ("request", "pins", "asked"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            return _first_difference(before, after)
    return ""


def _first_difference(old: Any, new: Any, name: str = "") -> str:
    """The first difference, down to one value of one image."""
    if is_dataclass(old) and type(old) is type(new):
        names = (field.name for field in fields(old) if field.compare)
        name = next(name for name in names if getattr(old, name) != getattr(new, name))
        return _first_difference(getattr(old, name), getattr(new, name), name)
    if name == "images" and len(old) == len(new):
        return _first_difference(
            *next(pair for pair in zip(old, new, strict=True) if pair[0] != pair[1])
        )
    if name == "images":
        return f"{len(old)} instead of {len(new)} images"
    # A list may be long, and an error is one line.
    before, after = (
        shorten(repr(value), 200) if name else value or "nothing" for value in (old, new)
    )
    return f"{name} {before} instead of {after}".strip()
