"""The step of an image stage: every image of the run, one micro-batch at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lowmem_if.engine.events import Drawing, ImageSaved, Preview
from lowmem_if.engine.worker.steps.pending import micro_batches
from lowmem_if.engine.worker.steps.png import png_bytes
from lowmem_if.engine.worker.steps.stage_inputs import FolderInputs
from lowmem_if.engine.worker.steps.step_run import StepRun
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.stages.components import image_inputs, in_unit_range
from lowmem_if.stages.finite import check_finite
from lowmem_if.stages.postprocess import to_image
from lowmem_if.stages.previews import Watching
from lowmem_if.stages.stage import ImageInputs
from lowmem_if.stages.text_encoder import cut_off
from lowmem_if.units import shorten
from lowmem_if.weights.files.tensor_file import is_sound, tensor_bytes
from lowmem_if.weights.small_parts import load_tokenizer


def draw_images(run: StepRun, preview_every: int) -> None:
    """Draw the images that are not in the folder yet, and write each at once.

    Args:
        preview_every: steps after which previews are written; 0: never.
    """
    if not run.step.config.facts.reads_t5:
        _warn_of_long_prompts(run)
    batches = micro_batches(run.tasks, run.step.config.batch)
    undone = [batch for batch in batches if not all(_is_drawn(run, task) for task in batch)]
    run.report_resumed(len(run.tasks) - sum(map(len, undone)), len(run.tasks))
    if not undone:
        return
    with run.loaded() as stage:
        for tasks in undone:
            for task, picture in zip(tasks, _draw(run, stage, tasks, preview_every), strict=True):
                check_finite(picture, f"image {task.name}")
                _write(run, task, picture)


def _draw(run: StepRun, stage: Any, tasks: list[ImageSpec], preview_every: int) -> torch.Tensor:
    component, number = run.step.component, tasks[0].number
    inputs = image_inputs(run.step, tasks, FolderInputs(run.folder))
    if preview_every:
        inputs = replace(inputs, watching=_previews(run, inputs, preview_every))

    def on_step(done: int, total: int) -> None:
        run.report(Drawing(component, number, done, total))

    pictures: torch.Tensor = stage.run(inputs, on_step)
    return pictures


def _previews(run: StepRun, inputs: ImageInputs, every: int) -> Watching:
    """Writes and reports previews of a micro-batch every so many steps."""

    def show(done: int, pictures: torch.Tensor) -> None:
        for task, picture in zip(inputs.tasks, pictures, strict=True):
            file = run.folder.in_making_file(task)
            run.folder.write(file, png_bytes(to_image(picture)))
            component, total = run.step.component, inputs.total_steps
            run.report(Preview(component, task.number, str(file), done, total))

    return Watching(every, show)


def _write(run: StepRun, task: ImageSpec, picture: torch.Tensor) -> None:
    """The preview is written first: once the tensor exists, the image counts as drawn."""
    folder, stage = run.folder, run.step.component
    file = folder.preview_file(stage, task)
    folder.write(file, png_bytes(to_image(in_unit_range(stage, picture))))
    folder.write(folder.tensor_file(stage, task), tensor_bytes(picture))
    run.report(ImageSaved(stage, task.number, str(file)))


def _is_drawn(run: StepRun, task: ImageSpec) -> bool:
    return is_sound(run.folder.tensor_file(run.step.component, task))


def _warn_of_long_prompts(run: StepRun) -> None:
    tokenizer = load_tokenizer(run.place.folder("tokenizer"))
    texts = [text for task in run.tasks for text in (task.words, task.negative_prompt)]
    for text in dict.fromkeys(texts):
        if cut := cut_off(tokenizer, text):
            run.notice(
                f"{shorten(text, 40)!r} is too long for the upscaler's own encoder, "
                f"which does without: {cut!r}"
            )
