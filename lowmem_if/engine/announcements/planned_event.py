"""The event before a run: what it will do, how long it takes, and how much memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowmem_if.engine.events import Event
from lowmem_if.units import counted, format_bytes, format_seconds


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What a component still has to do: predicted seconds, loading included, and peaks of memory."""

    component: str
    seconds: float
    vram_bytes: int
    ram_bytes: int


@dataclass(frozen=True, slots=True)
class RunPlanned(Event):
    """What a run will do, before its folder is changed and its first component is loaded.

    Attributes:
        prompts: how many different prompts it has.
        each: how many pictures of each prompt; 0: not the same number of each.
        images: how many pictures; 0: it only encodes prompts.
        images_done: how many of them are finished.
        size: the shorter side of the largest picture in pixels.
        weights: the cascade, and the parts that are loaded from elsewhere.
        folder: the run folder.
        start_s: seconds until the worker has started.
        steps: what its components still have to do, in order.
    """

    prompts: int
    each: int
    images: int
    images_done: int
    size: int
    weights: str
    folder: str
    start_s: float
    steps: tuple[PlannedStep, ...]
    kind: Literal["planned"] = "planned"

    @property
    def seconds(self) -> float:
        """Predicted seconds of all that is left to do."""
        return self.start_s + sum(step.seconds for step in self.steps)

    @property
    def text(self) -> str:
        """All of it in one line."""
        peaks = [
            f"{format_bytes(peak)} {name}"
            for name, peak in (
                ("VRAM", max((step.vram_bytes for step in self.steps), default=0)),
                ("RAM", max((step.ram_bytes for step in self.steps), default=0)),
            )
            if peak
        ]
        memory = f", peak {', '.join(peaks)}" if peaks else ""
        return (
            f"{self._what()} with {self.weights}: about {format_seconds(self.seconds)}{memory}; "
            f"run folder {self.folder}"
        )

    def _what(self) -> str:
        if not self.images:
            return f"{counted(self.prompts, 'prompt')} to encode"
        pictures = counted(self.images, "picture")
        if self.images_done:
            return f"{self.images - self.images_done} of {pictures} left, to {self.size} px"
        if self.prompts > 1:
            times = f" x {self.each} =" if self.each else ","
            return f"{self.prompts} prompts{times} {pictures} to {self.size} px"
        return f"{pictures} to {self.size} px"
