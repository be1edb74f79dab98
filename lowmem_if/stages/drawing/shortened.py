"""Leave out passes of a UNet while a pipeline draws: what they would give is forecast.

A pipeline calls its UNet once for each step. A step that is left out gets the straight line through the
last two outputs, over the logarithm of the signal-to-noise ratio; that is exact if the output changes
evenly. A step without guidance computes the prompt alone; its output counts for both halves, so the
pipeline's guidance changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lowmem_if.request.denoising.shortcuts import EVERYTHING
from lowmem_if.request.sampling import Sampling


@contextmanager
def shortened(pipeline: Any, sampling: Sampling) -> Iterator[None]:
    """Inside, the pipeline's UNet computes only the passes of `sampling`."""
    unet = pipeline.unet
    if sampling.shortcuts == EVERYTHING:
        yield
        return
    own = unet.__dict__.get("forward")  # offloading replaces it on the module, too
    unet.forward = _Shortened(unet.forward, pipeline.scheduler, sampling)
    try:
        yield
    finally:
        del unet.forward
        if own is not None:
            unet.forward = own


class _Shortened:
    """A UNet's forward that counts its calls."""

    def __init__(self, forward: Any, scheduler: Any, sampling: Sampling) -> None:
        self._forward, self._scheduler, self._sampling = forward, scheduler, sampling
        self._step = 0
        self._before: list[tuple[float, torch.Tensor]] = []

    def __call__(self, sample: torch.Tensor, timestep: Any, *args: Any, **given: Any) -> Any:
        step, self._step = self._step, self._step + 1
        place = _log_ratio(self._scheduler, timestep)
        sampling = self._sampling
        if not sampling.shortcuts.computes(step, sampling.count):
            return (_line(self._before, place),)
        if sampling.is_guided and not sampling.shortcuts.guides(step, sampling.count):
            output = self._prompt_alone(sample, timestep, *args, **given)
        else:
            (output,) = self._forward(sample, timestep, *args, **given)
        self._before = [*self._before[-1:], (place, output)]
        return (output,)

    def _prompt_alone(
        self, sample: torch.Tensor, timestep: Any, *args: Any, **given: Any
    ) -> torch.Tensor:
        """The output of the batch's second half, for both halves."""
        half = len(sample) // 2
        for name in ("encoder_hidden_states", "class_labels"):
            value = given.get(name)
            if isinstance(value, torch.Tensor) and len(value) == len(sample):
                given[name] = value[half:]
        (output,) = self._forward(sample[half:], timestep, *args, **given)
        return torch.cat([output, output])


def _log_ratio(scheduler: Any, timestep: Any) -> float:
    """The logarithm of the signal-to-noise ratio at a timestep."""
    kept = scheduler.alphas_cumprod[int(timestep)].double()
    return float(torch.log(kept / (1 - kept)))


def _line(points: list[tuple[float, torch.Tensor]], place: float) -> torch.Tensor:
    """The value at `place` of the straight line through two points."""
    (x0, y0), (x1, y1) = points
    return y1 + (y1 - y0) * ((place - x1) / (x1 - x0))
