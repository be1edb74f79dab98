"""Noise that is the same in every number type and with every torch: drawn in float32, then rounded.

diffusers draws noise in the compute type of a pipeline. Before 2.12 torch computes normal numbers of
16-bit types in that type: the same seed gives entirely different numbers (correlation -0.01 on torch
2.11), so a T4 in float16 would draw another image than a CPU in float32. From 2.12 on torch itself
computes them in float32, and the noise here is that of diffusers, bit for bit, if the count of numbers
is divisible by 16, which is true for every square image of IF.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch

_NAME = "randn_tensor"
"""The function that every pipeline and scheduler of diffusers draws its noise with."""


@contextmanager
def float32_noise(pipeline: Any) -> Iterator[None]:
    """Inside, a diffusers pipeline and its schedulers draw noise in float32 and then round it."""
    with ExitStack() as undo:
        for module in _modules_that_draw(pipeline):
            own = getattr(module, _NAME)
            setattr(module, _NAME, partial(_rounded, own))
            undo.callback(setattr, module, _NAME, own)
        yield


def _modules_that_draw(pipeline: Any) -> set[ModuleType]:
    parts = [pipeline, *filter(None, pipeline.components.values())]
    modules = {sys.modules[type(part).__module__] for part in parts}
    return {module for module in modules if hasattr(module, _NAME)}


def _rounded(
    draw: Any, shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, **rest: Any
) -> torch.Tensor:
    """What `randn_tensor` returns; 16-bit numbers are rounded where they were drawn."""
    if dtype not in (torch.float16, torch.bfloat16):
        noise: torch.Tensor = draw(shape, generator=generator, device=device, dtype=dtype, **rest)
        return noise
    first = generator[0] if isinstance(generator, list) else generator
    drawn_on = first.device if first is not None else device
    noise = draw(shape, generator=generator, device=drawn_on, dtype=torch.float32, **rest)
    return noise.to(dtype).to(device)
