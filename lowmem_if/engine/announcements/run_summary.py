"""What a run still has to do, from its plan and what is in its folder, before anything is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from lowmem_if.cascade import catalog
from lowmem_if.engine.announcements.planned_event import PlannedStep, RunPlanned
from lowmem_if.engine.events import Report
from lowmem_if.engine.run_folder.embedding_copies import check_embeddings
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.folder_state import FolderState
from lowmem_if.engine.run_folder.out_folder import check_nothing_lost
from lowmem_if.planning.needed_texts import texts_of
from lowmem_if.planning.plan import Plan
from lowmem_if.request.image_spec import FACTOR, ImageSpec
from lowmem_if.request.request import Request


def announce(plan: Plan, path: Path, report: Report) -> None:
    """Report what a run will do in `path`, unless it is complete. `report` may raise to stop it.

    Raises:
        RunFolderError: another request was begun in `path`, it cannot be read, or its pictures
            would overwrite files.
    """
    check_nothing_lost(path, len(plan.request.pictures))
    folder = RunFolder.open(path) if RunFolder.begun(path) else None
    if folder is None:
        check_embeddings(plan)
    else:
        folder.check_same(plan)
        plan = folder.plan
    if folder is None or not folder.complete:
        report(run_summary(plan, path, folder))


def run_summary(
    plan: Plan,
    path: Path,
    folder: FolderState | None = None,
    again: Mapping[int, ImageSpec] | None = None,
) -> RunPlanned:
    """What the run of a plan will do.

    Args:
        path: its run folder, which need not exist.
        folder: what has been done before; None: nothing.
        again: number of a picture -> the picture of `folder` that it enlarges.
    """
    request = plan.request
    again = again or {}
    left = _all(request) if folder is None else _left(plan, folder, again)
    done = len(request.pictures) - left[catalog.POSTPROCESS]
    steps = []
    for step in plan.steps:
        component, predicted = step.component, step.estimate
        if not (count := left[component]):
            continue
        share = count / max(1, _all(request)[component])
        steps.append(
            PlannedStep(
                component, predicted.seconds * share, predicted.vram_bytes, predicted.ram_bytes
            )
        )
    prompts = Counter(spec.prompt for spec in request.images if spec.prompt.strip())
    same = len(set(prompts.values())) == 1
    return RunPlanned(
        len(prompts), max(prompts.values()) if same else 0, len(request.pictures),
        done, max(map(_side, request.images)), str(request.weights), str(path),
        plan.machine.speeds.start_s, tuple(steps),
    )  # fmt: skip


def _side(spec: ImageSpec) -> int:
    """The shorter side of a finished picture in pixels."""
    if spec.image and spec.is_enlarged_as_it_is:
        return FACTOR * min(spec.image.width, spec.image.height)
    return spec.size


def _all(request: Request) -> Counter[str]:
    """Component -> how many pictures it processes; for the text encoder, 1."""
    stages = [stage for spec in request.pictures for stage in spec.stages]
    return Counter(stages) + Counter(
        {catalog.TEXT_ENCODER: 1, catalog.POSTPROCESS: len(request.pictures)}
    )


def _left(plan: Plan, folder: FolderState, again: Mapping[int, ImageSpec]) -> Counter[str]:
    """Component -> how many pictures it has still to process; for the text encoder, 1 or 0."""
    request = plan.request
    finished = set(folder.images)
    left: Counter[str] = Counter()
    for spec in request.pictures:
        if spec.number in again or folder.image_file(spec) not in finished:
            before = again.get(spec.number, spec)
            left.update([catalog.POSTPROCESS, *_stages_left(spec, before, folder)])
    needs_texts = not request.pictures or any(catalog.facts(c).reads_t5 for c in left)
    texts = (folder.embedding_file(text) for text in texts_of(plan))
    if needs_texts and not all(file.is_file() for file in texts):
        left[catalog.TEXT_ENCODER] = 1
    return left


def _stages_left(spec: ImageSpec, before: ImageSpec, folder: FolderState) -> Iterator[str]:
    """The stages after the last one whose output is in the folder, as that of `before`."""
    for stage in reversed(spec.stages):
        if folder.tensor_file(stage, before).is_file():
            return
        yield stage
