"""One line for each module of the package: the first sentence of its docstring."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGE = _ROOT / "lowmem_if"


def modules() -> str:
    """A section for each package, in the order of the import contract, and for what is in none."""
    settings = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    floors = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    names = [name.strip() for floor in floors for name in floor.split("|")]
    packages = [name for name in names if (_PACKAGE / name / "__init__.py").is_file()]
    return "\n\n".join(_section(name) for name in [*packages, ""])


def unknown_files(text: str) -> Iterator[str]:
    """Every file or folder that a Markdown text names, outside its blocks, and that is not there.

    Names are between backticks, from the package or the repository; those with capitals are examples.
    """
    by_hand = re.sub(r"<!-- begin .*?<!-- end", "", text, flags=re.DOTALL)
    for name in re.findall(r"`([a-z_]+/[a-z0-9_./-]*)`", by_hand):
        if name.startswith(("build/", "runs/")):
            continue  # made by a command
        if not any((place / name).exists() for place in (_PACKAGE, _ROOT)):
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
