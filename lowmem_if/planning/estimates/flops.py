"""How much is computed: floating-point operations of each network, for one pass.

The shipped table of dry runs knows those of the published networks. For another, operations grow with
the square of its width, with its pixels and its pictures: by these factors the published ones come out
within 9 %.
"""

from __future__ import annotations

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import Module
from lowmem_if.cascade.transfer_sizes import GUIDED_IMAGES
from lowmem_if.planning.estimates.memory_table import look_up

_FACTORS = {catalog.STAGE_1: 1460.0, catalog.STAGE_2: 1710.0, catalog.UPSCALER: 1054.0}
_VAE_FACTOR, _VAE_SIDE = 1104.0, 1024
_VISION_TOKENS = 257
"""Of CLIP ViT-L/14: 16 x 16 patches and one more."""


def pass_flops(component: str, module: Module) -> float:
    """Operations of one pass of a network: one picture through a UNet or VAE, one prompt of 77 tokens
    through an encoder, one look of the safety checker.
    """
    item_bytes = 4 if module.folder in ("vae", "safety_checker") else 2
    if row := look_up(module, item_bytes=item_bytes):
        return row.flops / (GUIDED_IMAGES if module.folder == "unet" else 1)
    if module.folder == "unet":
        return _FACTORS[component] * module.channels**2 * catalog.COMPONENT[component].side ** 2
    if module.folder == "vae":
        return _VAE_FACTOR * module.channels**2 * _VAE_SIDE**2
    if module.folder == "safety_checker":
        return 2.0 * module.weights.parameters * _VISION_TOKENS
    matrices = module.weights.linear + module.weights.kept or module.weights.parameters
    return 2.0 * matrices * catalog.MAX_TOKENS
