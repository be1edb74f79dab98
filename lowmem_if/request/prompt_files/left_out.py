"""What a file of prompts says that nothing is drawn from, gathered into few notices."""

from __future__ import annotations

from collections.abc import Iterable

_LISTED = 5
"""How many line numbers a notice lists."""

COMMENT = "a comment"


def is_comment(line: str) -> bool:
    """Whether a line is a comment: `# ...` or `// ...`; `#3` and `//x` are text."""
    return line in ("#", "//") or line.startswith(("# ", "#\t", "##", "// "))


def left_column(name: str) -> str:
    """A column or key from which nothing is drawn, in words."""
    return f"{name!r}, from which nothing is drawn"


class LeftOut:
    """What was left out, and the lines where it was."""

    def __init__(self) -> None:
        self._lines: dict[str, list[int]] = {}

    def add(self, number: int, *what: str) -> None:
        """Note what a line says in vain."""
        for each in what:
            self._lines.setdefault(each, []).append(number)

    def notices(self) -> Iterable[str]:
        """A notice for each thing that was left out, with its lines."""
        for what, lines in self._lines.items():
            listed = ", ".join(map(str, lines[:_LISTED])) + (", ..." if lines[_LISTED:] else "")
            yield f"left out in {'lines' if lines[1:] else 'line'} {listed}: {what}"
