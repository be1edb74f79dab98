"""The same seed is the same noise in every number type and under every version of torch."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from diffusers import DDPMScheduler, IFPipeline
from diffusers.pipelines.deepfloyd_if import pipeline_if
from diffusers.schedulers import scheduling_ddpm

from lowmem_if.stages.drawing.noise import float32_noise

SHAPE = (1, 3, 64, 64)
HALF = (torch.float16, torch.bfloat16)


@pytest.fixture
def pipeline() -> IFPipeline:
    return IFPipeline(
        None, None, None, DDPMScheduler(), None, None, None, requires_safety_checker=False
    )


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_noise_is_float32_noise_rounded(pipeline: IFPipeline, dtype: torch.dtype) -> None:
    """A pipeline draws the numbers of float32, rounded, with one generator and with several."""
    shape = (2, *SHAPE[1:])
    with float32_noise(pipeline):
        drawn = pipeline_if.randn_tensor(shape, generator=seeded(7, 8), device="cpu", dtype=dtype)
        alone = pipeline_if.randn_tensor(SHAPE, generator=seeded(8), device="cpu", dtype=dtype)
    exact = torch.cat([torch.randn(SHAPE, generator=one) for one in seeded(7, 8)])
    assert torch.equal(drawn, exact.to(dtype))
    assert torch.equal(alone[0], drawn[1])


@pytest.mark.parametrize("dtype", HALF)
def test_a_denoising_step_adds_the_same_noise(pipeline: IFPipeline, dtype: torch.dtype) -> None:
    """The scheduler's own noise, too, is that of float32."""
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(4)
    still = torch.zeros(SHAPE)
    with float32_noise(pipeline):
        steps = {
            kind: scheduler.step(still.to(kind), 750, still.to(kind), generator=seeded(7)[0])[0]
            for kind in (torch.float32, dtype)
        }
    assert (steps[dtype].float() - steps[torch.float32]).abs().max() < 0.02
    assert steps[torch.float32].abs().max() > 0.2


def test_the_library_is_left_as_it_was(pipeline: IFPipeline) -> None:
    """Outside the block, and after an error in it, diffusers draws as ever."""
    before = (pipeline_if.randn_tensor, scheduling_ddpm.randn_tensor)
    with suppress(KeyError), float32_noise(pipeline):
        assert pipeline_if.randn_tensor is not before[0]
        assert scheduling_ddpm.randn_tensor is not before[1]
        raise KeyError
    assert (pipeline_if.randn_tensor, scheduling_ddpm.randn_tensor) == before


def test_the_noise_of_a_seed_is_the_same_everywhere() -> None:
    """One seed's float32 noise, as every version of torch since 2.10 draws it."""
    noise = torch.randn(SHAPE, generator=seeded(7)[0]).flatten()
    some = [noise[at].item() for at in (0, 1, 5000, -1)]
    assert some == pytest.approx([-0.8201, 0.3956, -0.8101, 1.1369], abs=1e-3)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12),
    reason="torch below 2.12 draws 16-bit noise in 16 bits, which is why float32_noise is here",
)
@pytest.mark.parametrize("dtype", HALF)
def test_from_torch_2_12_on_this_is_what_diffusers_draws(dtype: torch.dtype) -> None:
    """For shapes of IF the bits are those of plain diffusers. Once torch 2.12 is the oldest version
    that is supported, `stages/drawing/noise.py` can go."""
    (generator,), (again,) = seeded(7), seeded(7)
    plain = torch.randn(SHAPE, generator=generator, dtype=dtype)
    assert torch.equal(plain, torch.randn(SHAPE, generator=again).to(dtype))
