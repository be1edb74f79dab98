"""Run a plan: a worker process does the components in turn; if memory kills it, a cheaper plan goes on.

The ladder: each rung is tried once, only after memory ran out, and named in the log. Any other error
ends the run at once. Whatever ends it, the folder can be continued.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_if import errors
from lowmem_if.errors import OutOfMemory, RequestError, WorkerDied
from lowmem_if.planning.jobs import jobs_of
from lowmem_if.planning.ladder import RAM, changed_pixels, cheaper
from lowmem_if.planning.locations import locate
from lowmem_if.planning.plan import Plan, Step
from lowmem_if.planning.strategies import STREAM
from lowmem_if.running.events import Event, Report, ignore
from lowmem_if.running.gallery import GalleryKeeper, has_gallery, is_stale
from lowmem_if.running.run_folder import RunFolder, writing

WORKER = ("-P", "-m", "lowmem_if.running.worker")
"""Arguments of the interpreter; -P: the folder one stands in is no place to import from."""


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


class WorkerCrashed(Exception):
    """The worker ended with a traceback that is no known error."""


def run(
    plan: Plan, out: str | Path, *, report: Report = ignore, preview_every: int = 0
) -> RunResult:
    """Run a plan in the folder `out`, or go on with it if the same request was begun there.

    Args:
        report: called with every `Event` of the run.
        preview_every: steps after which a picture in the making is written; 0: never.

    Raises:
        LowmemError: see the tree in `lowmem_if.errors`; the folder can be continued.
    """
    folder = RunFolder.for_plan(Path(out), plan)
    return continue_run(folder, report=report, preview_every=preview_every)


def resume(out: str | Path, *, report: Report = ignore, preview_every: int = 0) -> RunResult:
    """Continue the run in the folder `out`; a finished one is only read back. For the rest see `run`.

    Raises:
        RunFolderError: it is no run folder, is in use, or was begun with other library versions.
    """
    return continue_run(RunFolder.open(Path(out)), report=report, preview_every=preview_every)


def continue_run(
    folder: RunFolder, *, report: Report = ignore, preview_every: int = 0
) -> RunResult:
    """Do what is not done in a run folder."""
    if preview_every < 0:
        raise RequestError(f"a preview every {preview_every} steps: give a number from 1, or none")
    keeper = GalleryKeeper(folder, report) if has_gallery(folder) else None
    if not folder.complete:
        folder.check_versions()
        with folder.locked() as lock:
            _work(folder.reload(), keeper or report, lock, preview_every)
        folder = folder.reload()
    if keeper and is_stale(folder):
        keeper.write()
    steps = tuple(
        StepResult(step, folder.measured(step.component) or {}) for step in folder.plan.steps
    )
    return RunResult(folder.path, folder.images, steps, folder.notices)


def _work(folder: RunFolder, report: Report, lock: int, preview_every: int) -> None:
    """Let workers work until one comes to the end."""
    while True:
        short = _let_work(folder, report, lock, preview_every)
        if short is None:
            return
        folder = folder.reload()
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


def _next_rung(folder: RunFolder, short: Event) -> Step:
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
    lower = cheaper(step, machine, part, jobs, short_of=short.name, pinned=pinned)
    if lower is None:
        left = "your pin allows nothing cheaper" if pinned else "nothing cheaper is left"
        raise OutOfMemory(
            f"{short.name} ran out in {component.replace('_', ' ')} ({short.text}) and {left}: "
            f"free some memory, then `lowmem-if resume {folder.path}`"
        )
    return lower


def _let_work(folder: RunFolder, report: Report, lock: int, preview_every: int) -> Event | None:
    """Run one worker to its end; None if all is done, else the event that says memory ran out."""
    last = Event("started")
    report(Event("starting"))
    with _worker(folder, lock, preview_every) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = Event.from_line(line)
            if event.kind == "error":
                raise _error(event)
            if event.kind == "out_of_memory":
                return Event("out_of_memory", last.component, text=event.text, name=event.name)
            if event.kind == "started":
                last = event
            report(event)
        code = process.wait()
    if code == 0:
        return None
    if code < 0 and signal.Signals(-code).name == "SIGKILL":
        text = "the system killed the worker"
        return Event("out_of_memory", last.component, text=text, name=RAM)
    if code < 0:
        name = signal.Signals(-code).name
        why = " (a weight file became shorter while it was in use)" if name == "SIGBUS" else ""
        raise WorkerDied(
            f"the worker was ended by {name} in {last.component or 'its start'}{why}: "
            f"continue with `lowmem-if resume {folder.path}`"
        )
    raise WorkerCrashed(folder.log_file.read_text(encoding="utf-8", errors="replace")[-8000:])


@contextmanager
def _worker(folder: RunFolder, lock: int, preview_every: int) -> Iterator[subprocess.Popen[str]]:
    """A worker process that never outlives the block, nor this process."""
    with writing(folder.path):
        log = folder.log_file.open("ab")
    with log:
        process = subprocess.Popen(
            [
                sys.executable,
                *WORKER,
                str(folder.path),
                *([str(preview_every)] if preview_every else ()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=worker_environment(os.environ, streams=_streams(folder.plan)),
            # The lock lives as long as whoever may still write: the worker too, if we are killed.
            pass_fds=() if sys.platform == "win32" else (lock,),
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _streams(plan: Plan) -> bool:
    return any(step.strategy == STREAM for step in plan.steps)


def worker_environment(outer: os._Environ[str], *, streams: bool = False) -> dict[str, str]:
    """The worker's environment: nothing goes to the network; the user's own settings win.

    Args:
        streams: whether memory is so short that weights stay in their files.
    """
    ours = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "PYTHONIOENCODING": "utf-8",
        # The loaders' threads would each get a heap of their own, which glibc does not trim: 80 MB of
        # a 200 MB encoder stayed behind, with one heap 0.3 MB (docs/log.md).
        "MALLOC_ARENA_MAX": "1",
        # Fresh memory in pages of 2 MB: reading weights into it was twice as fast (docs/log.md).
        "THP_MEM_ALLOC_ENABLE": "1",
    }
    if streams:
        # A freed activation leaves the heap at once (250 MB of an upscaler's), for 6 % of the time.
        ours |= {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    if "PYTORCH_CUDA_ALLOC_CONF" in outer:
        del ours["PYTORCH_ALLOC_CONF"]  # the user's setting, under its older name
    return ours | dict(outer) | {"HF_HUB_OFFLINE": "1"}


def _error(event: Event) -> errors.LowmemError:
    """The worker's error as this process's own."""
    cls = getattr(errors, event.name, errors.LowmemError)
    error: errors.LowmemError = cls.__new__(cls)
    Exception.__init__(error, event.text)
    return error
