"""How long a piece of work takes, or how often it can be done, within a share of time."""

from __future__ import annotations

from collections.abc import Callable

import torch

SHARE_S = 1.0
"""Seconds that one measurement may take; the last piece of work in it is finished."""

Work = Callable[[], object]
Clock = Callable[[], float]


def seconds_of(work: Work, device: str, clock: Clock, share_s: float = SHARE_S / 4) -> float:
    """Seconds of one piece of work: the least, since other programs can only make it slower."""
    best, begun = float("inf"), clock()
    while best == float("inf") or clock() - begun < share_s:
        start = clock()
        work()
        if device != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, clock() - start)
    return best


def rate_of(names: list[str], work: Callable[[str], None], clock: Clock) -> float:
    """How many names a second some work processes, until its time is over."""
    begun, done = clock(), 0
    for done, name in enumerate(names, start=1):  # noqa: B007
        work(name)
        if clock() - begun > 2 * SHARE_S:
            break
    return done / (clock() - begun)
