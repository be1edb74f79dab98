"""Component -> its stage, and the inputs of an image stage: one table for worker and dry run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from lowmem_if.cascade import catalog
from lowmem_if.planning.plan import Step
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.stages.pipelines import to_unit_range
from lowmem_if.stages.postprocess import Postprocessor
from lowmem_if.stages.stage import ImageInputs, InputSource, Stage
from lowmem_if.stages.stage_1 import Stage1
from lowmem_if.stages.stage_2 import Stage2
from lowmem_if.stages.text_encoder import TextEncoder
from lowmem_if.stages.upscaler import Upscaler

STAGES: Mapping[str, type[Stage[Any, Any]]] = {
    catalog.TEXT_ENCODER: TextEncoder,
    catalog.STAGE_1: Stage1,
    catalog.STAGE_2: Stage2,
    catalog.UPSCALER: Upscaler,
    catalog.POSTPROCESS: Postprocessor,
}


def image_inputs(step: Step, tasks: Sequence[ImageSpec], source: InputSource) -> ImageInputs:
    """What an image stage draws a micro-batch of tasks from."""
    component, sampling = step.component, step.sampling_of(tasks[0])
    images, masks = (source.images(tasks, kind) for kind in ("image", "mask"))
    before = stage_before(component, tasks[0])
    pictures = source.pictures(before, tasks) if before else None
    embeds = negative = style = None
    if catalog.facts(component).reads_t5:
        embeds = source.embeddings([task.words for task in tasks])
        if sampling.guidance_scale > 1:
            negative = source.embeddings([task.negative_prompt for task in tasks])
        if tasks[0].is_styled:
            style = source.embeddings([task.style_prompt for task in tasks])
    return ImageInputs(
        tasks, sampling, images, masks, pictures, embeds, negative, style, step.config.tile
    )


def stage_before(component: str, task: ImageSpec) -> str | None:
    """The stage whose output `component` goes on with; None if it is the task's first."""
    return {after: stage for stage, after in pairwise((*task.stages, catalog.POSTPROCESS))}.get(
        component
    )


def stage_after(component: str, task: ImageSpec) -> str:
    """The component that goes on with the output of `component`."""
    return dict(pairwise((*task.stages, catalog.POSTPROCESS)))[component]


def in_unit_range(component: str, picture: torch.Tensor) -> torch.Tensor:
    """An output of a stage in [0, 1]; the upscaler's is in it already."""
    return picture if component == catalog.UPSCALER else to_unit_range(picture)
