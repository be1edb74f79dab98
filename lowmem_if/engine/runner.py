"""Run a plan in a worker process, one component after the other; `recovery.py` goes on after failures.

An error that it does not know ends the run at once. Whatever ends a run, it can be resumed.
"""

from __future__ import annotations

from lowmem_if.cascade.quantised_layers import INT8
from lowmem_if.cascade.strategies import STREAM
from lowmem_if.engine.events import Notice, Report
from lowmem_if.engine.recovery import Recovery
from lowmem_if.engine.results import RunResult, StepResult
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.gallery import GalleryKeeper, has_gallery, is_stale
from lowmem_if.engine.worker_process import WorkerProcess
from lowmem_if.errors import CheckpointError, NotFinite, RequestError
from lowmem_if.planning.plan import Plan
from lowmem_if.weights.files.weight_copies import find_converted


def continue_run(
    folder: RunFolder,
    worker: WorkerProcess,
    *,
    report: Report,
    preview_every: int = 0,
    other_versions: bool = False,
) -> RunResult:
    """Do the remaining steps of a run folder.

    Args:
        worker: does the work; it is not ended here.
        report: called with every `Event` of the run.
        preview_every: steps after which an unfinished picture is written; 0: never.
        other_versions: resume even if libraries that pixels depend on have changed.

    Raises:
        LowmemError: see the tree in `lowmem_if.errors`; the run can be resumed.
    """
    if preview_every < 0:
        raise RequestError(f"a preview every {preview_every} steps: give a number from 1, or none")
    keeper = GalleryKeeper(folder, report) if has_gallery(folder) else None
    if not folder.complete:
        _check_copies(folder.plan)
        differs = folder.check_versions(others=other_versions)
        with folder.locked() as lock:
            folder = folder.reload()
            folder.restore_embeddings()
            if differs and folder.note(differs):
                (keeper or report)(Notice(differs))
            _work(folder, worker, keeper or report, lock, preview_every)
        folder = folder.reload()
    if keeper and is_stale(folder):
        keeper.write()
    steps = tuple(StepResult(step, folder.measured(step.component)) for step in folder.plan.steps)
    return RunResult(folder.path, folder.images, steps, folder.notices)


def _check_copies(plan: Plan) -> None:
    """Raise `CheckpointError` if 8-bit weights are to stream from a copy that is not there."""
    streaming = [
        step.component
        for step in plan.steps
        if step.config.quantises_unet and step.config.strategy == STREAM
    ]
    places = plan.request.locate().places if streaming else {}
    for component in streaming:
        if component in places and not find_converted(places[component].folder("unet"), dtype=INT8):
            raise CheckpointError(
                f"{component}=stream:{INT8} reads a copy of the weights that is not there: run "
                f"`lowmem-if fetch {plan.request.cascade} --convert {INT8}`, "
                f"or pin {component}=resident:{INT8}"
            )


def _work(
    folder: RunFolder, worker: WorkerProcess, report: Report, lock: int, preview_every: int
) -> None:
    """Let workers work until all steps are done."""
    recovery = Recovery(report)
    while True:
        try:
            short = worker.work(folder, lock, report=report, preview_every=preview_every)
        except NotFinite as error:
            folder = folder.reload()
            recovery.after_overflow(folder, error)
            continue
        if short is None:
            return
        folder = folder.reload()
        recovery.after_shortage(folder, short)
