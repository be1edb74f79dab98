"""Run a plan: a worker process does the components in turn; if memory kills it, a cheaper plan goes on.

The ladder: each rung is tried once, only after memory ran out, and named in the log. If anything stayed
loaded from before, or the worker had drawn before, the first rung is the same again in a new worker. Any
other error ends the run at once. Whatever ends it, the folder can be continued.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_if.errors import OutOfMemory, RequestError, WorkerDied
from lowmem_if.planning.jobs import jobs_of
from lowmem_if.planning.ladder import changed_pixels, cheaper
from lowmem_if.planning.locations import locate
from lowmem_if.planning.plan import Plan, Step
from lowmem_if.running.events import Event, Report, ignore
from lowmem_if.running.gallery import GalleryKeeper, has_gallery, is_stale
from lowmem_if.running.run_folder import RunFolder
from lowmem_if.running.workshop import Short, Workshop


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step and what it took: `vram_bytes`, `ram_bytes`, `seconds`."""

    step: Step
    measured: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: its folder, its pictures in the order of the request, its steps, its notices."""

    folder: Path
    images: tuple[Path, ...]
    steps: tuple[StepResult, ...]
    notices: tuple[str, ...]


def run(
    plan: Plan,
    out: str | Path,
    *,
    report: Report = ignore,
    preview_every: int = 0,
    workshop: Workshop | None = None,
) -> RunResult:
    """Run a plan in the folder `out`, or go on with it if the same request was begun there.

    Args:
        report: called with every `Event` of the run.
        preview_every: steps after which a picture in the making is written; 0: never.
        workshop: whose worker does it, a `Session`'s; None: one for this run alone.

    Raises:
        LowmemError: see the tree in `lowmem_if.errors`; the folder can be continued.
    """
    folder = RunFolder.for_plan(Path(out), plan)
    for card in plan.machine.unused:
        report(Event("notice", text=card))
    return continue_run(folder, report=report, preview_every=preview_every, workshop=workshop)


def resume(
    out: str | Path,
    *,
    report: Report = ignore,
    preview_every: int = 0,
    workshop: Workshop | None = None,
    other_versions: bool = False,
) -> RunResult:
    """Continue the run in the folder `out`; a finished one is only read back. For the rest see `run`.

    Args:
        other_versions: go on even if libraries have changed that pixels depend on.

    Raises:
        RunFolderError: it is no run folder, is in use, or was begun with other versions of libraries
            that what is still to be drawn depends on.
    """
    folder = RunFolder.open(Path(out))
    return continue_run(
        folder, report=report, preview_every=preview_every, workshop=workshop,
        other_versions=other_versions,
    )  # fmt: skip


def continue_run(
    folder: RunFolder,
    *,
    report: Report = ignore,
    preview_every: int = 0,
    workshop: Workshop | None = None,
    other_versions: bool = False,
) -> RunResult:
    """Do what is not done in a run folder."""
    if preview_every < 0:
        raise RequestError(f"a preview every {preview_every} steps: give a number from 1, or none")
    keeper = GalleryKeeper(folder, report) if has_gallery(folder) else None
    if not folder.complete:
        differs = folder.check_versions(others=other_versions)
        shop = nullcontext(workshop) if workshop else Workshop()
        with folder.locked() as lock, shop as worker:
            folder = folder.reload()
            if differs and folder.note(differs):
                (keeper or report)(Event("notice", text=differs))
            _work(folder, worker, keeper or report, lock, preview_every)
        folder = folder.reload()
    if keeper and is_stale(folder):
        keeper.write()
    steps = tuple(
        StepResult(step, folder.measured(step.component) or {}) for step in folder.plan.steps
    )
    return RunResult(folder.path, folder.images, steps, folder.notices)


def _work(
    folder: RunFolder, workshop: Workshop, report: Report, lock: int, preview_every: int
) -> None:
    """Let workers work until one comes to the end."""
    while True:
        short = workshop.work(folder, lock, report=report, preview_every=preview_every)
        if short is None:
            return
        folder = folder.reload()
        if short.beside or not short.is_new:
            _try_again(folder, short, report)
            continue
        step = _next_rung(folder, short)
        before = folder.plan.step(step.component)
        folder.replace_step(step, f"{step.component}: {step.reason}")
        if change := changed_pixels(before, step):
            _tell(
                folder,
                report,
                step.component,
                f"{change}, so pixels differ from a run with more memory",
            )
        now = f"{step.reason}; now {step.setting} on {step.device}"
        report(Event("retry", step.component, text=f"{step.component.replace('_', ' ')}: {now}"))


def _tell(folder: RunFolder, report: Report, component: str, text: str) -> None:
    notice = f"{component.replace('_', ' ')}: {text}"
    if folder.note(notice):
        report(Event("notice", component, text=notice))


def _try_again(folder: RunFolder, short: Short, report: Report) -> None:
    """Say that the same goes on in a new worker, which holds nothing from before."""
    beside = " and ".join(short.beside).replace("_", " ")
    why = f"beside {beside}, which stayed loaded" if beside else "in a worker that had drawn before"
    if short.component:
        step = folder.plan.step(short.component)
        folder.replace_step(step, f"{short.component}: {short.resource} ran out {why}")
    name = short.component.replace("_", " ") or "before the first step"
    text = f"{name}: {short.resource} ran out {why}; now the same with nothing else loaded"
    report(Event("retry", short.component, text=text))


def _next_rung(folder: RunFolder, short: Short) -> Step:
    request, machine = folder.plan.request, folder.plan.machine
    component = short.component
    if not component:
        raise WorkerDied(
            f"the worker was killed while it started: `lowmem-if resume {folder.path}`"
        )
    step = folder.plan.step(component)
    location = locate(request.cascade, components=request.components, revision=request.revision)
    pinned = component in folder.plan.pins
    part, jobs = location.cascade.parts[component], jobs_of(request, location.cascade, component)
    lower = cheaper(step, machine, part, jobs, short_of=short.resource, pinned=pinned)
    if lower is None:
        left = "your pin allows nothing cheaper" if pinned else "nothing cheaper is left"
        raise OutOfMemory(
            f"{short.resource} ran out in {component.replace('_', ' ')} ({short.text}) and {left}: "
            f"free some memory, then `lowmem-if resume {folder.path}`"
        )
    return lower
