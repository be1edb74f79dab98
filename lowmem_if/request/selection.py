"""Choose, then enlarge: what is asked for when pictures of a finished run go on to a larger size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lowmem_if.cascade import catalog
from lowmem_if.cascade.modes import TEXT
from lowmem_if.errors import RequestError
from lowmem_if.request.batch_row import BatchRow
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.request import Request


def picked(request: Request, numbers: Sequence[int], size: int) -> tuple[ImageSpec, ...]:
    """The pictures of a request that have these numbers, each once, if all of them can be enlarged.

    Raises:
        RequestError: a number is none of the request's, or the picture has that size already.
    """
    tasks = request.tasks
    if size not in catalog.SIZES:
        raise RequestError(f"size {size!r} is not one of 64, 256 and 1024")
    if not numbers:
        raise RequestError("no picture is picked: give their numbers, like --pick 3,7")
    for number in numbers:
        if not 0 <= number < len(tasks):
            raise RequestError(
                f"there is no picture {number}: pick from 0 to {len(tasks) - 1}, the files' numbers"
            )
        _check_larger(tasks[number], size)
    return tuple(tasks[number] for number in dict.fromkeys(numbers))


def alone(request: Request, picks: Sequence[ImageSpec], size: int) -> Request:
    """The request for these pictures and nothing else, in this order, at another size."""
    return _of_lines(request, [_line(task, size) for task in picks])


def among_others(request: Request, picks: Sequence[ImageSpec], size: int) -> Request:
    """The request for all its pictures, under their numbers, these at another size."""
    chosen = {task.number for task in picks}
    return _of_lines(
        request,
        [_line(task, size if task.number in chosen else task.size) for task in request.tasks],
    )


def _check_larger(task: ImageSpec, size: int) -> None:
    if size <= task.size:
        raise RequestError(
            f"picture {task.number} has {task.size} pixels: give --size more than that, up to 1024"
        )
    larger = replace(task, size=size)
    if larger.stages[: len(task.stages)] != task.stages:
        raise RequestError(
            f"picture {task.number} was made by {task.mode} at {task.size} pixels, which does not lead "
            f"to {size}: upscale its file"
        )


def _of_lines(request: Request, lines: list[BatchRow]) -> Request:
    """What holds for all pictures stays; what is one picture's own goes into its line."""
    return replace(
        request,
        prompts=(), lines=tuple(lines), seed=(lines[0].seed or (0,))[:1], images=1,
        size=max(line.size or 0 for line in lines), negative_prompt="", style_prompt="",
        mode=TEXT, image=None, mask=None, strength=None,
    )  # fmt: skip


def _line(task: ImageSpec, size: int) -> BatchRow:
    return BatchRow(
        task.prompt, task.negative_prompt, (task.seed,), 1, size, task.mode, task.image, task.mask,
        task.strength, task.style_prompt,
    )  # fmt: skip
