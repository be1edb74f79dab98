"""What a user should know about a request before it runs."""

from __future__ import annotations

from collections.abc import Iterator

from lowmem_if.request.request import Request
from lowmem_if.request.texts.foreign_syntax import syntax_notices


def request_notices(request: Request) -> Iterator[str]:
    """Notices about the texts of a request: those that other programs would read in another way."""
    yield from syntax_notices(
        text
        for spec in request.images
        for text in (spec.prompt, spec.style_prompt, spec.negative_prompt)
    )
