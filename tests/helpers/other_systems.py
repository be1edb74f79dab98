"""Other systems' ways, by injection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

On = Callable[[str, ModuleType], None]
"""Lets one module take the way of another system: `on("win32", paths)`; the fixture is `on`."""


def linux(
    root: Path, *, version: str = "Linux version 6.8.0", signs: tuple[str, ...] = ("dev/nvidiactl",)
) -> Path:
    for sign in (*signs, "proc/version"):
        (root / sign).parent.mkdir(parents=True, exist_ok=True)
        (root / sign).touch()
    (root / "proc/version").write_text(version)
    return root
