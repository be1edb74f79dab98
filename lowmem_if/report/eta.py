"""How long a component's turn still takes, told from its own steps so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

from lowmem_if.cascade.catalog import TEXT_ENCODER
from lowmem_if.engine.events import Event

_REMEMBERED = 50
"""Steps: enough for a steady figure, few enough to follow a machine that has become busy."""


class Eta:
    """Follows the events of a run; says how long the turn that is on has taken, and what is left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._begin(Event("started"))

    @property
    def took_s(self) -> float:
        """Seconds since the turn began."""
        return self._clock() - self._began

    @property
    def left_s(self) -> float | None:
        """Seconds that the turn (while it loads: its loading) still takes; None if it cannot be told."""
        if self._loading:
            return self._loading_left_s()
        if not self._steps or not self._images:
            return None
        draws = -(-self._images // self._batch)
        return median(self._steps) * (draws * max(1, self._total) - self._done)

    @property
    def saved(self) -> tuple[int, int]:
        """Pictures that the turn has done, and all of them."""
        return self._all - self._images, self._all

    def __call__(self, event: Event) -> None:
        match event.kind:
            case "started":
                self._begin(event)
            case "loading":
                self._load(event)
            case "going_on":
                self._images = event.total - event.done
            case "drawing":
                self._step(event)
            case "saved":
                self._save()

    def _save(self) -> None:
        self._images, self._done = max(0, self._images - 1), 0
        now = self._clock()
        if not self._total and self._last is not None:
            self._steps.append(now - self._last)  # a component without steps: a picture is one
        self._last = None if self._total else now

    def _begin(self, event: Event) -> None:
        self._began = self._clock()
        # The text encoder's steps are prompts, all of them one go.
        self._all = self._images = 1 if event.component == TEXT_ENCODER else event.total
        self._batch = event.batch
        self._done = self._total = 0
        self._steps: deque[float] = deque(maxlen=_REMEMBERED)
        self._last = None
        self._loading: tuple[float, int, int] | None = None

    def _load(self, event: Event) -> None:
        began = self._loading[0] if self._loading else self._clock()
        self._loading = (began, event.done, event.total) if event.done < event.total else None

    def _loading_left_s(self) -> float | None:
        assert self._loading is not None
        began, done, total = self._loading
        return (self._clock() - began) * (total - done) / done if done else None

    def _step(self, event: Event) -> None:
        now = self._clock()
        if self._last is not None and event.done > self._done:
            self._steps.append((now - self._last) / (event.done - self._done))
        self._last, self._done, self._total = now, event.done, event.total
