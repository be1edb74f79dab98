"""The parts of the demo that are made and not trained: safety checker, image processor, watermark."""

from __future__ import annotations

import torch
from diffusers.pipelines.deepfloyd_if import IFSafetyChecker, IFWatermarker
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor

CHECKED_SIDE = 32
NEVER = -10.0
MARK_SIDE = 62
MARK_SQUARES = ((6, 12), (20, 30), (38, 56))  # first and last row of each: a cascade in three steps
LIGHT = (255.0, 255.0, 255.0, 105.0)
DARK = (0.0, 0.0, 0.0, 70.0)


def safety_checker() -> IFSafetyChecker:
    """A tiny checker that runs like the real one and never flags: flat shapes are safe."""
    # transformers 5 looks for what the class's __init__ does not set
    IFSafetyChecker.all_tied_weights_keys = {}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": CHECKED_SIDE,
        "patch_size": 8,
        "projection_dim": 16,
    }
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checker = IFSafetyChecker(
            CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
        )
    for head in (checker.p_head, checker.w_head):
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, NEVER)
    return checker


def image_processor() -> CLIPImageProcessor:
    """What makes the checker's input of a picture."""
    return CLIPImageProcessor(size={"shortest_edge": CHECKED_SIDE}, crop_size=CHECKED_SIDE)


def watermarker() -> IFWatermarker:
    """The demo's own mark: three squares that grow along the diagonal, each with a thin dark rim."""
    marker = IFWatermarker()
    image = marker.watermark_image
    for first, last in MARK_SQUARES:
        image[first - 1 : last + 1, first - 1 : last + 1] = torch.tensor(DARK)
        image[first:last, first:last] = torch.tensor(LIGHT)
    assert image.shape == (MARK_SIDE, MARK_SIDE, 4)
    return marker
