"""A VAE that decodes in strips: layer by layer over the whole picture, each layer strip by strip.

diffusers' decoder holds up to three activations of a picture's full size at once, this one holds one,
or two where a block keeps the number of channels. Norms take the mean and variance of the whole picture,
convolutions a strip with a row of its neighbours on either side, attention the keys and values of all
pixels: there are no seams, and the result differs from diffusers' by rounding only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from lowmem_if.cascade.transfer_sizes import strip_rows
from lowmem_if.errors import CheckpointError
from lowmem_if.stages.decoding.row_strips import RowStrips
from lowmem_if.stages.decoding.strip_layers import Hold, Layers


def decode_in_strips(vae: Any, *, in_ram: bool = False, hold: Hold | None = None) -> None:
    """From now on, let a VAE decode in strips.

    Args:
        in_ram: whether activations are kept in RAM, and only strips are on the device that computes.
        hold: puts a layer's weights in place, where they are not in memory all the time; None: as
            accelerate's hooks do, if there are any.

    Raises:
        CheckpointError: the decoder has layers other than those of Stable Diffusion's.
    """
    decoder = vae.decoder
    _check(decoder)
    whole, hold = decoder.forward, hold or hooked

    def forward(sample: torch.Tensor, latent_embeds: torch.Tensor | None = None) -> torch.Tensor:
        if torch.is_grad_enabled() and sample.requires_grad:
            result: torch.Tensor = whole(sample, latent_embeds)  # a gradient needs all activations
            return result
        with torch.no_grad():
            home = torch.device("cpu") if in_ram else sample.device
            layers = Layers(hold, sample.device, sample.dtype)
            pictures = [_decode(decoder, layers, one, home) for one in sample.split(1)]
        return pictures[0] if len(pictures) == 1 else torch.cat(pictures)

    decoder.forward = forward


@contextmanager
def hooked(layer: torch.nn.Module) -> Iterator[None]:
    """Let accelerate's hook, if there is one, load a layer's weights, and unload them afterwards.

    The hook works at a layer's forward. Strips are many forwards, and would move the weights as often.
    """
    hook = getattr(layer, "_hf_hook", None)
    if hook is None:
        yield
        return
    hook.pre_forward(layer)
    try:
        yield
    finally:
        hook.post_forward(layer, None)


def _decode(
    decoder: Any,
    layers: Layers,
    latents: torch.Tensor,
    home: torch.device,
) -> torch.Tensor:
    """One picture (1, colours, height, width) from latents (1, channels, height, width)."""
    channels = [decoder.conv_in.out_channels, *map(_channels, decoder.up_blocks[:-1])]
    rows = strip_rows(channels, *latents.shape[2:])
    strips = RowStrips(home)
    for strip in latents.split(rows, dim=2):
        strips.add(strip.contiguous())
    strips = layers.convolve(decoder.conv_in, strips)
    middle = decoder.mid_block
    strips = layers.residual(middle.resnets[0], strips)
    for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            strips = layers.attend(attention, strips)
        strips = layers.residual(block, strips)
    for up_block in decoder.up_blocks:
        for block in up_block.resnets:
            strips = layers.residual(block, strips)
        for upsampler in up_block.upsamplers or ():
            strips = layers.enlarge(upsampler.conv, strips)
    return layers.finish(decoder.conv_norm_out, decoder.conv_out, strips)


def _channels(up_block: Any) -> int:
    count: int = up_block.resnets[0].out_channels
    return count


def _check(decoder: Any) -> None:
    """Refuse a decoder whose layers this module does not know."""
    middle = decoder.mid_block
    blocks = [*middle.resnets, *(block for up in decoder.up_blocks for block in up.resnets)]
    larger = [one for up in decoder.up_blocks for one in up.upsamplers or ()]
    attentions = [one for one in middle.attentions if one is not None]
    known = (
        all(map(_is_plain, blocks))
        and all(isinstance(one, Upsample2D) and _repeats(one) for one in larger)
        and all(isinstance(one, Attention) and _is_self_attention(one) for one in attentions)
        and not any(getattr(up, "attentions", ()) for up in decoder.up_blocks)
        and isinstance(decoder.conv_norm_out, torch.nn.GroupNorm)
    )
    if not known:
        raise CheckpointError(
            "this VAE's decoder has layers that cannot be computed in strips: use --prefer exact"
        )


def _is_plain(block: Any) -> bool:
    return (
        isinstance(block, ResnetBlock2D)
        and block.time_emb_proj is None
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
    )


def _repeats(upsampler: Any) -> bool:
    return bool(upsampler.use_conv and upsampler.interpolate and upsampler.norm is None)


def _is_self_attention(attention: Any) -> bool:
    return (
        attention.group_norm is not None
        and attention.residual_connection
        and attention.rescale_output_factor == 1
        and not attention.is_cross_attention
        and attention.norm_q is None
    )
