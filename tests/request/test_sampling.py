"""How a stage samples: by the user's options, by the defaults, and with less work."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lowmem_if.cascade.catalog import IF_DEFAULTS, IMAGE_STAGES, STAGE_1, STAGE_2, UPSCALER
from lowmem_if.request.build import make_request
from lowmem_if.request.denoising.noise_scheduler import DDPM, DPM_SOLVER
from lowmem_if.request.denoising.shortcuts import EVERYTHING, FAST_SHORTCUTS
from lowmem_if.request.request_json import request_from_json, request_to_json
from lowmem_if.request.sampling import Sampling


def in_stage(stage: str, *, fast: bool = True, **options: object) -> Sampling:
    """How a stage of IF samples for a request."""
    request = make_request("a", seed=1, **options)  # type: ignore[arg-type]
    request = request.faster() if fast else request
    return request.sampling.in_stage(stage, IF_DEFAULTS[stage])


@pytest.mark.parametrize("stage", IMAGE_STAGES)
def test_fast_takes_at_most_a_quarter_of_the_work(stage: str) -> None:
    """Of the UNet inputs that the defaults compute; and nothing is left out without it."""
    usual, fast = in_stage(stage, fast=False), in_stage(stage)
    assert usual.shortcuts == EVERYTHING
    assert 4 * sum(fast.passes) <= sum(usual.passes)


def test_fast_keeps_what_the_user_says() -> None:
    """Steps and named timesteps; a named list belongs to the checkpoint's own scheduler."""
    own = in_stage(STAGE_1, steps=31)
    assert (own.steps, own.scheduler) == (31, DPM_SOLVER)
    named = in_stage(STAGE_2, timesteps="fast27")
    assert (named.count, named.scheduler) == (27, DDPM)
    assert in_stage(UPSCALER, steps=40).steps == 40


@pytest.mark.parametrize(
    ("steps", "size", "expected"),
    [
        ((10, 20), 256, (10, 20, 20)),
        ((10, 20), 64, (10, 20, 20)),
        ((10,), 64, (10, 10, 10)),
        ((10, 20, 30), 64, (10, 20, 30)),
    ],
)
def test_stages_that_do_not_run_need_no_value(
    steps: tuple[int, ...], size: int, expected: tuple[int, ...]
) -> None:
    """One value for each stage that runs; the next stage takes the last one if the run is continued."""
    request = make_request("a", seed=1, size=size, steps=steps, guidance_scale=steps)
    assert request.sampling.steps == expected
    assert request.sampling.guidance_scale == expected


def test_an_enlargement_needs_values_for_its_own_stages(tmp_path: Path) -> None:
    """Stage 2 and the upscaler, of a picture with at most 64 pixels."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    request = make_request("a", mode="upscale", image=tmp_path / "a.png", steps=(20, 30))
    assert request.sampling.steps == (20, 20, 30)


def test_fast_leaves_guidance_out_at_the_end() -> None:
    """The first steps compute the picture without the prompt, too."""
    passes = in_stage(STAGE_1, steps=10).passes
    assert passes == (2, 2, 2, 2, 2, 1, 1)  # steps 0 to 3, 5, 7 and 9
    assert in_stage(STAGE_1, steps=10, guidance_scale=1).passes == (1,) * 7


def test_a_fast_request_is_read_back_from_json() -> None:
    """Its images are those of the request as the user gave it, so both are equal."""
    request = make_request("a", seed=1)
    data = request_to_json(request.faster())
    read = request_from_json(data)
    assert read.sampling.fast
    assert read == request
    assert read.sampling.in_stage(STAGE_1, IF_DEFAULTS[STAGE_1]).shortcuts == FAST_SHORTCUTS
    assert "fast" not in request_to_json(request)
