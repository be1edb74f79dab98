"""Estimates how long a step still takes from its own denoising steps so far, and the whole run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

from lowmem_if.cascade.catalog import TEXT_ENCODER, facts
from lowmem_if.engine.announcements.planned_event import RunPlanned
from lowmem_if.engine.events import (
    Drawing,
    Event,
    ImageSaved,
    Loading,
    StepFinished,
    StepResumed,
    StepSkipped,
    StepStarted,
)

_REMEMBERED = 50
"""How many denoising steps count: enough for a steady figure, few enough to notice a busy machine."""


class Eta:
    """Follows the events of a run: how long the current step has taken, and how much time is left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._planned: dict[str, float] = {}  # component -> seconds, of those that are not done
        self._pace = 1.0  # how much longer than planned the last measured image stage takes
        self._begin(StepStarted("", 0))

    @property
    def took_s(self) -> float:
        """Seconds since the step began."""
        return self._clock() - self._began

    @property
    def left_s(self) -> float | None:
        """Seconds that the step still takes (while it loads: the loading); None if unknown."""
        if self._loading:
            return self._loading_left_s()
        if self._all and not self._images:
            return 0.0
        if not self._steps or not self._images:
            return None
        draws = -(-self._images // self._batch)
        return median(self._steps) * (draws * max(1, self._total) - self._done)

    @property
    def run_left_s(self) -> float | None:
        """Seconds that the whole run still takes; None if its plan is not known.

        The steps to come are predicted by the plan. The predictions for image stages are corrected by
        how much longer or shorter than predicted the last such stage takes.
        """
        if not self._planned:
            return None
        now = self.left_s
        if now is None or self._loading:
            now = max(self._planned.get(self._component, 0.0) - self.took_s, now or 0.0)
        later = sum(
            seconds * (1.0 if facts(component).encodes else self._pace)
            for component, seconds in self._planned.items()
            if component != self._component
        )
        return now + later

    @property
    def saved(self) -> tuple[int, int]:
        """How many pictures of the step are done, and how many it has."""
        return self._all - self._images, self._all

    def __call__(self, event: Event) -> None:
        match event:
            case RunPlanned():
                self._planned = {step.component: step.seconds for step in event.steps}
            case StepStarted():
                self._begin(event)
            case StepFinished() | StepSkipped():
                self._planned.pop(event.component, None)
            case Loading():
                self._load(event)
            case StepResumed():
                self._images = event.images - event.images_done
            case Drawing():
                self._step(event)
            case ImageSaved():
                self._save()

    def _save(self) -> None:
        self._images, self._done = max(0, self._images - 1), 0
        now = self._clock()
        if not self._total and self._last is not None:
            self._steps.append(now - self._last)  # a component without steps: a picture is one
        self._last = None if self._total else now

    def _begin(self, event: StepStarted) -> None:
        self._began, self._component = self._clock(), event.component
        # The text encoder's denoising steps are prompts, and it has one "picture".
        self._all = self._images = 1 if event.component == TEXT_ENCODER else event.images
        self._batch = event.batch
        self._done = self._total = 0
        self._steps: deque[float] = deque(maxlen=_REMEMBERED)
        self._last = None
        self._loading: tuple[float, int, int] | None = None

    def _load(self, event: Loading) -> None:
        began = self._loading[0] if self._loading else self._clock()
        done, total = event.loaded_bytes, event.total_bytes
        self._loading = (began, done, total) if done < total else None

    def _loading_left_s(self) -> float | None:
        assert self._loading is not None
        began, done, total = self._loading
        return (self._clock() - began) * (total - done) / done if done else None

    def _step(self, event: Drawing) -> None:
        now = self._clock()
        if self._last is not None and event.step > self._done:
            self._steps.append((now - self._last) / (event.step - self._done))
        self._last, self._done, self._total = now, event.step, event.steps
        self._measure_pace()

    def _measure_pace(self) -> None:
        planned, left = self._planned.get(self._component), self.left_s
        if planned and left is not None and not facts(self._component).encodes:
            self._pace = (self.took_s + left) / planned
