"""Train stage 2, 64 px to 256 px, on windows of three sizes.

Windows of 64 px hold the most edges for the work; whole pictures teach the group norms what whole
pictures look like. The noise on the small picture is mostly light, for that is the demo's default.

Half of the steps start from the network's own guesses: edges are to be taken from the small picture.

    python -m training.train_stage_2 --folder build/demo
"""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional

from training import loop
from training.architectures import image_noising_scheduler, picture_scheduler, stage_2_unet
from training.diffusion import PixelDiffusion, answers_beside, uneven_noise
from training.scenes import Scene, Window, random_scene, random_window, render
from training.words import Words

SMALL, FULL = 64, 256
BATCH_OF_SIDE = {64: 12, 128: 4, 256: 1}
SHARE_OF_SIDE = (0.45, 0.25, 0.3)
LIGHT_NOISE, HEAVY_NOISE = 100, 350  # steps of a thousand
HEAVY_SHARE = 0.15
WEAR_SHARE = 0.5
LARGEST_WEAR = 0.04
OWN_SHARE = 0.5
FIRST_OWN = 25  # at cleaner steps hardly any noise is left to tell of a correction


def loss_of_step(words: Words) -> loop.LossOfStep:
    """The loss on a fresh batch of windows: of true pictures, or of the network's own."""
    diffusion = PixelDiffusion(picture_scheduler(), least=0.5)
    correction = PixelDiffusion(picture_scheduler(), least=0.5, lightest=0.0)
    noiser = image_noising_scheduler()

    def loss(unet: nn.Module, lots: loop.Lots, _step: int):
        rng, generator = lots.scenes, lots.noise
        side, batch = lots.size(BATCH_OF_SIDE, SHARE_OF_SIDE)
        scenes = [random_scene(rng) for _ in range(batch)]
        windows = [random_window(rng, scene, FULL, side, 4) for scene in scenes]
        states = words.states(words.captions(scenes, rng))
        clean = render(scenes, [window.corner_to_corner(SMALL) for window in windows])
        levels = _noise_levels(batch, rng)
        hint = _blown_up(scenes, windows, rng, generator)
        hint = noiser.add_noise(hint, torch.randn(hint.shape, generator=generator), levels)
        answers = answers_beside(hint, unet, states, levels)
        times = torch.randint(0, 1000, (batch,), generator=generator)
        noise = uneven_noise(clean.shape, generator)
        own = rng.random() < OWN_SHARE
        start = clean
        if own:
            times = times.clamp_min(FIRST_OWN)
            start = diffusion.own_guess(answers, clean, times, generator)
        noisy = diffusion.mix(start, noise, times)
        wanted = diffusion.noise_over(noisy, clean, times)
        answer = answers(noisy, times)
        weighted, plain = (correction if own else diffusion).epsilon_loss(answer, wanted, times)
        figures = {"own": weighted.item()} if own else {"mse": plain.item()}
        return 2 * weighted + diffusion.small_variance_loss(answer), figures

    return loss


def _noise_levels(batch: int, rng: random.Random) -> torch.Tensor:
    top = [HEAVY_NOISE if rng.random() < HEAVY_SHARE else LIGHT_NOISE for _ in range(batch)]
    return torch.tensor([rng.randrange(limit) for limit in top])


def _blown_up(
    scenes: list[Scene], windows: list[Window], rng: random.Random, generator: torch.Generator
) -> torch.Tensor:
    """The small pictures, some a little worn, enlarged as the pipeline does and seen by windows."""
    small = render(scenes, SMALL)
    if rng.random() < WEAR_SHARE:
        wear = torch.randn(small.shape, generator=generator)
        small = small + LARGEST_WEAR * rng.random() * wear
    large = functional.interpolate(small, (FULL, FULL), mode="bilinear", align_corners=True)
    views = [
        picture[:, w.top : w.top + w.side, w.left : w.left + w.side]
        for picture, w in zip(large, windows, strict=True)
    ]
    return torch.stack(views)


def main() -> None:
    """Train or carry on."""
    chosen = loop.arguments(__doc__, "stage_2.pt", steps=5000, rate=1.5e-3, decay=0.65)
    loop.run(stage_2_unet(), loss_of_step(Words(chosen.folder)), chosen.plan)


if __name__ == "__main__":
    main()
