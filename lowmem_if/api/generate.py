"""From a prompt, or a picture and a prompt, to pictures in one call."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowmem_if.cascade.modes import INPAINT, UPSCALE, VARY
from lowmem_if.cascade.strategies import EXACT, Pin, parse_pins
from lowmem_if.engine.events import Report, ignore
from lowmem_if.engine.run_folder import RunFolder
from lowmem_if.engine.runner import RunResult, run
from lowmem_if.engine.worker_process import WorkerProcess
from lowmem_if.hardware.profiles import choose_machine
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request
from lowmem_if.request.request import Request


def generate(
    prompts: str | Sequence[str],
    *,
    out: str | Path | None = None,
    profile: str | None = None,
    device: str = "auto",
    ram: str | None = None,
    vram: str | None = None,
    pins: Mapping[str, str] | None = None,
    prefer: str = EXACT,
    report: Report = ignore,
    preview_every: int = 0,
    workshop: WorkerProcess | None = None,
    **request: Any,
) -> RunResult:
    """Draw pictures: measure the machine, plan, run.

    Args:
        prompts: one text or several.
        out: the run folder, a new one under `runs/` if not given. If the same request was begun
            there, it is continued.
        profile: plan for this profile instead of the machine as measured.
        device, ram, vram: where to run and what may be used, as on the command line.
        pins: component -> `STRATEGY[:DTYPE]`, never overridden.
        prefer: `exact` or `balanced`.
        report: called with every `Event` of the run.
        preview_every: steps after which a picture in the making is written; 0: never.
        workshop: whose worker does it, a `Session`'s; None: one for this run alone.
        request: the other fields of `Request`: `cascade`, `seed`, `images`, `size`, `steps`, ...

    Returns:
        The run's folder, its pictures as files, what every step took, and notices.

    Raises:
        LowmemError: see the tree in `lowmem_if.errors`.
    """
    asked = make_request(prompts, **request)
    return draw(
        asked, out, seeded=request.get("seed") is not None, profile=profile, device=device, ram=ram,
        vram=vram, pins=pins, prefer=prefer, report=report, preview_every=preview_every,
        workshop=workshop,
    )  # fmt: skip


def draw(
    asked: Request,
    out: str | Path | None,
    *,
    seeded: bool,
    profile: str | None,
    device: str,
    ram: str | None,
    vram: str | None,
    pins: Mapping[str, str] | None,
    prefer: str,
    report: Report,
    preview_every: int,
    workshop: WorkerProcess | None,
) -> RunResult:
    """From a request to its pictures; for the rest see `generate`.

    Args:
        seeded: whether the user gave its seed.
    """
    path, asked = begun(asked, out, seeded=seeded)
    machine, profile_pins = choose_machine(
        profile, device=device, ram=ram, vram=vram, measure=workshop.measure if workshop else None
    )
    plan = make_plan(machine, asked, prefer=prefer, pins=profile_pins | checked_pins(pins))
    return run(plan, path, report=report, preview_every=preview_every, workshop=workshop)


def begun(request: Request, out: str | Path | None, *, seeded: bool) -> tuple[Path, Request]:
    """Where a request runs, and with which seed: that of the run begun there, unless one was given."""
    path = Path(out) if out is not None else new_folder(request)
    return path, request if seeded else with_begun_seed(path, request)


def checked_pins(pins: Mapping[str, str] | None) -> dict[str, Pin]:
    """Pins as Python callers write them, component -> `STRATEGY[:DTYPE]`."""
    return parse_pins(f"{component}={choice}" for component, choice in (pins or {}).items())


def vary(image: str | Path, prompts: str | Sequence[str] = "", **options: Any) -> RunResult:
    """Draw a picture again, by a text or in a style; `options` are those of `generate`.

    Args:
        image: a picture file; the result has its proportions.
        prompts: what it shows then; may be empty beside `style_prompt`.
        options: among them `strength` and `style_prompt`, see `Request`.

    Raises:
        LowmemError: as `generate`, and `PictureError` for a picture that cannot be used.
    """
    return generate(prompts, mode=VARY, image=image, **options)


def inpaint(
    image: str | Path, mask: str | Path, prompts: str | Sequence[str], **options: Any
) -> RunResult:
    """Draw a part of a picture again; `options` are those of `generate`.

    Args:
        image: a picture file; the result has its proportions.
        mask: a picture of the same size, white where to repaint.
        prompts: what the whole picture shows then.
        options: among them `strength`, see `Request`.

    Raises:
        LowmemError: as `generate`, and `PictureError` for pictures that cannot be used.
    """
    return generate(prompts, mode=INPAINT, image=image, mask=mask, **options)


def upscale(image: str | Path, prompts: str | Sequence[str] = "", **options: Any) -> RunResult:
    """Enlarge a picture; `options` are those of `generate`.

    Args:
        image: a picture file. With a shorter side of up to 64 pixels stage 2 makes 256 of it and the
            upscaler 1024, or stage 2 alone with `size=256`; a larger one the upscaler makes four times
            as large, in tiles where it must.
        prompts: what it shows, which helps; may be empty.

    Raises:
        LowmemError: as `generate`, and `PictureError` for a picture that cannot be used.
    """
    return generate(prompts, mode=UPSCALE, image=image, **options)


def with_begun_seed(path: Path, request: Request) -> Request:
    """The request with the seed that was drawn when the run in `path` was begun, if one was."""
    if not RunFolder.begun(path):
        return request
    begun = RunFolder.open(path).plan.request
    return request.with_seed(begun.seed)


def new_folder(request: Request) -> Path:
    """A run folder named by the time and the first words of the prompt."""
    words = "-".join(re.findall(r"\w+", request.images[0].words)[:6])[:40] or request.images[0].mode
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{words}"
    folder = Path("runs") / stem
    number = 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{stem}-{number}"
    return folder
