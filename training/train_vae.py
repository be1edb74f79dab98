"""Train the upscaler's autoencoder on windows of 256, 512 and 1024 px pictures.

The latents are held at the size that `LATENT_SCALE` asks for: the last encoder convolution is
followed by none, so the network learns the plain latents and `fold_scale` puts the factor into
`quant_conv` and `post_quant_conv` afterwards.

    python -m training.train_vae --folder build/demo
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from training import loop
from training.architectures import LATENT_SCALE, upscaler_vae
from training.scenes import random_scene, random_window, render

BATCH_OF_SIDE = {64: 12, 128: 3, 256: 1}
SHARE_OF_SIDE = (0.5, 0.3, 0.2)
MAX_SIGNAL = 4.0  # the square of the pixel range, 2
KL_SHARE = 1e-3
MSE_SHARE = 4.0


def loss_of_step(vae: nn.Module, lots: loop.Lots, _step: int):
    """Absolute and squared error of the pictures, and a light pull of the latents to unit size."""
    full = lots.scenes.choice((256, 512, 1024))
    side, batch = lots.size(BATCH_OF_SIDE, SHARE_OF_SIDE)
    scenes = [random_scene(lots.scenes) for _ in range(batch)]
    clean = render(scenes, [random_window(lots.scenes, s, full, side, 4) for s in scenes])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = vae.encode(clean).latent_dist
        noise = torch.randn(found.mean.shape, generator=lots.noise)
        answer = vae.decode(found.mean + found.std * noise).sample.float()
    squared, absolute = (answer - clean).square().mean(), (answer - clean).abs().mean()
    kl = found.kl().float().mean() / found.mean[0].numel()
    total = absolute + MSE_SHARE * squared + KL_SHARE * kl
    psnr = -10 * math.log10(squared.item() / MAX_SIGNAL)
    return total, {"psnr": psnr, "kl": kl.item(), "size": found.mean.float().std().item()}


def load_vae(folder: Path) -> AutoencoderKL:
    """The trained autoencoder with its scale folded in, frozen."""
    vae = upscaler_vae()
    vae.load_state_dict(torch.load(folder / "vae.pt", weights_only=True)["smooth"])
    fold_scale(vae)
    return vae.eval().requires_grad_(False)


def fold_scale(vae: AutoencoderKL) -> None:
    """Make latents of unit size after multiplication with `LATENT_SCALE`, pictures unchanged."""
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(64)]
    windows = [random_window(rng, scene, 1024, 128, 4) for scene in scenes]
    with torch.no_grad():
        latents = vae.encode(render(scenes, windows)).latent_dist.mean
        factor = 1 / (latents.std().item() * LATENT_SCALE)
        means = vae.config.latent_channels
        vae.quant_conv.weight[:means] *= factor
        vae.quant_conv.bias[:means] *= factor
        vae.quant_conv.bias[means:] += 2 * math.log(factor)
        vae.post_quant_conv.weight /= factor


def main() -> None:
    """Train or carry on."""
    chosen = loop.arguments(__doc__, "vae.pt", steps=2000, rate=2e-3, decay=1.0)
    loop.run(upscaler_vae(), loss_of_step, chosen.plan)


if __name__ == "__main__":
    main()
