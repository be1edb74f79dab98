"""Train the upscaler, 256 px to the latents of 1024 px, on windows of two sizes.

python -m training.train_upscaler --folder build/demo
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from training import loop
from training.architectures import (
    LATENT_SCALE,
    latent_scheduler,
    low_res_scheduler,
    upscaler_text_encoder,
    upscaler_unet,
)
from training.clip_tokenizer import write_clip_tokenizer
from training.diffusion import Answers, answers_beside, uneven_noise
from training.scenes import Scene, Window, plain_caption, random_scene, random_window, render
from training.train_vae import load_vae

FULL, FACTOR = 1024, 4
BATCH_OF_SIDE = {192: 4, 512: 1}
SHARE_OF_SIDE = (0.7, 0.3)
NOISE_LEVELS = 100
EMPTY_SHARE = 0.15
WEAR_SHARE, BLUR_SHARE = 0.5, 0.3
LARGEST_WEAR = 0.03
OWN_SHARE = 0.5


class LetterWords:
    """The untrained CLIP text encoder: captions in, states [n, 77, width] out."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = write_clip_tokenizer(folder / "clip_tokenizer")
        self.encoder = upscaler_text_encoder().eval()

    def states(self, captions: list[str]) -> torch.Tensor:
        """The encoder's last hidden states."""
        tokens = self.tokenizer(
            captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            return self.encoder(tokens.input_ids)[0]


def loss_of_step(folder: Path) -> loop.LossOfStep:
    """The error on a fresh batch of windows: of v from true latents, of latents from its own."""
    vae, words = load_vae(folder), LetterWords(folder)
    scheduler, low_scheduler = latent_scheduler(), low_res_scheduler()

    def loss(unet: nn.Module, lots: loop.Lots, _step: int):
        rng, generator = lots.scenes, lots.noise
        side, batch = lots.size(BATCH_OF_SIDE, SHARE_OF_SIDE)
        scenes = [random_scene(rng) for _ in range(batch)]
        windows = [random_window(rng, scene, FULL, side, FACTOR) for scene in scenes]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            latents = vae.encode(render(scenes, windows)).latent_dist.mean.float() * LATENT_SCALE
        states = words.states(
            ["" if rng.random() < EMPTY_SHARE else plain_caption(s) for s in scenes]
        )
        levels = torch.randint(0, NOISE_LEVELS, (batch,), generator=generator)
        hint = _small_views(scenes, windows, rng, generator)
        hint = low_scheduler.add_noise(hint, torch.randn(hint.shape, generator=generator), levels)
        times = torch.randint(0, 1000, (batch,), generator=generator)
        noise = uneven_noise(latents.shape, generator)
        answers = answers_beside(hint, unet, states, levels)
        if rng.random() < OWN_SHARE:
            error = error_of_own(scheduler.alphas_cumprod, answers, latents, noise, times, rng)
            return error, {"own": error.item()}
        answer = answers(scheduler.add_noise(latents, noise, times), times)
        error = (answer - scheduler.get_velocity(latents, noise, times)).square().mean()
        return error, {"error of v": error.item()}

    return loss


def error_of_own(
    kept: torch.Tensor,
    answers: Answers,
    latents: torch.Tensor,
    noise: torch.Tensor,
    times: torch.Tensor,
    rng: random.Random,
) -> torch.Tensor:
    """The error of the latents seen in what one DDIM step of its own from noisier latents makes."""

    def parts(steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        share = kept[steps][:, None, None, None]
        return share.sqrt(), (1 - share).sqrt()

    earlier = times + ((999 - times) * rng.random()).long()
    signal, spread = parts(earlier)
    noisy = signal * latents + spread * noise
    with torch.no_grad():
        v = answers(noisy, earlier)
    guess, left = signal * noisy - spread * v, spread * noisy + signal * v
    signal, spread = parts(times)
    stepped = signal * guess + spread * left
    return (signal * stepped - spread * answers(stepped, times) - latents).square().mean()


def _small_views(
    scenes: list[Scene], windows: list[Window], rng: random.Random, generator: torch.Generator
) -> torch.Tensor:
    """The windows at a quarter of the side, some a little blurred or worn, as stage 2 leaves them."""
    small = render(scenes, [window.scaled(1 / FACTOR) for window in windows])
    if rng.random() < BLUR_SHARE:
        padded = functional.pad(small, (1, 1, 1, 1), mode="replicate")
        small = torch.lerp(small, functional.avg_pool2d(padded, 3, 1), rng.random())
    if rng.random() < WEAR_SHARE:
        wear = torch.randn(small.shape, generator=generator)
        small = small + LARGEST_WEAR * rng.random() * wear
    return small


def main() -> None:
    """Train or carry on."""
    chosen = loop.arguments(__doc__, "upscaler.pt", steps=4500, rate=1.5e-3, decay=0.8)
    loop.run(upscaler_unet(), loss_of_step(chosen.folder), chosen.plan)


if __name__ == "__main__":
    main()
