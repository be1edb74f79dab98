"""Count the floating-point operations of each network in one pass.

The table of dry runs contains those of the published networks. For other networks, operations are
proportional to the pixels and to the square of the width. With the factors below, this reproduces the
published networks within 9 %.
"""

from __future__ import annotations

from lowmem_if.cascade import catalog
from lowmem_if.cascade.parts import Module
from lowmem_if.cascade.transfer_sizes import GUIDED_IMAGES
from lowmem_if.planning.estimates.memory_table import look_up

_FACTORS = {catalog.STAGE_1: 1460.0, catalog.STAGE_2: 1710.0, catalog.UPSCALER: 1054.0}
_VAE_FACTOR, _VAE_SIDE = 1104.0, 1024
_VISION_TOKENS = 257
"""Tokens of CLIP ViT-L/14: 16 x 16 patches and the class token."""


def pass_flops(component: str, module: Module) -> float:
    """Operations of one pass of a network.

    A pass is one image through a UNet, a VAE or the safety checker, or one prompt of 77 tokens through
    an encoder.
    """
    item_bytes = 4 if module.is_vae or module.is_safety_checker else 2
    if row := look_up(module, item_bytes=item_bytes):
        return row.flops / (GUIDED_IMAGES if module.is_unet else 1)
    if module.is_unet:
        return _FACTORS[component] * module.channels**2 * catalog.facts(component).side ** 2
    if module.is_vae:
        return _VAE_FACTOR * module.channels**2 * _VAE_SIDE**2
    if module.is_safety_checker:
        return 2.0 * module.weights.parameters * _VISION_TOKENS
    matrices = module.weights.linear + module.weights.kept or module.weights.parameters
    return 2.0 * matrices * catalog.MAX_TOKENS
