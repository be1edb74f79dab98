"""The x4 upscaler's VAE decodes 1024 pixels in float32: peaks and seconds, with a T4's kernels, too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL

from bench.gpu.ballast import Ballast, holding
from bench.gpu.rows import SECONDS, Row, figure, first_line, row
from bench.gpu.setup import Setup, real_cascade
from lowmem_if.cascade.catalog import UPSCALER
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.parts import Module
from lowmem_if.cascade.strategies import RESIDENT
from lowmem_if.planning.estimates.activations import activation_bytes
from lowmem_if.planning.estimates.execution import STRIPS, ExecutionConfig
from lowmem_if.planning.estimates.memory_table import PassProfile, look_up
from lowmem_if.stages.decoding.strip_decoder import decode_in_strips
from lowmem_if.weights.loading import load_diffusers_model
from lowmem_if.weights.memory_readings import release_memory

SIDE, QUICK_SIDE = 256, 16
"""Of the latents: four pixels each way of the picture are one of theirs."""


def rows(setup: Setup) -> Iterator[Row]:
    """One row per set of kernels and way of decoding."""
    cascade = real_cascade(setup)
    vae = load_diffusers_model(
        cascade / "upscaler" / "vae", AutoencoderKL, dtype="float32", device=setup.device
    )
    parts = locate(str(cascade), components=(UPSCALER,)).cascade.parts
    module = next(each for each in parts[UPSCALER].modules if each.folder == "vae")
    with holding(setup.device) as card:
        for kernels in ("this card's kernels", "a T4's kernels"):
            for strips in (False, True):
                name = f"{kernels}{', in strips' if strips else ''}"
                try:
                    with _kernels(as_on_t4="T4" in kernels):
                        yield _decoded(setup, vae, module, name, strips, card)
                except RuntimeError as error:
                    yield row(name, ok=False, text=first_line(error))


@contextmanager
def _kernels(*, as_on_t4: bool) -> Iterator[None]:
    """Only kernels that compute capability 7.5 has: no flash attention, no TF32."""
    if not as_on_t4:
        yield
        return
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    before = (
        cuda.flash_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cudnn.allow_tf32,
        cuda.matmul.allow_tf32,
    )
    try:
        _switch(False, False, False, False)
        yield
    finally:
        _switch(*before)


def _switch(flash: bool, cudnn_attention: bool, conv_tf32: bool, matmul_tf32: bool) -> None:
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)
    torch.backends.cudnn.allow_tf32 = conv_tf32
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32


@torch.no_grad()
def _decoded(setup: Setup, vae: Any, module: Module, name: str, strips: bool, card: Ballast) -> Row:
    """The second of two decodings: the first one pays for what is done once."""
    device = setup.device
    vae.decoder.__dict__.pop("forward", None)  # of the row before
    if strips:
        decode_in_strips(vae)
    release_memory(device)
    before = card.used_bytes()
    if setup.on_card:
        torch.accelerator.reset_peak_memory_stats(device)
    side = QUICK_SIDE if setup.quick else SIDE
    latents = torch.zeros(1, 4, side, side, device=device)
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        vae.decode(latents, return_dict=False)[0].cpu()
        seconds.append(time.perf_counter() - begun)
    known = look_up(module, item_bytes=4)
    if known and strips:
        config = ExecutionConfig(UPSCALER, RESIDENT, "float32", "float32", 1, device)
        predicted = activation_bytes(module, replace(config, decoding=STRIPS))
        known = known.model_copy(update={"activation_bytes": predicted})
    figures = [
        figure("first", seconds[0], unit=SECONDS),
        figure("second", seconds[1], unit=SECONDS),
    ]
    if setup.on_card:
        figures += _peaks(device, known, module.weights.parameters * 4, card.used_bytes() - before)
    pace = {"decoding_flops_per_s": {name: known.flops / seconds[1]}} if known else {}
    return row(name, *figures, constants=pace)


def _peaks(device: str, known: PassProfile | None, weight_bytes: int, grown: int) -> list[Row]:
    predicted = weight_bytes + known.activations(1) if known else None
    allocated = torch.accelerator.max_memory_allocated(device)
    reserved = torch.accelerator.max_memory_reserved(device)
    return [
        figure("VRAM, allocated", allocated, predicted),
        figure("VRAM, reserved", reserved, predicted),
        figure("driver, grown by", grown),
    ]
