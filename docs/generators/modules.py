"""One line for each module of the package: the first sentence of its docstring."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).parents[2] / "lowmem_if"
_FROM_THE_TOP = (
    "cli", "report", "simulate", "api", "engine", "calibrate", "stages", "weights", "planning",
    "request", "hardware", "cascade", "system", "",
)  # fmt: skip
"""The packages in the order of the import contract; "" stands for the modules of the package itself."""


def modules() -> str:
    """A section for each package, in the order of the floors; unknown packages stand last."""
    found = {path.parent.name for path in _PACKAGE.glob("*/__init__.py")}
    order = [name for name in _FROM_THE_TOP if name == "" or name in found]
    order += sorted(found - set(order))
    return "\n\n".join(_section(name) for name in order)


def unknown_files(text: str) -> Iterator[str]:
    """Every file or folder that a Markdown text names, outside its blocks, and that is not there.

    Names are between backticks, from the package or the repository; those with capitals are examples.
    """
    by_hand = re.sub(r"<!-- begin .*?<!-- end", "", text, flags=re.DOTALL)
    for name in re.findall(r"`([a-z_]+/[a-z0-9_./-]*)`", by_hand):
        if not any((place / name).exists() for place in (_PACKAGE, _PACKAGE.parent)):
            yield name


def _section(name: str) -> str:
    folder = _PACKAGE / name
    files = sorted(folder.rglob("*.py") if name else folder.glob("*.py"))
    rows = [
        f"| `{file.relative_to(folder)}` | {_first_sentence(file)} |"
        for file in files
        if file.name != "__init__.py"
    ]
    about = f"{_first_sentence(folder / '__init__.py')}\n\n" if name else ""
    title = f"`lowmem_if/{name}/`" if name else "`lowmem_if/`"
    return f"### {title}\n\n{about}| module | what it does |\n|---|---|\n" + "\n".join(rows)


def _first_sentence(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.;])\s", paragraph)[0].removesuffix(";").removesuffix(".") + "."
    return sentence.replace("|", "\\|").replace("<", "&lt;")
