"""What a worker does: every component in turn, from folder to folder.

A step loads its component if there is anything to do, processes one micro-batch after the other, and
writes each result at once. Then the component is released, with a proof, unless a session keeps it in
its cache. Only what is in the run folder is kept of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from lowmem_if.cascade.lora.adapter import file_digest
from lowmem_if.engine.events import Report, StepFinished, StepSkipped, StepStarted
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.run_record import Released
from lowmem_if.engine.worker.model_cache import ModelCache, left_behind
from lowmem_if.engine.worker.steps.finish import finish_images
from lowmem_if.engine.worker.steps.images import draw_images
from lowmem_if.engine.worker.steps.pending import pending_components
from lowmem_if.engine.worker.steps.step_run import StepRun
from lowmem_if.engine.worker.steps.texts import encode_texts
from lowmem_if.errors import DeviceError, NotFinite, RunFolderError
from lowmem_if.hardware.dtypes import likely_cause
from lowmem_if.planning.estimates.memory import VRAM_WORKSPACE_BYTES
from lowmem_if.planning.plan import Step
from lowmem_if.weights.allocator import limit, sees, try_segments
from lowmem_if.weights.memory_readings import wake


def work(
    folder: RunFolder, report: Report, *, preview_every: int = 0, cache: ModelCache | None = None
) -> None:
    """Do every step of the folder's plan that is not done.

    Args:
        preview_every: steps after which previews are written; 0: never.
        cache: the cache of loaded components; None: nothing is kept.

    Raises:
        LowmemError: weights, device or folder cannot be used; what is done stays done.
    """
    folder.prepare(previews=preview_every > 0)
    request = folder.plan.request
    location = request.locate(asks_hub=False)
    pending = pending_components(folder)
    cache = cache or ModelCache()
    for step in folder.plan.steps:
        if step.component in pending:
            _run_step(StepRun(folder, step, location, report, cache), preview_every)
        else:
            report(StepSkipped(step.component))


def _run_step(run: StepRun, preview_every: int) -> None:
    folder, step, component = run.folder, run.step, run.step.component
    _check_device(step)
    _check_lora(step, folder)
    folder.check_weights(component, run.weights)
    images = len(run.tasks or folder.plan.request.images)
    run.report(StepStarted(component, images, step.config.batch))
    _use_device(run)
    with run.recorder.recording(), _explained(run):
        if step.config.facts.encodes:
            encode_texts(run)
        elif step.config.facts.postprocesses:
            finish_images(run)
        else:
            draw_images(run, preview_every)
    released = Released(**asdict(run.release)) if run.release else None
    folder.finish_step(component, run.measured(), released, kept_loaded=run.kept_loaded)
    run.report(StepFinished(component))
    if run.release and not run.release.complete:
        run.notice(left_behind(component, run.release))


def _use_device(run: StepRun) -> None:
    """Use the device for the first time, inside the step: it may run out of memory even here."""
    device, machine = run.step.config.device, run.folder.plan.machine
    try_segments(device)
    if machine.spills_vram and device == machine.device:
        limit(device, machine.vram_bytes - VRAM_WORKSPACE_BYTES, machine.vram_total_bytes)
    wake(device, run.step.config.compute_dtype)


@contextmanager
def _explained(run: StepRun) -> Iterator[None]:
    """Inside, a `NotFinite` says which component it is, and the likely cause."""
    step = run.step
    try:
        yield
    except NotFinite as error:
        cause = likely_cause(
            run.folder.plan.machine, step.config.compute_dtype, str(run.place.root)
        )
        raise NotFinite(
            f"{step.component.replace('_', ' ')}: {error} holds NaN or infinite numbers, computed "
            f"in {step.config.compute_dtype} on {step.config.device}; {cause}"
        ) from error


def _check_device(step: Step) -> None:
    if not sees(step.config.device):
        raise DeviceError(
            f"the plan is for {step.config.device}, which torch does not see here: "
            "run it where it was begun, or start a new folder"
        )


def _check_lora(step: Step, folder: RunFolder) -> None:
    """Raise `RunFolderError` unless the LoRAs of a step are the files that it was planned with."""
    for lora in step.lora:
        if file_digest(lora.path) != lora.digest:
            raise RunFolderError(
                f"the LoRA {lora.path} has changed since {folder.path} was begun: "
                "put the old one back or start a new folder"
            )
