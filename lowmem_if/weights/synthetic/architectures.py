"""The published cascades' networks as configurations: everything about them but their weights.

Read from the repositories' config.json files or copies of them; I-L and II-M were inferred from the
others (the sizes of their published files agree). `tests/weights/synthetic/test_checkpoints.py` compares
their parameter counts with the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.deepfloyd_if import IFSafetyChecker, IFWatermarker

from lowmem_if.cascade import catalog


@dataclass(frozen=True, slots=True)
class Network:
    """One network: its folder in a local cascade (`stage_1/unet`), its class and configuration."""

    folder: str
    cls: type[torch.nn.Module]
    config: dict[str, Any]

    def skeleton(self) -> torch.nn.Module:
        """The network on torch's meta device: names and shapes, no memory."""
        with torch.device("meta"):
            if issubclass(self.cls, diffusers.ModelMixin):
                network: torch.nn.Module = self.cls.from_config(dict(self.config))
                return network
            return self.cls(self.cls.config_class(**self.config))


def networks(cascade: str) -> dict[str, tuple[Network, ...]]:
    """The networks of each component of a published cascade.

    Raises:
        KeyError: no such cascade.
    """
    first, second = catalog.STAGE_PAIRS[cascade]
    unet = diffusers.UNet2DConditionModel
    return {
        catalog.TEXT_ENCODER: (
            Network("stage_1/text_encoder", transformers.T5EncoderModel, _T5_XXL),
        ),
        catalog.STAGE_1: (Network("stage_1/unet", unet, _if_unet(first)),),
        catalog.STAGE_2: (Network("stage_2/unet", unet, _if_unet(second)),),
        catalog.UPSCALER: (
            Network("upscaler/unet", unet, _X4_UNET),
            Network("upscaler/text_encoder", transformers.CLIPTextModel, _X4_TEXT),
            Network("upscaler/vae", diffusers.AutoencoderKL, _X4_VAE),
        ),
        catalog.POSTPROCESS: (
            Network("stage_1/safety_checker", IFSafetyChecker, _SAFETY),
            Network("stage_1/watermarker", IFWatermarker, {}),
        ),
    }


@dataclass(frozen=True, slots=True)
class _Unet:
    """What differs between IF's UNets."""

    channels: tuple[int, ...]
    layers: tuple[int, ...]
    attention_width: int
    attending_blocks: int = 3


_STAGE_1 = {
    "I-XL": _Unet((704, 1408, 2112, 2816), (3, 3, 3, 3), 2816),
    "I-L": _Unet((320, 640, 960, 1280), (3, 3, 3, 3), 1280),
    "I-M": _Unet((192, 384, 576, 768), (3, 3, 3, 3), 768),
}
_STAGE_2 = {
    "II-L": _Unet((160, 320, 640, 960, 1280), (2, 2, 3, 5, 5), 1280, attending_blocks=2),
    "II-M": _Unet((128, 256, 512, 768, 768), (2, 2, 3, 3, 3), 768, attending_blocks=2),
}
_ROOT_TWO = 1.4142271248762552
"""The number in the published configurations."""


def _if_unet(name: str) -> dict[str, Any]:
    shape = (_STAGE_1 | _STAGE_2)[name]
    attending, plain = shape.attending_blocks, len(shape.channels) - shape.attending_blocks
    config = {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": list(shape.channels),
        "layers_per_block": list(shape.layers),
        "down_block_types": ["ResnetDownsampleBlock2D"] * plain
        + ["SimpleCrossAttnDownBlock2D"] * attending,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * attending
        + ["ResnetUpsampleBlock2D"] * plain,
        "act_fn": "gelu",
        "attention_head_dim": 64,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 64,
        "cross_attention_dim": shape.attention_width,
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
        "resnet_time_scale_shift": "scale_shift",
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
    }
    if name in _STAGE_1:
        return config
    return config | {
        "sample_size": 256,
        "in_channels": 6,
        "class_embed_type": "timestep",
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": _ROOT_TWO,
        "mid_block_scale_factor": _ROOT_TWO,
        "time_embedding_dim": shape.attention_width,
        "time_embedding_act_fn": "gelu",
    }


_T5_XXL = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
    "pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip

_X4_UNET = {
    "sample_size": 128, "in_channels": 7, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": [256, 512, 512, 1024], "attention_head_dim": 8, "cross_attention_dim": 1024,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
    "num_class_embeds": 1000, "only_cross_attention": [True, True, True, False],
    "use_linear_projection": True,
}  # fmt: skip

_X4_VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
    "block_out_channels": [128, 256, 512], "norm_num_groups": 32, "sample_size": 256,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
    "scaling_factor": 0.08333,
}  # fmt: skip

_X4_TEXT = {
    "vocab_size": 49408, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
    "num_attention_heads": 16, "max_position_embeddings": 77, "hidden_act": "gelu",
    "projection_dim": 512, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip

_SAFETY = {
    "projection_dim": 768,
    "vision_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "projection_dim": 768,
    },
}  # fmt: skip
