"""Download the weights that a plan needs, and write bfloat16 or 8-bit copies for streaming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Unpack

from lowmem_if.cascade.locate import Location, locate, parts_on_hub
from lowmem_if.engine.options import (
    FetchOptions,
    Parts,
    PlanOptions,
    check_options,
    part_of,
)
from lowmem_if.engine.session import Session
from lowmem_if.planning.plan import Plan
from lowmem_if.request.build import make_request
from lowmem_if.request.request import Request
from lowmem_if.request.texts.given_embeddings import given_embeddings

BytesReport = Callable[[str, int, int], None]
"""Called with a file's name, the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What of a cascade is on this machine now: files of the Hub's repositories, and their bytes.

    Both are 0 for a cascade that is bundled, or a folder.
    """

    files: int
    total_bytes: int


def fetch(cascade: str, **options: Unpack[FetchOptions]) -> Fetched:
    """Download the weights that a plan for this machine needs and that are not here, nothing else.

    Args:
        options: see `FetchOptions`.

    Raises:
        RequestError: an unknown option.
        EmbeddingsError: the file of embeddings does not exist.
        HubError: the Hub cannot be reached, asks for a login or the licence, or lacks a file.
        DoesNotFit: the machine could not run what would be fetched.
    """
    check_options("fetch", options, FetchOptions)
    request = _request(
        cascade, options.get("revision", "main"), options.get("size", 1024), options.get("parts")
    )
    request = replace(request, embeds=given_embeddings(options.get("embeds")))
    notice = options.get("notice", _ignore)
    with Session(keep_loaded=False, **part_of(options, PlanOptions)) as session:
        machine = session.measure()
        for card in machine.unused:
            notice(card)
        _drop_broken(request, notice)
        plan = session.plan(request, machine)
    if not plan.request.locate().cascade.repositories:
        return Fetched(0, 0)
    return _download(plan, options.get("report", _ignore))


def _drop_broken(request: Request, notice: Callable[[str], None]) -> None:
    """Remove broken files before the plan, which needs files that are sound or not here at all."""
    from lowmem_if.weights.hub.hub_cache import drop_broken

    parts = parts_on_hub(request.weights)
    wanted = {name: part for name, part in parts.items() if name in request.components}
    for file in drop_broken(wanted, revision=request.revision) if wanted else ():
        notice(f"{file} is broken and is downloaded again")


def _download(plan: Plan, report: BytesReport) -> Fetched:
    from lowmem_if.weights.hub import repository

    request = plan.request
    encoders = [step for step in plan.steps if step.config.facts.encodes]
    eight_bit = any(step.config.storage_dtype == "int8" for step in encoders)
    files = repository.list_files(
        request.locate().cascade,
        request.components,
        eight_bit=eight_bit,
        revision=request.revision,
    )
    repository.fetch(files, report=lambda p: report(p.file, p.done_bytes, p.total_bytes))
    return Fetched(
        sum(len(repository.files) for repository in files),
        sum(repository.total_bytes for repository in files),
    )


def copy_for_streaming(
    cascade: str,
    *,
    dtype: str = "bfloat16",
    revision: str = "main",
    size: int = 1024,
    parts: Parts | None = None,
    report: BytesReport = lambda _file, _done, _total: None,
) -> dict[str, Path | None]:
    """Write copies of what streams at every step; those that are fresh are kept.

    Args:
        dtype: `bfloat16`, in which a CPU computes, or `int8`, which is half as long.

    Returns:
        Component -> its copy's folder; None where the weights are bfloat16 on file already.

    Raises:
        CascadeError, CheckpointError, LowmemError: no weights here, a broken file, or no room.
    """
    from lowmem_if.weights.files.weight_copies import (
        BFLOAT16,
        convert,
        needs_conversion,
        streamed_networks,
    )

    request = _request(cascade, revision, size, parts)
    networks = streamed_networks(_with_parts(request))
    copies: dict[str, Path | None] = {}
    for component in request.components:
        if component not in networks:
            continue
        folder = networks[component]
        forward = partial(_with_component, report, component)
        needed = dtype != BFLOAT16 or needs_conversion(folder)
        copies[component] = convert(folder, dtype=dtype, report=forward) if needed else None
    return copies


def remove_copies(cascade: str, *, revision: str = "main", parts: Parts | None = None) -> int:
    """Remove the copies that `copy_for_streaming` wrote, and say how many bytes they took."""
    from lowmem_if.weights.files.weight_copies import remove_converted, streamed_networks

    networks = streamed_networks(_with_parts(_request(cascade, revision, 1024, parts)))
    return sum(map(remove_converted, networks.values()))


def _with_component(report: BytesReport, component: str, file: str, done: int, total: int) -> None:
    report(f"{component.replace('_', ' ')}: {file}", done, total)


def _ignore(*_given: object) -> None:
    """A report that is not shown."""


def _request(cascade: str, revision: str, size: int, parts: Parts | None) -> Request:
    """A request for one picture of that size."""
    return make_request(
        "a picture", cascade=cascade, revision=revision, parts=parts, size=size, seed=0
    )


def _with_parts(request: Request) -> Location:
    """Where the networks are; only the parts of the user's own are examined."""
    own = [part.component for part in request.weights.parts]
    return locate(request.weights, components=own)
