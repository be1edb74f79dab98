"""The versions of the libraries that are installed, and which of them a component's pixels depend on.

Free Colab replaces its libraries every few weeks. A run that was begun before can be resumed if the
steps that are still to be done do not depend on the change.
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


def changed_versions(began: Mapping[str, str], steps: Iterable[Step]) -> tuple[list[str], str]:
    """Compare the installed libraries with those that a run was begun with.

    Args:
        began: library -> version.
        steps: the steps that are still to be done.

    Returns:
        The changes that the pixels of these steps depend on, in words, and a notice about all changes
        that names their effect; both are empty if nothing has changed.
    """
    changes = _changes(began)
    if not changes:
        return [], ""
    behind = {name for step in steps for name in _names(step)}
    harmful = [words for name, words in changes.items() if name in behind]
    effect = "pixels may differ in their last bits" if harmful else "pixels do not depend on it"
    words = "; ".join(changes.values())
    return (
        harmful,
        f"the run continues with other versions than it was begun with ({words}): {effect}",
    )


def _changes(began: Mapping[str, str]) -> dict[str, str]:
    """Library -> both versions in words, for each library whose version has changed."""
    now = installed_versions()
    names = dict.fromkeys([*began, *now])
    return {
        name: f"{name} {began.get(name, '(not installed)')}, here {now.get(name, 'not installed')}"
        for name in names
        if began.get(name) != now.get(name)
    }


def _names(step: Step) -> tuple[str, ...]:
    """The libraries that a step's results depend on; diffusers cleans the captions, too."""
    facts = catalog.facts(step.component)
    if facts.postprocesses:
        return ()  # it checks finished pictures and draws the watermark
    transformers = ("transformers",) if "text_encoder" in facts.networks else ()
    by_library = facts.encodes and step.config.storage_dtype in QUANTISED
    quantised = ("bitsandbytes",) if by_library else ()
    return ("torch", "diffusers", *transformers, *quantised)
