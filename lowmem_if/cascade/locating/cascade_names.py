"""Names of cascades and stages as users write them, and what to say about names that are wrong."""

from __future__ import annotations

import re

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locating.hub_folders import near_folder
from lowmem_if.errors import CascadeError
from lowmem_if.units import did_you_mean

_STAGE = re.compile(r"(?:deepfloyd/)?(?:if-)?(ii?-[a-z]+)(?:-v1\.0)?", re.IGNORECASE)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_UPSCALER_NAMES = ("x4", "upscaler", catalog.X4_REPOSITORY, catalog.X4_REPOSITORY.partition("/")[2])


def canonical_name(text: str) -> str | None:
    """The catalogue's name of a cascade, in whatever form and case; None if it has none.

    A published stage 1 alone, or its repository, is the named cascade that has it.
    """
    lower = text.strip().lower()
    if lower in catalog.CASCADES:
        return lower
    stages = tuple(stage_name(part) or part for part in text.split("+"))
    pairs = catalog.STAGE_PAIRS.items()
    return next((name for name, pair in pairs if stages in (pair, pair[:1])), None)


def stage_name(text: str) -> str | None:
    """The name of a published stage, like `II-L`, of one of its names or of its repository."""
    match = _STAGE.fullmatch(text.strip())
    name = match[1].upper() if match else ""
    return name if name in (*catalog.FIRST_STAGES, *catalog.SECOND_STAGES) else None


def is_repository_name(text: str) -> bool:
    """Whether a text has the form of a repository's name, OWNER/NAME."""
    return bool(_REPOSITORY.fullmatch(text))


def component_of(repository: str) -> str | None:
    """The component whose networks a published repository is for; None for any other repository."""
    if repository.lower() == catalog.X4_REPOSITORY:
        return catalog.UPSCALER
    name = stage_name(repository) if is_repository_name(repository) else None
    if name is None:
        return None
    return catalog.STAGE_1 if name in catalog.FIRST_STAGES else catalog.STAGE_2


def unknown_cascade(text: str) -> CascadeError:
    """The error for a text that is neither the name of a cascade nor a folder."""
    if "+" in text:
        return _wrong_mix(text)
    stage = stage_name(text)
    if stage in catalog.SECOND_STAGES:
        pair = next(name for name, pair in catalog.STAGE_PAIRS.items() if stage in pair)
        return CascadeError(
            f"{text} is a stage 2: name a stage 1, too, like I-L+{stage}, or use {pair}"
        )
    if text.lower() in _UPSCALER_NAMES:
        return CascadeError(
            f"{text} is the upscaler of every cascade: use one of {', '.join(catalog.CASCADES)}; "
            "--size 1024 runs it"
        )
    known = ", ".join(catalog.CASCADES)
    near = did_you_mean(text.lower(), catalog.CASCADES) or near_folder(text)
    if is_repository_name(text):
        near = near or f"; give a repository of your own by --part stage_1={text}"
    return CascadeError(
        f"no cascade or folder {text!r}: use {known}, two stages like I-L+II-L, "
        f"or a folder with stage_1/{near}"
    )


def _wrong_mix(text: str) -> CascadeError:
    given = [part.strip() for part in text.split("+")]
    if len(given) == 3 and given[2].lower() in _UPSCALER_NAMES:
        return CascadeError(
            f"{text!r}: leave the upscaler out: --size 1024 runs it, a smaller size does not"
        )
    kinds = (("stage 1", tuple(catalog.FIRST_STAGES)), ("stage 2", tuple(catalog.SECOND_STAGES)))
    first, second = (names for _, names in kinds)
    if len(given) == 2:
        mix = "+".join(_nearest(part, names) for part, (_, names) in zip(given, kinds, strict=True))
        for part, (kind, names) in zip(given, kinds, strict=True):
            if stage_name(part) not in names:
                return CascadeError(
                    f"{text!r}: there is no {kind} {part!r}, only {', '.join(names)}: "
                    f"did you mean {mix!r}?"
                )
    return CascadeError(
        f"{text!r} is not a stage 1 and a stage 2: join one of {', '.join(first)} and one of "
        f"{', '.join(second)}, like I-L+II-L"
    )


def _nearest(text: str, names: tuple[str, ...]) -> str:
    """The stage with the most similar size: an I-XL for an II-XL, and the largest there is otherwise."""
    size = text.upper().rpartition("-")[2]
    order = ("XL", "L", "M")
    if size not in order:
        return names[0]
    sizes = {name.rpartition("-")[2]: name for name in names}
    return min(sizes.items(), key=lambda one: abs(order.index(one[0]) - order.index(size)))[1]
