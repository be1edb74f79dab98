"""Many pictures in one run, and chosen ones of it taken on, in one call each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_if.api.enlarge import continued
from lowmem_if.api.generate import draw
from lowmem_if.cascade.strategies import EXACT
from lowmem_if.engine.events import Report, ignore
from lowmem_if.engine.run_folder import RunFolder
from lowmem_if.engine.runner import RunResult, continue_run
from lowmem_if.engine.worker_process import WorkerProcess
from lowmem_if.hardware.profiles import choose_machine
from lowmem_if.request.batch_file import BadLine
from lowmem_if.request.batch_request import read_request, request_of


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A finished batch: its run, and the lines that could not be used, which nothing was drawn for."""

    run: RunResult
    bad_lines: tuple[BadLine, ...]


def batch(
    source: str | Path | Iterable[str | Mapping[str, Any]],
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
) -> BatchResult:
    """Draw a picture for each line: all go through one component before the next is loaded.

    Args:
        source: a file of JSON lines, CSV or prompts, one a line; or the lines themselves, each a prompt
            or a table of what a line of JSON may say (see `make_request`).
        request: what holds for all lines that do not say it themselves, as arguments of `make_request`.
        out, profile, device, ram, vram, pins, prefer, report, preview_every, workshop: see `generate`.

    Raises:
        BatchError: the file cannot be read, or no line of it can be used. Some bad lines are no error:
            they are in the result.
        LowmemError: as `generate`.
    """
    if isinstance(source, str | Path):
        asked, bad_lines = read_request(Path(source), **request)
    else:
        asked, bad_lines = request_of(source, **request)
    drawn = draw(
        asked, out, seeded=request.get("seed") is not None, profile=profile, device=device, ram=ram,
        vram=vram, pins=pins, prefer=prefer, report=report, preview_every=preview_every,
        workshop=workshop,
    )  # fmt: skip
    return BatchResult(drawn, bad_lines)


def enlarge(
    source: str | Path,
    numbers: Sequence[int],
    *,
    size: int = 1024,
    out: str | Path | None = None,
    profile: str | None = None,
    device: str = "auto",
    ram: str | None = None,
    vram: str | None = None,
    report: Report = ignore,
    preview_every: int = 0,
    workshop: WorkerProcess | None = None,
    other_versions: bool = False,
) -> RunResult:
    """Take chosen pictures of a finished run on to a larger size: `lowmem-if continue`.

    Args:
        source: the run's folder.
        numbers: of the pictures, as their files are called.
        out: a new folder, where they are numbered anew; None: they grow in the run's own.
        profile, device, ram, vram, report, preview_every, workshop: see `generate`.
        other_versions: see `resume`.

    Raises:
        RequestError: a picture is not there or not smaller than `size`.
        RunFolderError: the run is not finished, or libraries have changed since, see `resume`.
        LowmemError: as `generate`.
    """
    measure = workshop.measure if workshop else None
    machine, _ = choose_machine(profile, device=device, ram=ram, vram=vram, measure=measure)
    new = None if out is None else Path(out)
    folder = continued(
        RunFolder.open(Path(source)), numbers, size, machine, new, other_versions=other_versions
    )
    return continue_run(
        folder, report=report, preview_every=preview_every, workshop=workshop,
        other_versions=other_versions,
    )  # fmt: skip
