"""Same seed, same pixels as the plain diffusers pipelines called by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import (
    AutoencoderKL,
)
from diffusers.pipelines.deepfloyd_if import fast27_timesteps
from PIL import Image
from plain_diffusers import by_hand
from runs import CPU, plan_of, run_here
from safetensors.torch import load_file

from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request

PROMPTS = ("a red circle on white", "A Blue star, 50% <b>off</b>", "green square in the center")
SEEDS = (3, 14, 15)


def assert_same(folder: RunFolder, number: int, expected: dict[str, Any]) -> None:
    for stage in ("stage_1", "stage_2", "stage_3"):
        ours = load_file(folder.path / stage / f"{number:04}.safetensors")["tensor"]
        assert torch.equal(ours, expected[stage]), stage
    preview = Image.open(folder.path / "stage_3" / f"{number:04}.png")
    assert numpy.array_equal(numpy.array(preview), numpy.array(expected["unmarked"]))
    final = Image.open(folder.path / f"{number:04}.png")
    assert numpy.array_equal(numpy.array(final), numpy.array(expected["marked"]))


def test_one_prompt_gives_the_plain_pipelines_pixels_at_every_stage(
    tiny: Path, tmp_path: Path
) -> None:
    """One prompt is bit-identical to the pipelines called by hand, mark included."""
    folder = run_here(plan_of(tiny, PROMPTS[0], seed=3), tmp_path / "run")
    assert_same(folder, 0, by_hand(tiny, PROMPTS[0], 3))


def test_three_prompts_do_not_depend_on_their_neighbours(tiny: Path, tmp_path: Path) -> None:
    """Each of three prompts with its own seed is bit-identical to being drawn alone."""
    folder = run_here(plan_of(tiny, PROMPTS, seed=SEEDS, negative_prompt="black"), tmp_path / "run")
    for number, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        assert_same(folder, number, by_hand(tiny, prompt, seed, negative="black"))


def test_the_second_image_of_a_prompt_is_the_next_seed(tiny: Path, tmp_path: Path) -> None:
    """`images=2` with seed 3 draws seeds 3 and 4."""
    folder = run_here(plan_of(tiny, PROMPTS[0], seed=3, images=2, size=64), tmp_path / "run")
    ours = load_file(folder.path / "stage_1" / "0001.safetensors")["tensor"]
    assert torch.equal(ours, by_hand(tiny, PROMPTS[0], 4)["stage_1"])


def test_a_named_timestep_list_is_the_one_of_diffusers(tiny: Path, tmp_path: Path) -> None:
    """`timesteps="fast27"` draws stage 1 as `IFPipeline(timesteps=fast27_timesteps)` does."""
    plan = plan_of(tiny, PROMPTS[0], seed=3, size=64, steps=None, timesteps="fast27")
    ours = load_file(run_here(plan, tmp_path / "run").path / "stage_1" / "0000.safetensors")
    expected = by_hand(tiny, PROMPTS[0], 3, timesteps=fast27_timesteps)["stage_1"]
    assert torch.equal(ours["tensor"], expected)


@pytest.mark.parametrize("size", [64, 256])
def test_a_smaller_size_ends_with_the_same_pixels_of_that_stage(
    tiny: Path, tmp_path: Path, size: int
) -> None:
    """A run that stops early has drawn what the whole run draws up to there, and is finished."""
    whole = run_here(plan_of(tiny, seed=3), tmp_path / "whole")
    short = run_here(plan_of(tiny, seed=3, size=size), tmp_path / "short")
    last = {64: "stage_1", 256: "stage_2"}[size]
    ours, theirs = (load_file(f.path / last / "0000.safetensors")["tensor"] for f in (short, whole))
    assert torch.equal(ours, theirs)
    assert short.images


def test_without_guidance_no_negative_prompt_is_encoded(tiny: Path, tmp_path: Path) -> None:
    """A guidance scale of 1 draws without a second pass, and embeds only the prompt."""
    folder = run_here(plan_of(tiny, seed=3, guidance_scale=1.0), tmp_path / "run")
    assert len(list((folder.path / "embeds").iterdir())) == 1
    assert folder.images


def test_pictures_drawn_together_are_decoded_one_by_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upscaler's VAE, whose peak is the highest of all, takes what is planned for one picture."""
    decoded = []
    real = AutoencoderKL._decode

    def count(self: AutoencoderKL, z: torch.Tensor, **options: Any) -> Any:
        decoded.append(len(z))
        return real(self, z, **options)

    monkeypatch.setattr(AutoencoderKL, "_decode", count)
    request = make_request(PROMPTS[:2], cascade=str(tiny), seed=SEEDS[:2], steps=(1,))
    plan = make_plan(CPU, request, prefer="balanced")
    assert plan.step("upscaler").config.batch == 2
    run_here(plan, tmp_path / "run")
    assert decoded == [1, 1]


def test_a_request_with_one_seed_draws_each_prompt_with_it() -> None:
    """One seed serves every prompt, so a picture can be had again alone."""
    assert [task.seed for task in make_request(PROMPTS, seed=(7,)).images] == [7, 7, 7]
