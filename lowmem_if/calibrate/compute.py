"""Measure how fast networks compute and copies travel: each component's kind of network, shortened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lowmem_if.calibrate.clock import SHARE_S, Clock, seconds_of
from lowmem_if.cascade import catalog
from lowmem_if.weights.loading import DTYPES
from lowmem_if.weights.synthetic.architectures import networks

_LAUNCHES = 1500
"""About how many kernels one pass of IF's UNets launches."""

VAE = "vae"


def bus_speeds(device: str, clock: Clock) -> tuple[float, float]:
    """Bytes a second to an accelerator from (pinned, pageable) memory; equal if none can be pinned."""
    size = 64 * 2**20
    target = torch.empty(size, dtype=torch.uint8, device=device)
    plain = torch.ones(size, dtype=torch.uint8)
    pageable = size / seconds_of(lambda: target.copy_(plain), device, clock)
    try:
        pinned = plain.pin_memory()
    except RuntimeError:
        return pageable, pageable
    return size / seconds_of(
        lambda: target.copy_(pinned, non_blocking=True), device, clock
    ), pageable


def launch_seconds(device: str, clock: Clock) -> float:
    """Seconds of a pass whose kernels take no time: only launching them counts."""
    numbers = torch.ones(1, 8, device=device)
    layers = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(100)]).to(device)
    return seconds_of(lambda: layers(numbers), device, clock) / 100 * _LAUNCHES


def flops_per_second(component: str, device: str, dtype: str, clock: Clock) -> float:
    """Operations a second of a component's kind of network, with fewer layers than it has."""
    forward, inputs = _network(component, device, DTYPES[dtype])
    with FlopCounterMode(display=False) as counter:  # this is the warm-up, too
        forward(**inputs)
    flops = float(counter.get_total_flops())
    return flops / seconds_of(lambda: forward(**inputs), device, clock, SHARE_S)


def _network(
    component: str, device: str, dtype: torch.dtype
) -> tuple[Callable[..., object], dict[str, torch.Tensor]]:
    """A shortened network with meaningless weights, and inputs for one of its steps without guidance."""
    part = catalog.UPSCALER if component == VAE else component
    which = next(n for n in networks("if-m")[part] if n.folder.endswith(_FOLDERS[component]))
    network = replace(which, config=which.config | SHORTENED.get(component, {})).skeleton()
    module = network.to_empty(device=device).to(dtype).eval()
    for numbers in (*module.parameters(), *module.buffers()):
        numbers.fill_(1)
    if component == catalog.TEXT_ENCODER:
        ids = torch.ones(1, catalog.MAX_TOKENS, dtype=torch.long, device=device)
        return module, {"input_ids": ids}
    if component == VAE:
        latents = torch.ones(1, 4, _VAE_SIDE, _VAE_SIDE, device=device, dtype=dtype)
        return module.decode, {"z": latents}
    return module, _unet_inputs(which.config, _SIDES[component], device, dtype)


def _unet_inputs(
    config: dict[str, Any], side: int, device: str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    of = {"device": device, "dtype": dtype}
    inputs = {
        "sample": torch.ones(1, config["in_channels"], side, side, **of),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.ones(1, catalog.MAX_TOKENS, width, **of),
    }
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        inputs["class_labels"] = torch.tensor([100], device=device)
    return inputs


_FOLDERS = {
    catalog.TEXT_ENCODER: "text_encoder",
    catalog.STAGE_1: "unet",
    catalog.STAGE_2: "unet",
    catalog.UPSCALER: "unet",
    VAE: "vae",
}
SHORTENED: dict[str, dict[str, Any]] = {
    catalog.TEXT_ENCODER: {"num_layers": 2, "vocab_size": 64},
    catalog.STAGE_1: {"layers_per_block": 1},
    catalog.STAGE_2: {"layers_per_block": 1},
    catalog.UPSCALER: {"layers_per_block": 1},
}
"""What is changed in a network's configuration, so that it is measured within seconds."""
_SIDES = {catalog.STAGE_1: 64, catalog.STAGE_2: 128, catalog.UPSCALER: 64}
_VAE_SIDE = 16
"""Pixels or latents on a side: half or a sixteenth of the real ones, which is slow enough already."""
