"""What of a run is not done yet: which components, which texts, and which images go together."""

from __future__ import annotations

from collections.abc import Sequence

from lowmem_if.cascade import catalog
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.planning.needed_texts import texts_of
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.stages.components import stage_after
from lowmem_if.weights.files.tensor_file import is_sound


def pending_components(folder: RunFolder) -> set[str]:
    """The components whose step must run: not done, or done and then lost while still needed."""
    request = folder.plan.request
    pending = {component for component in request.components if not folder.is_done(component)}
    if len(folder.images) < len(request.pictures):
        pending.add(catalog.POSTPROCESS)
    for stage in reversed(catalog.IMAGE_STAGES):
        tasks = [task for task in request.images if stage in task.stages]
        needed = [task for task in tasks if stage_after(stage, task) in pending]
        if not all(is_sound(folder.tensor_file(stage, task)) for task in needed):
            pending.add(stage)
    texts = [folder.embedding_file(text) for text in texts_of(folder.plan)]
    encoded = not request.pictures or not pending.isdisjoint(catalog.T5_STAGES)
    if encoded and request.embeds is None and not all(map(is_sound, texts)):
        pending.add(catalog.TEXT_ENCODER)
    return pending


def micro_batches(tasks: Sequence[ImageSpec], size: int) -> list[list[ImageSpec]]:
    """Neighbours that a stage can draw at once, up to `size` of them.

    They are cut by image number, so that a resumed run cuts them the same way.
    """
    batches: list[list[ImageSpec]] = []
    for task in tasks:
        if batches and len(batches[-1]) < size and batches[-1][0].drawn_with(task):
            batches[-1].append(task)
        else:
            batches.append([task])
    return batches
