"""The noise of all stages, and the losses of the pixel stages."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.nn import functional

COARSE_SIDES = (1, 4)
VARIANCE_SHARE = 0.05
RANGE_SHARE = 1e-3
HIGHEST_KL = 2.0

Answers = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Noisy pictures and their steps to a network's answer."""


def answers_beside(
    small: torch.Tensor, unet: nn.Module, states: torch.Tensor, levels: torch.Tensor
) -> Answers:
    """The answers of a network that sees `small`, as noisy as `levels`, beside each picture."""

    def answers(noisy: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pair = torch.cat([noisy, small], 1)
            return unet(pair, steps, states, class_labels=levels).sample.float()

    return answers


def uneven_noise(
    shape: torch.Size, generator: torch.Generator, share: float = 0.6, strength: float = 0.15
) -> torch.Tensor:
    """White noise, to which `share` of the pictures get coarse patches of colour added.

    A network trained on white noise alone learns to read flat colours off the noisy picture's mean,
    and then keeps whatever wrong colour the first steps of sampling made. Patches in the noise make
    the mean unreliable, so colours are taken from the condition, and early mistakes are repaired.
    """
    count, channels, *size = shape
    noise = torch.randn(shape, generator=generator)
    chosen = torch.rand(count, 1, 1, 1, generator=generator) < share
    for side in COARSE_SIDES:
        patches = torch.randn(count, channels, side, side, generator=generator)
        patches = functional.interpolate(patches, size, mode="bilinear")
        noise += strength * chosen * patches
    return noise


class PixelDiffusion:
    """Noise for clean pictures and the loss of a network's answer, for one schedule.

    The weight of the epsilon error is `clamp(snr, least, most) / snr`, within `lightest` and `limit`:
    min-SNR weighting (Hang et al. 2023) whose upper end keeps the noisiest steps, which decide on
    colours, from being forgotten, and whose lower end the cleanest, which decide on grain.
    """

    def __init__(
        self,
        scheduler: DDPMScheduler,
        least: float = 0.1,
        most: float = 5.0,
        lightest: float = 0.15,
        limit: float = 20.0,
    ) -> None:
        self.alphas = scheduler.alphas_cumprod
        before = torch.cat([torch.ones(1), self.alphas[:-1]])
        self.before = before
        self.betas = 1 - self.alphas / before
        self.small_variance = (1 - before) / (1 - self.alphas) * self.betas
        self.small_variance[0] = self.small_variance[1]
        snr = self.alphas / (1 - self.alphas)
        self.weights = (snr.clamp(least, most) / snr).clamp(lightest, limit)

    def mix(self, clean: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """The pictures as noisy as their steps say."""
        alphas = self._at(self.alphas, steps)
        return alphas.sqrt() * clean + (1 - alphas).sqrt() * noise

    def picture(
        self, noisy: torch.Tensor, epsilon: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """What is left of noisy pictures without this noise, as the schedulers clip it."""
        alphas = self._at(self.alphas, steps)
        return ((noisy - (1 - alphas).sqrt() * epsilon) / alphas.sqrt()).clamp(-1, 1)

    def noise_over(
        self, noisy: torch.Tensor, clean: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """The noise that leads from noisy pictures straight to these clean ones."""
        alphas = self._at(self.alphas, steps)
        return (noisy - alphas.sqrt() * clean) / (1 - alphas).sqrt()

    def own_guess(
        self,
        answers: Answers,
        clean: torch.Tensor,
        steps: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """What a network takes clean pictures for at some steps noisier than `steps`.

        That is what it starts from while sampling. Trained on clean pictures alone it trusts the edges
        that it finds in the noise, and then these are its own first guesses; trained on guesses, too,
        it mends them.
        """
        share = torch.rand(steps.shape, generator=generator)
        noisier = steps + (share * (len(self.alphas) - steps)).long()
        noisy = self.mix(clean, torch.randn(clean.shape, generator=generator), noisier)
        with torch.no_grad():
            epsilon = answers(noisy, noisier).chunk(2, 1)[0]
        return self.picture(noisy, epsilon, noisier)

    def epsilon_loss(
        self, answer: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted error of the answer's first half and the plain one."""
        errors = (answer.chunk(2, 1)[0] - noise).square().mean((1, 2, 3))
        return (self.weights[steps] * errors).mean(), errors.mean()

    def variance_loss(
        self, answer: torch.Tensor, clean: torch.Tensor, noisy: torch.Tensor, steps: torch.Tensor
    ) -> torch.Tensor:
        """IF's variational bound for the answer's second half; the mean is held fixed."""
        epsilon, fraction = answer.chunk(2, 1)
        alpha, before, beta = (self._at(v, steps) for v in (self.alphas, self.before, self.betas))
        guess = (noisy - (1 - alpha).sqrt() * epsilon.detach()) / alpha.sqrt()
        shift = before.sqrt() * beta / (1 - alpha) * (clean - guess.clamp(-1, 1))
        low = self._at(self.small_variance, steps).log()
        share = (fraction + 1) / 2
        log_variance = share * beta.log() + (1 - share) * low
        gap = log_variance - low
        bound = 0.5 * (-1 + gap + torch.exp(-gap) + shift.square() * torch.exp(-log_variance))
        bound = bound.mean((1, 2, 3)).clamp(max=HIGHEST_KL).mean()
        stray = (fraction.abs() - 1).clamp_min(0).square().mean()
        return VARIANCE_SHARE * bound + RANGE_SHARE * stray

    @staticmethod
    def small_variance_loss(answer: torch.Tensor) -> torch.Tensor:
        """Pull the learned variance to its lower bound, which is right where little is open."""
        return VARIANCE_SHARE * (answer.chunk(2, 1)[1] + 1).square().mean()

    @staticmethod
    def _at(values: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        return values[steps][:, None, None, None]
