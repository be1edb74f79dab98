"""Check the sampling options that a user gives; each check raises a `RequestError` with the value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.errors import RequestError
from lowmem_if.request.checks import as_tuple, whole
from lowmem_if.request.denoising.noise_scheduler import SCHEDULERS
from lowmem_if.request.sampling import SamplingOptions

_MAX_STEPS = {catalog.STAGE_1: 1000, catalog.STAGE_2: 1000, catalog.UPSCALER: 999}
"""The schedulers have 1000 training timesteps; the upscaler's starts one later (`steps_offset`)."""


def checked_sampling(
    components: Iterable[str],
    *,
    steps: Any,
    timesteps: Any,
    guidance_scale: Any,
    noise_level: Any,
    scheduler: Any,
    thresholding: Any,
) -> SamplingOptions:
    """Sampling options for a run of these components."""
    if timesteps is not None and timesteps not in catalog.TIMESTEP_LISTS:
        known = ", ".join(catalog.TIMESTEP_LISTS)
        raise RequestError(f"unknown timesteps {timesteps!r}: use one of {known}")
    if scheduler not in SCHEDULERS:
        raise RequestError(f"unknown scheduler {scheduler!r}: use one of {', '.join(SCHEDULERS)}")
    return SamplingOptions(
        _checked_steps(steps, timesteps, {*components}),
        timesteps,
        _checked_guidance(guidance_scale),
        None if noise_level is None else whole("noise level", noise_level, 0, 999),
        scheduler,
        _checked_thresholding(thresholding),
    )


def _checked_steps(
    given: Any, timesteps: str | None, components: set[str]
) -> tuple[int, ...] | None:
    values = _per_stage("steps", given)
    if values is None:
        return None
    steps = tuple(
        whole("steps", count, 1, _MAX_STEPS[stage] if stage in components else 1000)
        for stage, count in zip(catalog.IMAGE_STAGES, values, strict=True)
    )
    if timesteps and (len(set(steps)) > 1 or catalog.UPSCALER not in components):
        raise RequestError(
            f"{timesteps} sets the steps of stages 1 and 2: leave out steps, or give one "
            "number for the upscaler"
        )
    return steps


def _checked_guidance(given: Any) -> tuple[float, ...] | None:
    scales = _per_stage("guidance_scale", given)
    for scale in scales or ():
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < 1e3:
            raise RequestError(f"guidance scale {scale!r} is not a number from 0 to 1000")
    return scales


def _checked_thresholding(given: Any) -> tuple[float, ...] | None:
    if given is None:
        return None
    values = as_tuple(given)
    real = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    # diffusers scales down from the ratio's quantile, at least 1 and at most the largest value.
    if not real or len(values) not in (1, 2) or not (0 < values[0] <= 1 <= (*values, 1)[1]):
        raise RequestError(
            f"thresholding {given!r} is not a ratio above 0 up to 1, like 0.95, "
            "or a ratio and a largest value, like 0.95,1.5"
        )
    return tuple(map(float, values))


def _per_stage(name: str, value: Any) -> tuple[Any, ...] | None:
    if value is None:
        return None
    values = as_tuple(value)
    count = len(catalog.IMAGE_STAGES)
    if len(values) not in (1, count):
        raise RequestError(f"{len(values)} values for {name}: give one, or one for each stage")
    return values * count if len(values) == 1 else values
