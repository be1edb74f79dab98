"""What pyproject.toml asks for is what is tested, and no more than is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TREE = Path(__file__).parents[2]
LISTS = TREE / "tests" / "environments"


def asked() -> dict[str, Requirement]:
    """The package's own requirements and those of its int8 extra, by name."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["int8"]]
    requirements = [Requirement(text) for text in texts]
    return {canonicalize_name(each.name): each for each in requirements}


def versions(name: str) -> dict[str, Version]:
    """Package -> version of a list of versions."""
    lines = (LISTS / f"{name}.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(package): Version(version) for package, version in pins}


def test_the_oldest_versions_are_tested() -> None:
    """Every lower bound is in the list of oldest versions, in the same release."""
    oldest = versions("oldest")
    for name, requirement in asked().items():
        (lower,) = [s.version for s in requirement.specifier if s.operator == ">="]
        release = Version(lower).release
        assert oldest[name].release[: len(release)] == release, name


def test_what_people_have_satisfies_the_package() -> None:
    """Every version of every environment is admitted, so installing the package replaces none."""
    published = sorted(file.stem for file in LISTS.glob("*-20*.txt"))
    assert len(published) >= 3
    for name in published:
        for package, version in versions(name).items():
            if package in asked():
                assert version in asked()[package].specifier, f"{name}: {package} {version}"


def test_no_upper_bound_is_tighter_than_a_major_version() -> None:
    """An upper bound is the next major version that is known to break something, or none."""
    for name, requirement in asked().items():
        for bound in requirement.specifier:
            assert bound.operator == ">=" or re.fullmatch(r"<\d+", str(bound)), name


def test_bitsandbytes_is_not_required() -> None:
    """Only 8-bit and 4-bit weights need it."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    assert not any("bitsandbytes" in text for text in project["dependencies"])


def test_the_tests_that_environments_run_are_there() -> None:
    """`tests/environments/check.py` names them by path, so a file that moves must move there, too."""
    source = (LISTS / "check.py").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^TESTS = \((.*?)^\)", source, flags=re.M | re.S)
    names = re.findall(r'"(.+?)"', listed)
    assert len(names) > 5
    assert [name for name in names if not (TREE / "tests" / name).is_file()] == []
