"""What a component has to do in a run: texts to encode, and pictures in groups that are drawn alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import Cascade
from lowmem_if.cascade.modes import defaults_for
from lowmem_if.request.image_spec import ImageSpec, Sampling
from lowmem_if.request.request import Request
from lowmem_if.request.tiling import UPSCALER_SIDE, boxes

_FOR_ALL = (catalog.TEXT_ENCODER, catalog.FINISH)


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts, and pictures that are drawn alike.

    Attributes:
        area: pixels of a picture over those of the square that the stage was made for.
        cut_from: width and height of a picture that the upscaler enlarges in tiles; None: never cut.
    """

    texts: int
    images: int
    sampling: Sampling | None = None
    area: float = 1.0
    cut_from: tuple[int, int] | None = None

    @property
    def guided(self) -> int:
        """Pictures that one image takes through a UNet: two where guidance compares them."""
        return 2 if self.sampling and self.sampling.guidance_scale > 1 else 1

    def parts(self, tile: int) -> int:
        """In how many tiles of that side each picture is drawn."""
        return len(boxes(*self.cut_from, tile)) if self.cut_from else 1

    def part_area(self, tile: int) -> float:
        """What is drawn at once, over the square that the stage was made for."""
        return min(self.area, (tile / UPSCALER_SIDE) ** 2) if self.cut_from and tile else self.area


def tasks_of(request: Request, component: str) -> list[ImageSpec]:
    """The pictures that a component of a request has to do with."""
    return [task for task in request.tasks if component in (*task.stages, *_FOR_ALL)]


def samplings_of(request: Request, cascade: Cascade, component: str) -> dict[str, Sampling]:
    """How a component draws in each mode of its pictures; empty of one that draws nothing."""
    found = {}
    for mode in dict.fromkeys(task.mode for task in tasks_of(request, component)):
        if defaults := defaults_for(cascade, mode, component):
            found[mode] = request.sampling(component, defaults)
    return found


def workloads_of(request: Request, cascade: Cascade, component: str) -> tuple[Workload, ...]:
    """All that one component of a request does; never empty."""
    tasks, samplings = tasks_of(request, component), samplings_of(request, cascade, component)
    if component == catalog.TEXT_ENCODER:
        scales = request.guidance_scale
        return (Workload(len(_texts(tasks, guided=scales is None or max(scales) > 1)), len(tasks)),)
    alike = Counter(
        (
            samplings[task.mode].of(task, component) if samplings else None,
            task.area_in(component),
            _cut_from(task) if component == catalog.UPSCALER else None,
        )
        for task in tasks
    )
    return tuple(Workload(0, number, *key) for key, number in alike.items()) or (Workload(0, 0),)


def _texts(tasks: list[ImageSpec], *, guided: bool) -> set[str]:
    """Prompts, styles and, where anything is guided, negative prompts, each counted once."""
    read = [task for task in tasks if task.needs_t5]
    texts = {text for task in read for text in (task.words, task.style_prompt) if text}
    return texts | ({task.negative_prompt for task in read} if guided else set())


def _cut_from(task: ImageSpec) -> tuple[int, int] | None:
    return (
        (task.image.width, task.image.height) if task.image and task.is_enlarged_as_it_is else None
    )
