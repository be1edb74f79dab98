"""The public names of the package, for Sphinx to describe from their docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import lowmem_if


def python_api() -> str:
    """A section each for functions, classes and errors."""
    sections = [
        f"## {title}\n\n```{{eval-rst}}\n{_directives(kind)}\n```"
        for title, kind in (
            ("Functions", "function"),
            ("Classes", "class"),
            ("Errors", "exception"),
        )
    ]
    return "\n\n".join(sections)


def _directives(kind: str) -> str:
    return "\n".join(f".. auto{kind}:: lowmem_if.{name}{_members(kind)}" for name in _names(kind))


def _members(kind: str) -> str:
    return "\n   :members:" if kind == "class" else ""


def _names(kind: str) -> Iterator[str]:
    for name in lowmem_if.__all__:
        if kind == _kind(getattr(lowmem_if, name)):
            yield name


def _kind(thing: object) -> str:
    if not inspect.isclass(thing):
        return "function"
    return "exception" if issubclass(thing, Exception) else "class"
