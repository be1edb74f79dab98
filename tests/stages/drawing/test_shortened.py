"""Passes that are left out: which, what stands in for them, and what stays as it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from lowmem_if.request.denoising.shortcuts import EVERYTHING, Shortcuts
from lowmem_if.request.sampling import Sampling
from lowmem_if.stages.drawing.shortened import shortened


class Unet(torch.nn.Module):
    """Gives a straight line over the logarithm of the signal-to-noise ratio, and notes its batches."""

    def __init__(self, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.scheduler, self.batches = scheduler, list[int]()

    def forward(
        self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor]:
        assert len(sample) == len(encoder_hidden_states)
        self.batches.append(len(sample))
        kept = self.scheduler.alphas_cumprod[int(timestep)].double()
        return (encoder_hidden_states + torch.log(kept / (1 - kept)).float(),)


def outputs(shortcuts: Shortcuts, *, steps: int = 10) -> tuple[list[torch.Tensor], list[int]]:
    """What a guided pipeline gets in each step, for a batch of [without, with]; and the batches."""
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(steps)
    unet = Unet(scheduler)
    pipeline = SimpleNamespace(unet=unet, scheduler=scheduler)
    sampling = Sampling(steps, None, 4.0, None, shortcuts=shortcuts)
    texts = torch.tensor([[1.0], [2.0]])
    found = []
    with shortened(pipeline, sampling):
        for timestep in scheduler.timesteps:
            (output,) = unet(torch.zeros(2, 1), timestep, encoder_hidden_states=texts)
            found.append(output)
    assert "forward" not in unet.__dict__
    assert tuple(unet.batches) == sampling.passes
    return found, unet.batches


def test_nothing_is_left_out_by_default() -> None:
    """Every step computes both halves of the batch."""
    assert outputs(EVERYTHING)[1] == [2] * 10


def test_a_forecast_is_exact_where_the_output_changes_evenly() -> None:
    """Over the logarithm of the signal-to-noise ratio; the last step is computed."""
    expected, _ = outputs(EVERYTHING)
    found, batches = outputs(Shortcuts(first=3, every=2))
    assert len(batches) == 3 + 3 + 1
    for ours, plain in zip(found, expected, strict=True):
        assert torch.allclose(ours, plain, atol=1e-4)


def test_without_guidance_the_prompt_counts_for_both_halves() -> None:
    """So that any scale gives the prompt's output."""
    found, batches = outputs(Shortcuts(guided_share=0.4))
    assert batches == [2] * 4 + [1] * 6
    assert all((output[0] != output[1]).all() for output in found[:4])
    assert all((output[0] == output[1]).all() for output in found[4:])
    assert torch.equal(found[-1][1], outputs(EVERYTHING)[0][-1][1])


def test_an_error_leaves_the_network_as_it_was() -> None:
    """The forward that offloading had put there is put back."""
    unet = torch.nn.Linear(1, 1)
    unet.forward = hooked = lambda *_: None
    pipeline = SimpleNamespace(unet=unet, scheduler=None)
    sampling = Sampling(4, None, 1.0, None, shortcuts=Shortcuts(first=2, every=2))
    with pytest.raises(AttributeError), shortened(pipeline, sampling):
        unet(torch.zeros(2, 1), 5)  # there is no scheduler to ask
    assert unet.forward is hooked


def test_a_forecast_without_two_outputs_is_refused() -> None:
    """A straight line needs two points."""
    with pytest.raises(ValueError, match="two outputs"):
        Shortcuts(first=1, every=2)
