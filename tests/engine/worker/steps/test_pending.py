"""Which images a stage draws together."""

from __future__ import annotations

from lowmem_if.engine.worker.steps.pending import micro_batches
from lowmem_if.request.image_spec import ImageSpec


def images(*aspects: tuple[int, int] | None) -> list[ImageSpec]:
    return [
        ImageSpec(number, "a red circle", number, aspect=aspect)
        for number, aspect in enumerate(aspects)
    ]


def numbers(batches: list[list[ImageSpec]]) -> list[list[int]]:
    return [[task.number for task in batch] for batch in batches]


def test_neighbours_are_drawn_together_up_to_the_batch_size() -> None:
    """Five images in batches of two: the last one is alone."""
    assert numbers(micro_batches(images(*[None] * 5), 2)) == [[0, 1], [2, 3], [4]]


def test_images_of_another_shape_begin_a_new_batch() -> None:
    """A batch has one shape, and images keep their order."""
    mixed = images(None, None, (3, 2), (3, 2), None)
    assert numbers(micro_batches(mixed, 4)) == [[0, 1], [2, 3], [4]]


def test_nothing_to_draw_is_no_batch() -> None:
    """An empty list gives an empty list."""
    assert micro_batches([], 3) == []
