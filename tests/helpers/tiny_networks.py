"""The networks of the tiny cascade: how each is called, without weights, and loaded whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, T5EncoderModel

from lowmem_if.weights.loading import load_clip_text, load_diffusers_model, load_text_encoder
from lowmem_if.weights.modules.meta_init import diffusers_skeleton, transformers_skeleton


def unet(side: int, channels: int, **extra: Any) -> Callable[[Any, int], torch.Tensor]:
    """Calls a UNet, differently at every pass."""

    def call(module: Any, number: int) -> torch.Tensor:
        chance = torch.Generator().manual_seed(number)
        picture = torch.randn(2, channels, side, side, generator=chance).to(module.dtype)
        width = module.config.encoder_hid_dim or module.config.cross_attention_dim
        words = torch.randn(2, 77, width, generator=chance).to(module.dtype)
        return module(picture, torch.tensor(10 * number), words, **extra).sample

    return call


def autoencoder(module: Any, number: int) -> torch.Tensor:
    """Decodes, and encodes again: two ways in, neither of them `forward`."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(number))
    picture = module.decode(latents.to(module.dtype)).sample
    return module.encode(picture).latent_dist.mean


def encoder(module: Any, number: int) -> torch.Tensor:
    return module(torch.arange(3 + number, 40)[None])[0]


LEVELS = torch.tensor([20, 20])
COMPONENTS = {
    "stage_1/unet": (UNet2DConditionModel, unet(32, 3)),
    "stage_2/unet": (UNet2DConditionModel, unet(64, 6, class_labels=LEVELS)),
    "upscaler/unet": (UNet2DConditionModel, unet(32, 7, class_labels=LEVELS)),
    "upscaler/vae": (AutoencoderKL, autoencoder),
    "stage_1/text_encoder": (T5EncoderModel, encoder),
    "upscaler/text_encoder": (CLIPTextModel, encoder),
}


def skeleton(folder: Path) -> Any:
    cls = COMPONENTS["/".join(folder.parts[-2:])][0]
    config = json.loads((folder / "config.json").read_text())
    if issubclass(cls, UNet2DConditionModel | AutoencoderKL):
        return diffusers_skeleton(cls, config)
    return transformers_skeleton(cls, cls.config_class(**config))


def resident(folder: Path, dtype: str) -> Any:
    cls = COMPONENTS["/".join(folder.parts[-2:])][0]
    if cls is T5EncoderModel:
        return load_text_encoder(folder.parent, storage=dtype, compute=dtype, device="cpu")
    if cls is CLIPTextModel:
        return load_clip_text(folder, dtype=dtype, device="cpu")
    return load_diffusers_model(folder, cls, dtype=dtype, device="cpu")


def assert_same(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Names, types, shapes and bits of every parameter and buffer; ties and modes too."""
    for kind in ("named_parameters", "named_buffers"):
        left = dict(getattr(ours, kind)(remove_duplicate=False))
        right = dict(getattr(theirs, kind)(remove_duplicate=False))
        assert left.keys() == right.keys()
        for name, tensor in right.items():
            assert left[name].dtype == tensor.dtype, name
            assert torch.equal(left[name], tensor), name
            assert left[name].requires_grad == tensor.requires_grad, name
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))
    assert type(ours) is type(theirs)
    assert not any(module.training for module in ours.modules())
