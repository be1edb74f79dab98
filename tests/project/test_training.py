"""The code that trains the bundled cascade: its world, its judge, its loop, and the whole of it once."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked_workers import run_python
from sample_pictures import noise
from torch import nn

import lowmem_if as lm
from lowmem_if.cascade.locate import DEMO_FOLDER
from training import __main__ as one_command
from training import architectures, loop
from training.architectures import latent_scheduler, picture_scheduler
from training.diffusion import PixelDiffusion
from training.evaluate import sharpness
from training.judge import both_colours_right, mark
from training.optimiser import Optimiser
from training.scenes import (
    COLOURS,
    SHAPES,
    Scene,
    Thing,
    Window,
    is_held_out,
    random_scene,
    random_window,
    render,
)
from training.train_upscaler import error_of_own
from training.unpack import unpack
from training.words import Words

ROOT = Path(__file__).parents[2]


def scenes_of(number: int, **how: object) -> list[Scene]:
    rng = random.Random(3)
    return [random_scene(rng, **how) for _ in range(number)]  # type: ignore[arg-type]


def test_one_eighth_of_the_triples_is_held_out_and_never_trained_on() -> None:
    """Every shape in every colour is seen in training, on seven of eight grounds."""
    held_out = [is_held_out(s, c, g) for s in SHAPES for c in COLOURS for g in COLOURS]
    assert sum(held_out) * 8 == len(held_out)
    for expected in (False, True):
        for scene in scenes_of(300, held_out=expected):
            triples = [is_held_out(t.shape, t.colour, scene.ground) for t in scene.things]
            assert any(triples) == expected


def test_sharpness_falls_with_blur_and_not_with_place() -> None:
    """What is drawn sharply beside its place is sharp; the same picture blurred is not."""
    truth = render(scenes_of(3), 64)
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1, count_include_pad=False)
    assert sharpness(truth, truth) == 1.0
    assert sharpness(truth.roll(1, 3), truth) == pytest.approx(1.0, abs=0.1)
    assert sharpness(blurred, truth) < 0.7


def test_a_window_is_the_very_piece_of_the_whole_picture() -> None:
    """Windows are cut by drawing, not by cropping, and are equal all the same."""
    rng = random.Random(1)
    for scene in scenes_of(8):
        window = random_window(rng, scene, full=256, side=64, grid=4)
        whole = render([scene], 256)[0]
        rows = slice(window.top, window.top + 64)
        columns = slice(window.left, window.left + 64)
        assert torch.allclose(render([scene], [window])[0], whole[:, rows, columns], atol=1e-4)
        assert window.scaled(1 / 4) == Window(64, window.left // 4, window.top // 4, 16)


def test_a_window_shows_what_enlarging_from_corner_to_corner_does() -> None:
    """Stage 2 is shown its small picture that way, so this is what it has to draw."""
    small, side = 64, 256
    window = Window(side, 0, 0, side).corner_to_corner(small)
    columns = (torch.arange(side) + 0.5 + window.left) / window.full
    centres = ((torch.arange(small) + 0.5) / small)[None, None]
    enlarged = nn.functional.interpolate(centres, side, mode="linear", align_corners=True)
    assert torch.allclose(columns, enlarged[0, 0], atol=1e-6)
    doubled = window.scaled(2)
    assert (doubled.left / doubled.full, doubled.side) == (window.left / window.full, 2 * side)


def test_a_square_covers_the_area_that_its_radius_says() -> None:
    """Anti-aliasing adds and takes nothing."""
    scene = Scene("white", (Thing("square", "black", "", "", 0.5, 0.5, 0.25),))
    white, black = 238 / 127.5 - 1, 22 / 127.5 - 1
    covered = (white - render([scene], 64)[0, 0]) / (white - black)
    assert covered.mean().item() == pytest.approx((2 * 0.85 * 0.25) ** 2, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("side", [64, 256])
def test_the_judge_finds_everything_right_in_true_pictures(side: int) -> None:
    """So what it misses in a drawn picture is the picture's fault."""
    singles, pairs = scenes_of(48, count=1), scenes_of(24, count=2)
    for picture, scene in zip(render(singles, side), singles, strict=True):
        marks = mark(picture, scene)
        assert marks.all_three
        assert marks.alone
        assert marks.place is not False
    assert all(both_colours_right(p, s) for p, s in zip(render(pairs, side), pairs, strict=True))


def test_the_judge_sees_what_is_wrong() -> None:
    """Another ground, colour, shape, place or number of things is marked as such."""
    thing = Thing("square", "red", "", "left", 0.25, 0.5, 0.2)
    asked = Scene("white", (thing,))

    def marks_of(*things: Thing, ground: str = "white") -> list[object]:
        marks = mark(render([Scene(ground, things)], 64)[0], asked)
        return [marks.ground, marks.colour, marks.shape, marks.alone, marks.place]

    assert marks_of(thing) == [True] * 5
    assert marks_of(thing, ground="yellow") == [False, True, True, True, True]
    assert marks_of(replace(thing, colour="blue")) == [True, False, True, True, True]
    assert marks_of(replace(thing, shape="star")) == [True, True, False, True, True]
    assert marks_of(replace(thing, x=0.75)) == [True, True, True, True, False]
    assert marks_of(thing, replace(thing, x=0.75, radius=0.12)) == [True, True, True, False, True]
    assert marks_of() == [True, False, False, False, False]


def test_a_perfect_answer_costs_nothing_at_any_noise() -> None:
    """The noise that was mixed in is the right answer, and gives the clean picture back."""
    diffusion = PixelDiffusion(picture_scheduler())
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2))
    steps = torch.tensor([0, 30, 500, 999])
    noisy = diffusion.mix(clean, noise, steps)
    weighted, plain = diffusion.epsilon_loss(torch.cat([noise, noise], 1), noise, steps)
    assert weighted == plain == 0
    scheduler = picture_scheduler()
    assert torch.equal(noisy, scheduler.add_noise(clean, noise, steps))


def test_the_noise_that_is_wanted_leads_from_a_wrong_picture_to_the_true_one() -> None:
    """Whatever picture was noised: taking the wanted noise away leaves the clean one."""
    diffusion = PixelDiffusion(picture_scheduler())
    generator = torch.Generator().manual_seed(0)
    wrong, noise = (torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2))
    clean = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1
    steps = torch.tensor([25, 300, 700, 950])
    noisy = diffusion.mix(wrong, noise, steps)
    wanted = diffusion.noise_over(noisy, clean, steps)
    assert torch.allclose(diffusion.picture(noisy, wanted, steps), clean, atol=1e-4)
    assert torch.allclose(diffusion.noise_over(noisy, wrong, steps), noise, atol=1e-4)


def test_a_perfect_network_guesses_the_true_picture_from_any_noise() -> None:
    """Then starting from its guesses is starting from the truth, for pictures and for latents."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1
    steps = torch.tensor([25, 300, 700, 950])
    diffusion = PixelDiffusion(picture_scheduler())

    def true_noise(noisy: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        assert (at >= steps).all()
        assert (at < 1000).all()
        return diffusion.noise_over(noisy, clean, at).repeat(1, 2, 1, 1)

    guess = diffusion.own_guess(true_noise, clean, steps, generator)
    assert torch.allclose(guess, clean, atol=1e-3)

    scheduler = latent_scheduler()
    kept, seen = scheduler.alphas_cumprod, []
    noise = torch.randn(clean.shape, generator=generator)

    def true_v(noisy: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        seen.append(noisy)
        share = kept[at][:, None, None, None]
        return (share.sqrt() * noisy - clean) / (1 - share).sqrt()

    assert error_of_own(kept, true_v, clean, noise, steps, random.Random(0)) < 1e-6
    assert torch.allclose(seen[-1], scheduler.add_noise(clean, noise, steps), atol=1e-3)
    wrong = error_of_own(kept, lambda x, at: 0 * x, clean, noise, steps, random.Random(0))
    assert wrong > 0.1


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled cascade's checkpoints."""
    folder = tmp_path_factory.mktemp("unpacked")
    unpack(DEMO_FOLDER, folder)
    return folder


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 3, 1))


def small_loss(network: nn.Module, lots: loop.Lots, _step: int) -> tuple[torch.Tensor, dict]:
    noise = torch.randn(4, 3, 8, 8, generator=lots.noise)
    error = (network(noise) - noise.flip(1)).square().mean() * lots.scenes.uniform(0.5, 1.5)
    return error, {"error": error.item()}


def test_a_training_that_was_stopped_goes_on_to_the_very_same_weights(tmp_path: Path) -> None:
    """Weights, both optimisers, the smoothed copy and the lots carry over."""
    plan = loop.Plan(tmp_path / "whole.pt", steps=30, rate=1e-2)
    whole = loop.run(small_network(), small_loss, plan)
    calls = []

    def stopped(network: nn.Module, lots: loop.Lots, step: int) -> tuple[torch.Tensor, dict]:
        calls.append(step)
        if len(calls) == 11:
            os.kill(os.getpid(), signal.SIGTERM)
        return small_loss(network, lots, step)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    halves = replace(plan, checkpoint=tmp_path / "halves.pt")
    loop.run(small_network(), stopped, halves)
    assert calls == list(range(11))
    continued = loop.run(small_network(), stopped, halves)
    assert calls == list(range(30))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    for one, other in zip(whole.parameters(), continued.parameters(), strict=True):
        assert torch.equal(one, other)


def test_muon_moves_the_kernels_themselves() -> None:
    """Kernels are shown to it as matrices in the same memory, and only AdamW sees the rest."""
    network = small_network()
    before = [parameter.clone() for parameter in network.parameters()]
    optimiser = Optimiser(network, rate=1e-3)
    network(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimiser.step(share=1.0)
    for old, new in zip(before, network.parameters(), strict=True):
        assert not torch.equal(old, new)
    kernel = network[0].weight - before[0]
    spread = torch.linalg.svdvals(kernel.flatten(1).detach())
    assert spread.max() / spread.min() < 3  # an orthogonal update, as AdamW's would not be
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("part", "make"),
    [
        ("stage_1", architectures.stage_1_unet),
        ("stage_2", architectures.stage_2_unet),
        ("vae", architectures.upscaler_vae),
        ("upscaler", architectures.upscaler_unet),
    ],
)
def test_the_bundled_cascade_can_be_trained_further(
    unpacked: Path, part: str, make: Callable[[], nn.Module]
) -> None:
    """It is of the networks drawn here, and unpacks into checkpoints that a training carries on."""
    plan = loop.Plan(unpacked / f"{part}.pt", steps=0, rate=1e-3)
    training = loop.Training(make(), plan)
    assert training.seconds == 0
    saved = torch.load(plan.checkpoint, weights_only=True)["network"]
    assert all(torch.equal(saved[k], v) for k, v in training.smooth.state_dict().items())


def test_the_bundled_vocabulary_and_encoder_unpack_too(unpacked: Path) -> None:
    """Captions become states of the width that the U-Nets read."""
    states = Words(unpacked).states(["a red circle on a blue background"])
    assert states.shape == (1, 77, architectures.TEXT_WIDTH)


@pytest.mark.worker
def test_the_one_command_trains_every_part_and_exports_a_cascade_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step each is enough to see that the parts fit together; then every component draws once."""

    def run(command: list[str], *, check: bool) -> None:
        done = run_python(command, cwd=ROOT)
        assert check
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(one_command, "subprocess", SimpleNamespace(run=run))
    arguments = ["--folder", str(tmp_path / "parts"), "--out", str(tmp_path / "cascade")]
    monkeypatch.setattr(sys, "argv", ["training", *arguments, "--steps", "1", "--tiny"])
    one_command.main()
    options: Any = {"cascade": str(tmp_path / "cascade"), "seed": 1, "steps": 1}
    small = noise(tmp_path / "own.png", 72, 72)
    runs = (
        lm.generate("a red circle", size=256, out=tmp_path / "run", **options),
        lm.upscale(small, "a red circle", out=tmp_path / "large", **options),  # the upscaler alone
    )
    assert [len(run.images) for run in runs] == [1, 1]
