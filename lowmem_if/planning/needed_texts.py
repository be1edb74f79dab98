"""The texts that a plan needs embeddings for."""

from __future__ import annotations

from lowmem_if.cascade.catalog import T5_STAGES
from lowmem_if.cascade.modes import EMBED
from lowmem_if.planning.plan import Plan


def texts_of(plan: Plan) -> list[str]:
    """Every text that a stage needs an embedding for, once; negative ones are last.

    A request that only encodes prompts needs all of them.
    """
    positive, negative = [], []
    for task in plan.request.images:
        if task.mode == EMBED:
            positive.append(task.prompt)
            continue
        steps = [plan.step(stage) for stage in task.stages if stage in T5_STAGES]
        if steps:
            positive += [task.words, task.style_prompt] if task.is_styled else [task.words]
        if any(step.sampling_of(task).guidance_scale > 1 for step in steps):
            negative.append(task.negative_prompt)
    return list(dict.fromkeys([*positive, *negative]))
