"""A cascade's weights, brought to this machine: what a plan needs of the Hub, and copies to stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.strategies import EXACT, Pin
from lowmem_if.hardware.profiles import choose_machine
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request
from lowmem_if.request.request import Request

BytesReport = Callable[[str, int, int], None]
"""Called with a file's name, the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What of a cascade is on this machine now: files of the Hub's repositories, and their bytes.

    Both are 0 for a cascade that is bundled, or a folder.
    """

    files: int
    total_bytes: int


def fetch(
    cascade: str,
    *,
    revision: str = "main",
    size: int = 1024,
    profile: str | None = None,
    device: str = "auto",
    ram: str | None = None,
    vram: str | None = None,
    pins: Mapping[str, Pin] | None = None,
    prefer: str = EXACT,
    report: BytesReport = lambda _file, _done, _total: None,
    notice: Callable[[str], None] = lambda _text: None,
) -> Fetched:
    """Download the weights that a plan for this machine needs and that are not here, nothing else.

    Args:
        size: of the pictures that will be asked for, in pixels: 64 needs stage 1 only.
        notice: called with what was found broken in the cache and is fetched anew, in words, and with
            each card that torch cannot use: the plan is then another one.
        profile, device, ram, vram, pins, prefer: what the plan is made with, as in `generate`.

    Raises:
        HubError: the Hub cannot be reached, asks for a login or the licence, or lacks a file.
        DoesNotFit: the machine could not run what would be fetched.
    """
    from lowmem_if.weights.hub import repository
    from lowmem_if.weights.hub.hub_cache import drop_broken

    machine, profile_pins = choose_machine(profile, device=device, ram=ram, vram=vram)
    for card in machine.unused:
        notice(card)
    request = _request(cascade, revision, size)
    published = catalog.PUBLISHED.get(cascade)
    if published:
        # Before the plan, which can only be made of files that are sound or not here at all.
        for file in drop_broken(published, request.components, revision=revision):
            notice(f"{file} is broken and is fetched anew")
    plan = make_plan(machine, request, prefer=prefer, pins=profile_pins | dict(pins or {}))
    if published is None:
        return Fetched(0, 0)
    eight_bit = plan.step(catalog.TEXT_ENCODER).config.storage_dtype == "int8"
    files = repository.list_files(
        published, request.components, eight_bit=eight_bit, revision=revision
    )
    repository.fetch(files, report=lambda p: report(p.file, p.done_bytes, p.total_bytes))
    return Fetched(
        sum(len(repository.files) for repository in files),
        sum(repository.total_bytes for repository in files),
    )


def copy_for_streaming(
    cascade: str,
    *,
    revision: str = "main",
    size: int = 1024,
    report: BytesReport = lambda _file, _done, _total: None,
) -> dict[str, Path | None]:
    """Write bfloat16 copies of what a CPU streams at every step; those that are fresh are kept.

    Returns:
        Component -> its copy's folder; None where the weights are bfloat16 on file already.

    Raises:
        CascadeError, CheckpointError, LowmemError: no weights here, a broken file, or no room.
    """
    from lowmem_if.weights.files.bf16_copies import convert, needs_conversion, streamed_networks

    networks = streamed_networks(locate(cascade, components=(), revision=revision))
    copies: dict[str, Path | None] = {}
    for component in _request(cascade, revision, size).components:
        if component not in networks:
            continue
        folder = networks[component]
        tell = partial(_with_component, report, component)
        copies[component] = convert(folder, report=tell) if needs_conversion(folder) else None
    return copies


def remove_copies(cascade: str, *, revision: str = "main") -> int:
    """Remove the copies that `copy_for_streaming` wrote, and say how many bytes they took."""
    from lowmem_if.weights.files.bf16_copies import remove_converted, streamed_networks

    networks = streamed_networks(locate(cascade, components=(), revision=revision))
    return sum(map(remove_converted, networks.values()))


def _with_component(report: BytesReport, component: str, file: str, done: int, total: int) -> None:
    report(f"{component.replace('_', ' ')}: {file}", done, total)


def _request(cascade: str, revision: str, size: int) -> Request:
    """One picture of that size, whatever it shows."""
    return make_request(("a picture",), cascade=cascade, revision=revision, size=size, seed=(0,))
