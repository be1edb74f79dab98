"""Train stage 1, words to 64 px: first on 32 px pictures, which is four times faster, then on 64.

There many steps start from the network's own guesses: outlines are to be mended until the end.

python -m training.train_stage_1 --folder build/demo
"""

from __future__ import annotations

import torch
from torch import nn

from training import loop
from training.architectures import picture_scheduler, stage_1_unet
from training.diffusion import FIRST_OWN, PixelDiffusion, uneven_noise
from training.scenes import random_scene, render
from training.words import Words

SMALL_STEPS = 1800
SMALL_SIDE, SMALL_BATCH = 32, 32
FULL_SIDE, FULL_BATCH = 64, 16
EARLY_SHARE, EARLY_FROM = 0.4, 650
"""There it is decided which of two things gets which colour: swapping them in the words cost 4 to 11 %
more error at steps 700 to 900 of a half-trained network, 1 % at step 400."""


OWN_SHARE = 0.4
LAST_OWN, OWN_REACH = 650, 300
"""So far the network's own guesses are of the very scene; from more noise they would be of another."""


def loss_of_step(words: Words) -> loop.LossOfStep:
    """The loss on a fresh batch of scenes of the training split."""
    diffusion = PixelDiffusion(picture_scheduler())
    correction = PixelDiffusion(picture_scheduler(), lightest=0.0)

    def loss(unet: nn.Module, lots: loop.Lots, step: int):
        small = step < SMALL_STEPS
        side, batch = (SMALL_SIDE, SMALL_BATCH) if small else (FULL_SIDE, FULL_BATCH)
        scenes = [random_scene(lots.scenes) for _ in range(batch)]
        states = words.states(words.captions(scenes, lots.scenes))
        clean = render(scenes, side)
        noise = uneven_noise(clean.shape, lots.noise, share=0.4, strength=0.1)

        def answers(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return unet(noisy, times, states).sample.float()

        own = not small and lots.scenes.random() < OWN_SHARE
        if own:
            times = torch.randint(FIRST_OWN, LAST_OWN, (batch,), generator=lots.noise)
            earliest = (times + OWN_REACH).clamp_max(LAST_OWN)
            start = diffusion.own_guess(answers, clean, times, earliest, lots.noise)
        else:
            times, start = _times(batch, lots.noise), clean
        noisy = diffusion.mix(start, noise, times)
        wanted = diffusion.noise_over(noisy, clean, times)
        answer = answers(noisy, times)
        weighted, plain = (correction if own else diffusion).epsilon_loss(answer, wanted, times)
        variance = diffusion.variance_loss(answer, clean, noisy, times)
        figures = {"own": weighted.item()} if own else {"mse": plain.item()}
        return 2 * weighted + variance, figures | {"bound": variance.item()}

    return loss


def _times(count: int, generator: torch.Generator) -> torch.Tensor:
    """Steps of the schedule, `EARLY_SHARE` of them among the noisiest."""
    times = torch.randint(0, 1000, (count,), generator=generator)
    early = torch.rand(count, generator=generator) < EARLY_SHARE
    return torch.where(early, EARLY_FROM + times * (1000 - EARLY_FROM) // 1000, times)


def main() -> None:
    """Train or carry on."""
    chosen = loop.arguments(__doc__, "stage_1.pt", steps=6900, rate=1.5e-3, decay=0.62)
    loop.run(stage_1_unet(), loss_of_step(Words(chosen.folder)), chosen.plan)


if __name__ == "__main__":
    main()
