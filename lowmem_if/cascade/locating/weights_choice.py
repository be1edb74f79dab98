"""What a user chose to run: a cascade, and parts of it from a folder or repository of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import COMPONENTS, component_name
from lowmem_if.cascade.locating.cascade_names import is_repository_name, stage_name
from lowmem_if.cascade.locating.hub_folders import existing_folder, near_folder
from lowmem_if.errors import RequestError
from lowmem_if.units import did_you_mean

MAIN = "main"


@dataclass(frozen=True, slots=True)
class PartChoice:
    """One part of a cascade that is loaded from elsewhere, for example fine-tuned weights.

    Attributes:
        component: the component that it is for.
        source: the absolute path of a folder, or a repository of the Hub.
        revision: branch, tag or commit of the repository.
    """

    component: str
    source: str
    revision: str = MAIN

    @property
    def folder(self) -> Path | None:
        """The folder, whether it exists or not; None for a repository."""
        path = Path(self.source)
        return path if path.is_absolute() else None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision != MAIN else ""
        return f"{self.component}={self.source}{at}"


@dataclass(frozen=True, slots=True)
class WeightsChoice:
    """The weights of a run.

    Attributes:
        cascade: a name in the catalogue, or the absolute path of a folder.
        revision: branch, tag or commit of the cascade's repositories.
        parts: the parts that are loaded from elsewhere, in the order of the components.
    """

    cascade: str = catalog.DEMO
    revision: str = MAIN
    parts: tuple[PartChoice, ...] = ()

    def part(self, component: str) -> PartChoice | None:
        """The user's own part for a component; None if it is the cascade's."""
        return next((part for part in self.parts if part.component == component), None)

    def of_cascade(self, cascade: str) -> WeightsChoice:
        """The same choice with another cascade."""
        return replace(self, cascade=cascade)

    def __str__(self) -> str:
        if not self.parts:
            return self.cascade
        return f"{self.cascade} with {', '.join(map(str, self.parts))}"

    @property
    def options(self) -> str:
        """The choice as arguments of `lowmem-if fetch`."""
        at = [f"--revision {self.revision}"] if self.revision != MAIN else []
        return " ".join([self.cascade, *(f"--part {part}" for part in self.parts), *at])


def parse_parts(texts: Iterable[str]) -> dict[str, str]:
    """Component -> source, from texts like `stage_1=FOLDER`, the form of `--part`.

    Raises:
        RequestError: there is no such component, or it is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals:
            raise RequestError(
                f"--part {text!r} names no component: write it like stage_1={text or 'FOLDER'}"
            )
        component = _checked_component(name)
        if component in found:
            raise RequestError(f"{component} is given twice: give only one --part for it")
        found[component] = source
    return found


def part_choices(given: Mapping[str, Any] | None) -> tuple[PartChoice, ...]:
    """The parts in a mapping from components to folders or repositories, like `OWNER/NAME@REVISION`.

    A published stage may be given by its own name, like `II-L`.

    Raises:
        RequestError: a component or folder does not exist, or a value is not a folder or repository.
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise RequestError(f"parts {given!r} is not a mapping like {{'stage_1': 'FOLDER'}}")
    found = {}
    for name, value in given.items():
        component = _checked_component(name)
        found[component] = value if isinstance(value, PartChoice) else _choice(component, value)
    return tuple(found[component] for component in COMPONENTS if component in found)


def _checked_component(name: Any) -> str:
    component = component_name(str(name).strip())
    if component not in COMPONENTS:
        near = did_you_mean(component, COMPONENTS) or f": use {', '.join(COMPONENTS)}"
        raise RequestError(f"--part: there is no component {component!r}{near}")
    return component


def _choice(component: str, value: Any) -> PartChoice:
    if not isinstance(value, str | Path) or not str(value).strip():
        raise RequestError(
            f"--part {component}: {value!r} is neither a folder nor a repository like OWNER/NAME"
        )
    text = str(value).strip()
    if folder := existing_folder(text):
        return PartChoice(component, str(folder))
    source, at, revision = text.partition("@")
    if at and existing_folder(source):
        raise RequestError(f"--part {component}={text}: a folder has no revision: leave @ out")
    name = stage_name(source)
    repository = catalog.stage_repository(name) if name else source
    if isinstance(value, Path) or not is_repository_name(repository) or (at and not revision):
        raise RequestError(
            f"--part {component}={text}: there is no such folder{near_folder(text)}; "
            "give a folder or a repository like OWNER/NAME"
        )
    return PartChoice(component, repository, revision or MAIN)


def missing_folder(choice: PartChoice) -> str:
    """That a part may be meant as a folder, which does not exist, with the nearest one that does."""
    return f"--part {choice}: there is no folder {choice.source!r} here{near_folder(choice.source)}"
