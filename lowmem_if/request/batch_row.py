"""One line of a batch: a prompt, and whatever else is its own and not the whole run's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lowmem_if.request.input_images import Picture, look_at


@dataclass(frozen=True, slots=True)
class BatchRow:
    """What a line says of itself; None is what the request says for all lines.

    The values are those of `Request`, which checks them. Pictures may be given as paths.

    Attributes:
        seed: one number, or a series: a picture each.
        images: pictures of this line; its seed counts up.

    Raises:
        PictureError: a picture that cannot be used.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    seed: tuple[int, ...] | None = None
    images: int | None = None
    size: int | None = None
    mode: str | None = None
    image: Picture | None = None
    mask: Picture | None = None
    strength: tuple[float, ...] | None = None
    style_prompt: str | None = None

    def __post_init__(self) -> None:
        for name in ("image", "mask"):
            if isinstance(path := getattr(self, name), str | Path):
                object.__setattr__(self, name, look_at(path))
        for name in ("seed", "strength"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, tuple):
                several = isinstance(value, list | range)
                object.__setattr__(self, name, tuple(value) if several else (value,))

    def values(self) -> dict[str, Any]:
        """What the line says beside its prompt, without what it leaves open."""
        values = {name: getattr(self, name) for name in NAMES if name != "prompt"}
        return {name: value for name, value in values.items() if value is not None}


NAMES = tuple(field.name for field in fields(BatchRow))
