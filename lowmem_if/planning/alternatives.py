"""Find requests that fit in place of one that does not; each alternative is planned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from lowmem_if.cascade import catalog
from lowmem_if.cascade.strategies import PREFERENCES, Pin
from lowmem_if.errors import PictureError, RequestError
from lowmem_if.hardware.machine import Machine, cpu_compute_dtype
from lowmem_if.request.request import Request
from lowmem_if.units import GB

Fits = Callable[[Machine, Request, str | None, Mapping[str, Pin]], bool]

_GRAIN_BYTES = 10**8
"""The search for more memory uses steps of a tenth of a GB."""
_MOST_BYTES = 64 * GB


def closest_alternatives(
    machine: Machine, request: Request, prefer: str | None, pins: Mapping[str, Pin], fits: Fits
) -> str:
    """The closest request that fits, and how much more memory the unchanged request needs, in words.

    A request with the same cascade and size is preferred to a smaller one, and this to another device.
    """
    changed = next(_changed(machine, request, prefer, pins, fits), None)
    more = _more_memory(machine, request, prefer, pins, fits)
    if changed is None:
        return f"No smaller request fits. Free {more or 'more memory'}, or raise --ram or --vram."
    return f"Try {changed}, or free {more}." if more else f"Try {changed}."


def _changed(
    machine: Machine, request: Request, prefer: str | None, pins: Mapping[str, Pin], fits: Fits
) -> Iterator[str]:
    """Requests that fit, in words: other preferences before smaller images and cascades."""
    for other in (request, *_smaller(request)):
        for own_pins in (pins, {}) if pins else ({},):
            for preference in _not_stricter(prefer):
                if (other, preference, own_pins) == (request, prefer, pins):
                    continue
                if fits(machine, other, preference, own_pins):
                    yield _words(request, other, prefer, preference, dropped=pins != own_pins)
    on_cpu = _on_the_cpu(machine)
    if on_cpu and fits(on_cpu, request, prefer, pins):
        yield "--device cpu"


def _not_stricter(prefer: str | None) -> tuple[str | None, ...]:
    """The preference and the looser ones; without a preference the planner has tried them all."""
    return PREFERENCES[PREFERENCES.index(prefer) :] if prefer else (None,)


def _smaller(request: Request) -> Iterator[Request]:
    """The request with smaller images, then with smaller cascades, if its modes exist there."""
    sizes = [size for size in sorted(catalog.SIZES, reverse=True) if size < request.size]
    for size in sizes:
        with suppress(RequestError, PictureError):  # not every mode exists at every size
            yield _without_upscaler(request.no_larger_than(size))
    cascades = catalog.smaller_cascades(request.cascade)
    if request.embeds is not None:  # the demo reads embeddings of another width
        cascades = tuple(name for name in cascades if name != catalog.DEMO)
    for cascade in cascades:
        yield request.with_cascade(cascade)


def _without_upscaler(request: Request) -> Request:
    """The request without steps if a named list sets them: `steps` were only for the upscaler."""
    if not request.sampling.timesteps:
        return request
    return replace(request, sampling=replace(request.sampling, steps=None))


def _words(
    request: Request, other: Request, prefer: str | None, preference: str | None, *, dropped: bool
) -> str:
    words = [f"--cascade {other.cascade}"] if other.cascade != request.cascade else []
    words += [f"--size {other.size}"] if other.size != request.size else []
    words += [f"--prefer {preference}"] if preference != prefer else []
    if dropped and not words:
        return "it without the pins"
    return " ".join(words) + (" without the pins" if dropped else "")


def _on_the_cpu(machine: Machine) -> Machine | None:
    """The machine without its accelerator; None for profiles, which have no choice of --device."""
    if machine.kind == "cpu" or machine.name != "this machine":
        return None
    dtype, reason = cpu_compute_dtype(frozenset())
    return replace(
        machine, device="cpu", vram_bytes=0, vram_total_bytes=0, capability=(0, 0),
        compute_dtype=dtype, compute_dtype_reason=reason, spills_vram=False, keeps_reserve=False,
    )  # fmt: skip


def _more_memory(
    machine: Machine, request: Request, prefer: str | None, pins: Mapping[str, Pin], fits: Fits
) -> str:
    """The smallest addition of memory that makes the request fit: RAM, else VRAM, else both."""
    if machine.unified:
        additions = [(1, 1)]
    elif machine.kind == "cpu":
        additions = [(1, 0)]
    else:
        additions = [(1, 0), (0, 1), (1, 1)]
    for ram, vram in additions:

        def with_more(size: int, ram: int = ram, vram: int = vram) -> Machine:
            return replace(
                machine,
                ram_bytes=machine.ram_bytes + ram * size,
                vram_bytes=machine.vram_bytes + vram * size,
            )

        more = _least(lambda size: fits(with_more(size), request, prefer, pins))
        if more:
            what = "memory" if machine.unified else " and ".join(["RAM"] * ram + ["VRAM"] * vram)
            each = " each" if ram and vram and not machine.unified else ""
            return f"{more / GB:.1f} GB more {what}{each}"
    return ""


def _least(enough: Callable[[int], bool]) -> int:
    """The smallest number of bytes that is enough, in grains; 0 if none is. More is never worse."""
    low, high = 0, _MOST_BYTES // _GRAIN_BYTES
    if not enough(high * _GRAIN_BYTES):
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle * _GRAIN_BYTES) else (middle, high)
    return high * _GRAIN_BYTES
