"""How much is computed: floating-point operations of each network, for one pass.

Counted with torch's FlopCounterMode on the published networks' skeletons. For a network that is in no
catalogue operations grow with the square of its width, with its pixels and its pictures: with the
factors here the published ones come out within 8 %.
"""

from __future__ import annotations

from lowmem_if.planning import catalog
from lowmem_if.planning.catalog import Module

_COUNTED = {
    # parameters: operations for one picture (a guided one is two of them), or for one prompt
    4_304_695_110: 2.879e12,  # I-XL
    935_365_830: 0.612e12,  # I-L
    371_605_830: 0.2294e12,  # I-M
    1_243_277_190: 3.090e12,  # II-L
    461_064_198: 1.7017e12,  # II-M
    473_398_020: 4.529e12,  # the x4 UNet
    55_325_927: 18.976e12,  # its VAE, decoding 1024 px
}
_FACTORS = {catalog.STAGE_1: 1460.0, catalog.STAGE_2: 1710.0, catalog.UPSCALER: 1054.0}
_SIDES = {catalog.STAGE_1: 64, catalog.STAGE_2: 256, catalog.UPSCALER: 256}
_VAE_FACTOR, _VAE_SIDE = 1104.0, 1024
_VISION_TOKENS = 257
"""Of CLIP ViT-L/14: 16 x 16 patches and one more."""

TILED_VAE = 1.72
"""Tiles of 64 latents that overlap by a quarter: (256 + 5 x 16)^2 / 256^2."""


def pass_flops(component: str, module: Module) -> float:
    """Operations of one pass of a network: one picture through a UNet or VAE, one prompt of 77 tokens
    through an encoder, one look of the safety checker.
    """
    if counted := _COUNTED.get(module.weights.parameters):
        return counted
    if module.folder == "unet":
        return _FACTORS[component] * module.channels**2 * _SIDES[component] ** 2
    if module.folder == "vae":
        return _VAE_FACTOR * module.channels**2 * _VAE_SIDE**2
    if module.folder == "safety_checker":
        return 2.0 * module.weights.parameters * _VISION_TOKENS
    matrices = module.weights.linear + module.weights.kept or module.weights.parameters
    return 2.0 * matrices * catalog.MAX_TOKENS
