"""Enlarge chosen pictures of a finished run; the stages that drew them are not run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lowmem_if.cascade.catalog import IMAGE_STAGES, TEXT_ENCODER
from lowmem_if.cascade.strategies import EXACT, parse_pin
from lowmem_if.engine.announcements.run_summary import run_summary
from lowmem_if.engine.events import Notice, Report, ignore
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.input_copies import KINDS
from lowmem_if.engine.run_folder.out_folder import check_nothing_lost
from lowmem_if.engine.run_folder.tensors_left import lost_tensors
from lowmem_if.engine.run_folder.writing import writing
from lowmem_if.errors import RunFolderError
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.selection import alone, among_others, picked
from lowmem_if.weights.files.atomic import write_bytes


def continued(
    source: RunFolder,
    numbers: Sequence[int],
    size: int,
    machine: Machine,
    out: Path | None = None,
    *,
    other_versions: bool = False,
    report: Report = ignore,
) -> RunFolder:
    """The folder in which chosen pictures will be enlarged: the run's own, or a new one.

    Nothing is drawn yet. The finished steps keep their plan. The others are planned for `machine` with
    the run's own pins, so the pixels are those of a run that drew pictures of `size` at once.

    Args:
        numbers: the pictures' numbers, as in their file names.
        out: a new folder, in which the pictures get new numbers; None: the run's own, in which the
            larger pictures replace the smaller ones.
        other_versions: continue even if libraries that pixels depend on have changed.
        report: called with what the run will do, before anything is changed.

    Raises:
        RequestError: a picture does not exist or is not smaller than `size`.
        RunFolderError: the run is not finished, or was begun with other versions of libraries that the
            larger pictures depend on.
    """
    request = source.plan.request
    picks = picked(request, numbers, size)
    if not source.complete:
        raise RunFolderError(
            f"{source.path} is not finished: `lowmem-if resume {source.path}` first"
        )
    asked = (alone if out else among_others)(request, picks, size)
    pins = {component: parse_pin(component, pin) for component, pin in source.plan.pins.items()}
    plan = _with_done_steps(
        source.plan, make_plan(machine, asked, prefer=_preference(source.plan), pins=pins)
    )
    lost = _check_tensors(source, out)
    done = set() if lost else {step.component for step in source.plan.steps}
    differs = source.check_versions(
        others=other_versions, to_do=[step for step in plan.steps if step.component not in done]
    )
    if out is not None:
        check_nothing_lost(out, len(picks))
    again = dict(enumerate(picks)) if out else {spec.number: spec for spec in picks}
    report(run_summary(plan, out or source.path, source, again))
    if lost:
        report(Notice(f"{source.path} has no tensors any more: the pictures are drawn again first"))
    if out is None:
        return _grown(source, plan, picks)
    _copy_sources(source, picks, out)
    folder = RunFolder.for_plan(out, plan)
    with folder.locked():
        for task, old in zip(folder.plan.request.images, picks, strict=True):
            _copy(source, old, folder, task)
        drawn = {stage for task in picks for stage in task.stages}
        if differs:
            folder.note(differs)
        folder.inherit(source, [TEXT_ENCODER, *(s for s in IMAGE_STAGES if s in drawn)])
    return folder.reload()


def _check_tensors(source: RunFolder, out: Path | None) -> bool:
    """Whether all pictures of the run have lost their tensors, most likely by `clean`.

    Raises:
        RunFolderError: they are, and in the run's own folder all its pictures would be drawn again.
    """
    lost = len(lost_tensors(source)) == len(source.plan.request.pictures)
    if lost and out is None:
        raise RunFolderError(
            f"{source.path} has no tensors any more (`lowmem-if clean` removes them): give --out a new "
            "folder, in which only the chosen pictures are drawn again"
        )
    return lost


def _preference(old: Plan) -> str | None:
    """What the new steps may change; runs of version 0.2 were `exact` by default, and remain so."""
    return EXACT if old.prefer == EXACT else old.asked


def _with_done_steps(old: Plan, new: Plan) -> Plan:
    """The new plan with the steps of the old one, whose pictures are drawn."""
    done = {step.component: step for step in old.steps}
    steps = tuple(done.get(step.component, step) for step in new.steps)
    return replace(new, steps=steps, automatic=old.automatic)


def _grown(folder: RunFolder, plan: Plan, picks: Sequence[ImageSpec]) -> RunFolder:
    with folder.locked():
        folder = folder.reload()
        # The small pictures are removed first: after a kill here, the old run finishes them again.
        with writing(folder.path):
            for task in picks:
                folder.image_file(task).unlink(missing_ok=True)
        folder.extend(plan)
    return folder.reload()


def _copy_sources(source: RunFolder, picks: Sequence[ImageSpec], out: Path) -> None:
    """Copy input pictures and given embeddings, whose files may be gone, into an empty folder."""
    files = [source.source_file(t, kind) for t in picks for kind in KINDS if getattr(t, kind)]
    if source.plan.request.embeds is not None:
        files += [f for task in picks for f in _embeddings(source, task) if f.is_file()]
    with writing(out):
        if not files or (out.is_dir() and any(out.iterdir())):
            return
        for file in dict.fromkeys(files):
            (out / file.parent.name).mkdir(parents=True, exist_ok=True)
            write_bytes(out / file.parent.name / file.name, file.read_bytes())


def _embeddings(folder: RunFolder, task: ImageSpec) -> list[Path]:
    """The files of a task's embeddings; not all of them exist."""
    texts = (task.words, task.negative_prompt, task.style_prompt)
    return [folder.embedding_file(text) for text in texts]


def _copy(source: RunFolder, old: ImageSpec, target: RunFolder, new: ImageSpec) -> None:
    """Copy the embeddings and the stages' pictures of one image."""
    pairs = list(zip(_embeddings(source, old), _embeddings(target, new), strict=True))
    for stage in old.stages:
        pairs.append((source.preview_file(stage, old), target.preview_file(stage, new)))
        pairs.append((source.tensor_file(stage, old), target.tensor_file(stage, new)))
    with writing(target.path):
        for before, after in pairs:
            if before.is_file() and not after.is_file():
                after.parent.mkdir(exist_ok=True)
                target.write(after, before.read_bytes())
