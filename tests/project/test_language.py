"""The language of package and documents: plain English, in the words of the field."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = re.compile(r"\b(anew|beside|whoever|somebody|nobody|told)\b", re.IGNORECASE)
BEGINNING = re.compile(r"\s*Of\b")


def sentences(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each text in a file: a document's lines; a module's docstrings and messages."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        yield from enumerate(text.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def faults(file: Path) -> list[str]:
    """What a reader would stumble over, with line numbers."""
    found = []
    for line, text in sentences(file):
        found += [f"{line}: {word[0]}" for word in WORDS.finditer(text)]
        if file.suffix == ".py" and BEGINNING.match(text):
            found.append(f"{line}: begins with 'Of'")
    return found


def files() -> list[Path]:
    """Package and documents, but for the log, which is history."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    modules = sorted((ROOT / "lowmem_if").rglob("*.py"))
    log = {ROOT / "docs" / "log.md", *(ROOT / "docs" / "log").glob("*")}
    return [file for file in [*documents, *modules] if file not in log]


@pytest.mark.parametrize("file", [str(file.relative_to(ROOT)) for file in files()])
def test_docstrings_messages_and_documents_are_in_plain_english(file: str) -> None:
    """No docstring begins with "Of", and none of the old words is left."""
    assert not faults(ROOT / file)
