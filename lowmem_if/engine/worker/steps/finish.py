"""The step of postprocessing: safety check, watermark, and the finished PNG files."""

from __future__ import annotations

from lowmem_if.cascade import catalog
from lowmem_if.engine.events import ImageSaved
from lowmem_if.engine.run_folder.folder_layout import is_whole_png
from lowmem_if.engine.worker.steps.png import describe, png_bytes
from lowmem_if.engine.worker.steps.stage_inputs import FolderInputs
from lowmem_if.engine.worker.steps.step_run import StepRun
from lowmem_if.stages.components import in_unit_range


def finish_images(run: StepRun) -> None:
    """Check, mark and write the images that are not finished in the folder yet."""
    folder, request = run.folder, run.folder.plan.request
    undone = [task for task in request.images if not is_whole_png(folder.image_file(task))]
    run.report_resumed(len(request.images) - len(undone), len(request.images))
    if not undone:
        return
    source = FolderInputs(folder)
    with run.loaded(checks=request.safety_checker, marks=request.watermark) as postprocessor:
        for task in undone:
            last = task.stages[-1]
            picture = in_unit_range(last, source.pictures(last, [task])[0])
            finished = postprocessor.run(picture, lambda _done, _total: None)
            if finished.flagged:
                run.notice(f"the safety checker blackened image {task.name}")
            file = folder.image_file(task)
            folder.write(file, png_bytes(finished.image, describe(folder, task)))
            folder.in_making_file(task).unlink(missing_ok=True)
            run.report(ImageSaved(catalog.POSTPROCESS, task.number, str(file)))
