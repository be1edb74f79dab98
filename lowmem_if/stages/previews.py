"""Previews: the finished image as the noise scheduler predicts it at a step.

The schedulers compute this prediction at every step, and the pipelines drop it. It is clear much earlier
than the noisy image itself, and reading it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Watching:
    """What receives previews.

    Attributes:
        every: denoising steps between two previews.
        show: called with the steps done and the predicted images (n, 3, height, width) in [0, 1].
    """

    every: int
    show: Callable[[int, torch.Tensor], None]


@contextmanager
def watched(
    scheduler: Any, watching: Watching | None, look: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Inside, every N-th step of the scheduler is shown.

    Args:
        look: makes images in [0, 1] of what the scheduler works on.
    """
    if watching is None:
        yield
        return
    step, done = scheduler.step, 0

    @wraps(step)  # the pipelines ask for its signature
    def stepping(*inputs: Any, **options: Any) -> Any:
        nonlocal done
        result = step(*inputs, **options)
        done += 1
        if done % watching.every == 0:
            # DDPM and DDIM return the prediction second; other schedulers show the noisy image.
            watching.show(done, look(result[1] if len(result) > 1 else result[0]).float().cpu())
        return result

    scheduler.step = stepping
    try:
        yield
    finally:
        del scheduler.step
