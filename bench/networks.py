"""The networks under measurement: their classes, how the package loads them, and what a step is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, T5EncoderModel

from bench.cases import Case
from lowmem_if.cascade.configs import read_config
from lowmem_if.weights.loading import (
    DTYPES,
    load_clip_text,
    load_diffusers_model,
    load_text_encoder,
    stream_clip_text,
    stream_diffusers_model,
    stream_text_encoder,
)
from lowmem_if.weights.streaming.streamer import Streamed

TOKENS = 77
PIXELS_OF_LATENT_SAMPLE = 2
"""The x4 UNet's configuration says 128; the latents of a 1024 px picture are 256 wide."""


def network_class(case: Case) -> Any:
    if case.network.folder.endswith("unet"):
        return UNet2DConditionModel
    return T5EncoderModel if case.network.folder.startswith("stage_1") else CLIPTextModel


def load_resident(case: Case) -> torch.nn.Module:
    """The whole network in memory, by our loader."""
    cls, options = network_class(case), {"dtype": case.dtype, "device": case.device}
    if cls is UNet2DConditionModel:
        return load_diffusers_model(case.weights, cls, **options)
    if cls is CLIPTextModel:
        return load_clip_text(case.weights, **options)
    storage = "int8" if case.network.eight_bit else case.dtype
    return load_text_encoder(
        case.weights.parent, storage=storage, compute=case.dtype, device=case.device
    )


def stream(case: Case, weights: Path, resident_bytes: int) -> Streamed:
    """The network with its weights left in the folder `weights`; `.module` is to be called."""
    cls = network_class(case)
    options: Any = {"device": case.device, "resident_bytes": resident_bytes}
    if cls is UNet2DConditionModel:
        return stream_diffusers_model(weights, cls, dtype=case.dtype, **options)
    if cls is T5EncoderModel:
        return stream_text_encoder(weights.parent, dtype=case.dtype, **options)
    return stream_clip_text(weights, dtype=case.dtype, **options)


def steps(case: Case) -> Callable[[torch.nn.Module, int], torch.Tensor]:
    """Call it with the network and a step's number; it returns the step's output.

    Inputs depend on nothing but the configuration: outputs of all ways can be compared bit by bit.
    """
    config = read_config(case.weights / "config.json")
    if network_class(case) is UNet2DConditionModel:
        return _unet_steps(config, DTYPES[case.dtype], case.device)
    return _encoder_steps(config, case.device)


def _unet_steps(
    config: dict[str, Any], dtype: torch.dtype, device: str
) -> Callable[[torch.nn.Module, int], torch.Tensor]:
    """A guided step: the pair with and without the prompt in one batch, as the pipelines do it."""
    chance = torch.Generator().manual_seed(0)
    latent = config["in_channels"] == 7
    side = config["sample_size"] * (PIXELS_OF_LATENT_SAMPLE if latent else 1)
    width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    picture = torch.randn(2, config["in_channels"], side, side, generator=chance)
    words = torch.randn(2, TOKENS, width, generator=chance)
    labelled = bool(config.get("class_embed_type") or config.get("num_class_embeds"))
    level = torch.tensor([100, 100], device=device) if labelled else None
    inputs = [tensor.to(device, dtype) for tensor in (picture, words)]
    time = torch.tensor(500, device=device)

    def step(unet: torch.nn.Module, _number: int) -> torch.Tensor:
        noise: torch.Tensor = unet(
            inputs[0], time, inputs[1], class_labels=level, return_dict=False
        )[0]
        return noise

    return step


def _encoder_steps(
    config: dict[str, Any], device: str
) -> Callable[[torch.nn.Module, int], torch.Tensor]:
    """One prompt as long as IF reads them."""
    chance = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, config["vocab_size"], (16, TOKENS), generator=chance).to(device)

    def step(encoder: torch.nn.Module, number: int) -> torch.Tensor:
        ids = prompts[number % len(prompts)][None]
        states: torch.Tensor = encoder(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
        return states

    return step
