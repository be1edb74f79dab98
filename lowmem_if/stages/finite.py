"""Check every result for NaN and infinity: a network that overflows draws black images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from lowmem_if.errors import NotFinite


def is_finite(numbers: torch.Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite."""
    return bool(numbers.isfinite().all())


def check_finite(numbers: torch.Tensor, what: str) -> None:
    """Raise `NotFinite`, which names `what`, if any number of a tensor is NaN or infinite."""
    if not is_finite(numbers):
        raise NotFinite(what)


@contextmanager
def checked(pipeline: Any) -> Iterator[None]:
    """Inside, check what the UNet predicts at every step and what a VAE decodes.

    A later check would miss some of it: schedulers and image processors clamp their results, which turns
    infinity into white. The check copies one number from the device at each step, and ends a run at its
    first bad step instead of its last.

    Raises:
        NotFinite: a prediction or a decoded picture holds NaN or infinity.
    """
    scheduler = pipeline.scheduler
    decoder = getattr(getattr(pipeline, "vae", None), "decoder", None)
    before, step, done = vars(scheduler).get("step"), scheduler.step, 0

    @wraps(step)  # the pipelines ask for its signature
    def stepping(prediction: torch.Tensor, *inputs: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        check_finite(prediction, f"the prediction of denoising step {done}")
        return step(prediction, *inputs, **options)

    def look(_module: Any, _inputs: Any, decoded: torch.Tensor) -> None:
        check_finite(decoded, "the decoded picture")

    hook = decoder.register_forward_hook(look) if decoder is not None else None
    scheduler.step = stepping
    try:
        yield
    finally:
        if before is None:
            del scheduler.step
        else:
            scheduler.step = before
        if hook is not None:
            hook.remove()
