"""What a user should know about a request before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lowmem_if.request.request import Request
from lowmem_if.request.texts.foreign_syntax import syntax_notices
from lowmem_if.units import is_bare


def request_notices(request: Request) -> Iterator[str]:
    """Notices about the texts of a request: those that other programs would read in another way."""
    yield from syntax_notices(
        text
        for spec in request.images
        for text in (spec.prompt, spec.style_prompt, spec.negative_prompt)
    )


def budget_notices(options: Mapping[str, Any]) -> Iterator[str]:
    """Notices about the budgets among the options of a call: those whose unit was left out."""
    for name in ("ram", "vram"):
        if (given := options.get(name)) is not None and is_bare(str(given)):
            yield f"{name} {given} is read as {given} GB: write {given}GB"
