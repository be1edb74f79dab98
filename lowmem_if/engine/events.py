"""What happens in a run, as small values: from the worker through a pipe to whoever shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Kinds: `opened` (`text`: the run folder),
    `starting` (a worker, which imports the libraries), `started` (a component's turn; `total`
    images, `batch` together), `going_on` (`done` of `total` images are there from before), `loading`
    (`done` of `total` bytes), `warm` (the component is loaded still, `total` bytes), `drawing` (image
    `number`, `done` of `total` denoising steps), `preview` (image `number` in the making; `text`: its
    file), `saved` (image `number`; `text`: its file), `finished` and `skipped` (a component), `evicted`
    (a component that had stayed loaded; `text`: what is left of it, as JSON), `notice` (`text` for the
    user), `retry` (`text`: the cheaper plan, or the same again in a new worker). From the worker only:
    `shelf` (`text`: what stays loaded, as JSON), and the answers to an order: `done`, `error` (`name` of
    the class, `text`), `out_of_memory` (`text`; `name`: `RAM` where nothing else can be meant; `total`
    bytes of VRAM are free, if it was seen before anything failed; 0: it was not) and
    `segments_fail` (`text`: what the driver says of torch's expandable segments).
    """

    kind: str
    component: str = ""
    number: int = 0
    done: int = 0
    total: int = 0
    batch: int = 1
    text: str = ""
    name: str = ""

    def to_line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=True)

    @staticmethod
    def from_line(line: str) -> Event:
        return Event(**json.loads(line))


Report = Callable[[Event], None]
"""Whoever shows or forwards events."""


def ignore(_event: Event) -> None:
    """A report that shows nothing."""
