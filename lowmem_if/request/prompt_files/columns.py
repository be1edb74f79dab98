"""Names of columns and keys in prompt lists of others, and the names that they have here.

PartiPrompts has `Prompt, Category, Challenge, Note`; DrawBench has `Prompts, Category`; caption sets of
Hugging Face have `text` and `file_name`; spreadsheets write `Negative Prompt`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SAME = {
    "prompts": "prompt", "text": "prompt", "caption": "prompt", "positive_prompt": "prompt",
    "negative": "negative_prompt", "negativeprompt": "negative_prompt", "seeds": "seed",
    "style": "style_prompt",
}  # fmt: skip
_WITHOUT_USE = ("category", "challenge", "note", "notes", "file_name", "id", "index", "source")
"""What lists say about their prompts, which draws nothing."""


def own_name(name: str) -> str | None:
    """The name that a column has here, None if nothing is drawn from it; an unknown one as it is."""
    normal = re.sub(r"[\s-]+", "_", name.strip().lower())
    if normal in _WITHOUT_USE:
        return None
    return _SAME.get(normal, normal)


def renamed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the names that it has here; a name that is known here wins over another form."""
    values: dict[str, Any] = {}
    for name, value in record.items():
        own = own_name(name) if isinstance(name, str) else name
        if own is not None and (own == name or own not in values):
            values[own] = value
    return values


def without_use(names: Mapping[str, Any]) -> tuple[str, ...]:
    """The names from which nothing is drawn."""
    return tuple(name for name in names if isinstance(name, str) and own_name(name) is None)
