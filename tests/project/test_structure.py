"""How package and tests are divided into files: what one finds by names alone."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lowmem_if"
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


# --- the package --------------------------------------------------------------------------------

MOST_MODULES, MOST_LINES = 13, 300


def modules() -> list[Path]:
    """The package's modules, relative to it, without what every folder has."""
    files = (file.relative_to(PACKAGE) for file in sorted(PACKAGE.rglob("*.py")))
    return [file for file in files if file.name not in ("__init__.py", "__main__.py")]


def public_classes(file: Path) -> list[str]:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    names = (node.name for node in body if isinstance(node, ast.ClassDef))
    return [name for name in names if not name.startswith("_")]


def twice(names: Iterable[str]) -> list[str]:
    """The names that are there more than once."""
    return sorted(name for name, n in Counter(names).items() if n > 1)


def test_no_folder_holds_more_than_thirteen_modules() -> None:
    """What one cannot take in at a glance is divided."""
    full = {
        str(name) for name, n in Counter(f.parent for f in modules()).items() if n > MOST_MODULES
    }
    assert not full


def test_no_module_is_longer_than_three_hundred_lines() -> None:
    """What does not fit has more than one job."""
    lengths = {
        str(file): len((PACKAGE / file).read_text("utf-8").splitlines()) for file in modules()
    }
    assert not {file for file, lines in lengths.items() if lines > MOST_LINES}


def test_no_two_modules_have_one_name() -> None:
    """A name leads to one file."""
    assert not twice(file.stem for file in modules())


def test_no_two_public_classes_have_one_name() -> None:
    """A name in a message, a signature or a test leads to one class."""
    names = (name for file in modules() for name in public_classes(PACKAGE / file))
    assert not twice(names)


# --- one record of facts about each component ------------------------------------------------------

MOST_COMPARISONS = 14
ASKS_BY_NAME = ("cascade", "stages")
"""The packages that define the components; all others ask `catalog.facts` what a component does."""


def names_a_component(node: ast.expr) -> bool:
    """Whether an expression is, or lists, the name of a component or of a network's folder."""
    from lowmem_if.cascade import catalog

    folders = (name for facts in catalog.COMPONENT.values() for name in facts.networks)
    values = {*catalog.COMPONENTS, *folders}
    constants = {name for name in vars(catalog) if vars(catalog)[name] in catalog.COMPONENTS}
    return any(
        (isinstance(part, ast.Constant) and part.value in values)
        or (isinstance(part, ast.Name) and part.id in constants)
        or (isinstance(part, ast.Attribute) and part.attr in constants)
        for part in ast.walk(node)
    )


def test_few_modules_compare_the_names_of_components() -> None:
    """A component has facts in one record; behaviour by name would be in as many places as there are."""
    found = [
        f"{file}:{node.lineno}: {ast.unparse(node)}"
        for file in modules()
        if file.parts[0] not in ASKS_BY_NAME
        for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        and any(map(names_a_component, (node.left, *node.comparators)))
    ]
    assert 0 < len(found) <= MOST_COMPARISONS, "\n".join(found)
