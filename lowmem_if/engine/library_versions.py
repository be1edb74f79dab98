"""The versions of the libraries that are installed, and which of them a component's pixels depend on.

Free Colab replaces its libraries every few weeks, and a run that was begun before must go on where the
change does not matter to what is still to be drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata

from lowmem_if.cascade import catalog
from lowmem_if.cascade.strategies import QUANTISED
from lowmem_if.planning.plan import Step

PACKAGE = "lowmem-if"
LIBRARIES = (PACKAGE, "torch", "diffusers", "transformers", "bitsandbytes")

_BEHIND = {
    catalog.TEXT_ENCODER: ("torch", "diffusers", "transformers"),  # diffusers cleans the captions
    catalog.STAGE_1: ("torch", "diffusers"),
    catalog.STAGE_2: ("torch", "diffusers"),
    catalog.UPSCALER: ("torch", "diffusers", "transformers"),  # CLIP reads the prompt
    catalog.POSTPROCESS: (),  # looks at finished pictures and puts the mark on them
}


def installed_versions() -> dict[str, str]:
    """The version of each library that is installed; bitsandbytes may be missing."""
    versions = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def versions_behind(step: Step) -> dict[str, str]:
    """The versions that the results of a step depend on, of the libraries that are installed."""
    return {name: version for name, version in installed_versions().items() if name in _names(step)}


def differences(began: Mapping[str, str]) -> dict[str, str]:
    """Library -> words, for each whose version is not the one that a run was begun with."""
    now = installed_versions()
    names = dict.fromkeys([*began, *now])
    return {
        name: f"{name} {began.get(name, '(not installed)')}, here {now.get(name, 'not installed')}"
        for name in names
        if began.get(name) != now.get(name)
    }


def that_change_pixels(names: Iterable[str], steps: Iterable[Step]) -> list[str]:
    """Those of the libraries that the results of one of the steps depend on."""
    behind = {name for step in steps for name in _names(step)}
    return [name for name in names if name in behind]


def _names(step: Step) -> tuple[str, ...]:
    quantised = ("bitsandbytes",) if step.config.storage_dtype in QUANTISED else ()
    return _BEHIND[step.component] + quantised
