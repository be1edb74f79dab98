"""Check the sampling options that a user gives; each check raises a `RequestError` with the value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.errors import RequestError
from lowmem_if.request.checks import as_tuple, whole
from lowmem_if.request.denoising.noise_scheduler import SCHEDULERS
from lowmem_if.request.sampling import SamplingOptions
from lowmem_if.units import unknown_name

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
        raise unknown_name("timesteps", timesteps, catalog.TIMESTEP_LISTS)
    if scheduler not in SCHEDULERS:
        raise unknown_name("scheduler", scheduler, SCHEDULERS)
    running = {*components}
    return SamplingOptions(
        _checked_steps(steps, timesteps, running),
        timesteps,
        _checked_guidance(guidance_scale, running),
        None if noise_level is None else whole("noise level", noise_level, 0, 999),
        scheduler,
        _checked_thresholding(thresholding),
    )


def _checked_steps(
    given: Any, timesteps: str | None, components: set[str]
) -> tuple[int, ...] | None:
    values = _per_stage("steps", given, components)
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


def _checked_guidance(given: Any, components: set[str]) -> tuple[float, ...] | None:
    scales = _per_stage("guidance_scale", given, components)
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


def _per_stage(name: str, value: Any, components: set[str]) -> tuple[Any, ...] | None:
    """A value for each stage, from one for all, one for each, or one for each that runs.

    A stage that does not run gets the value of its neighbour, for a run that is continued later.
    """
    if value is None:
        return None
    values, count = as_tuple(value), len(catalog.IMAGE_STAGES)
    running = [stage in components for stage in catalog.IMAGE_STAGES]
    if len(values) in (1, count):
        return values * count if len(values) == 1 else values
    if len(values) < count and running[0] and sum(running) <= len(values):
        return values + values[-1:] * (count - len(values))
    if len(values) == sum(running) and running[-1]:
        return values[:1] * (count - len(values)) + values
    raise RequestError(
        f"{len(values)} values for {name}: give one, or one for each of the stages that run "
        f"({sum(running)})"
    )
