"""How package and tests are divided into files: what one finds by names alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports, by full name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_no_test_file_imports_another() -> None:
    """What tests share is in tests/helpers, where it has a name of its own."""
    files = sorted(TESTS.rglob("*.py"))
    assert len(files) > 80
    found = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(file)
        if name.split(".")[-1].startswith("test_") or name.split(".")[0] in ("tests", "conftest")
    }
    assert not found
