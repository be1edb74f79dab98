"""Messages that a document quotes, against the texts in the package's source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[2] / "lowmem_if"
_QUOTED = re.compile(r"^### (?P<message>.+)$", re.MULTILINE)
_HOLE = "\0"


def unknown_messages(text: str) -> Iterator[str]:
    """Every third-level heading that is no message of the package; `...` stands for what varies."""
    for match in _QUOTED.finditer(text):
        message = match["message"].replace("\\", "")
        parts = [" ".join(part.split()) for part in message.split("...")]
        pattern = re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL)
        if not any(pattern.search(template) for template in _templates()):
            yield message


@cache
def _templates() -> tuple[str, ...]:
    """All texts in the source, with a mark where a value is filled in."""
    found: list[str] = []
    for file in _PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(_piece(value) for value in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def _piece(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else _HOLE
