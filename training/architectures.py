"""The demo's networks: the real cascade's classes, only narrower. Nothing here is trained or loaded."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

TEXT_WIDTH = 128
CLIP_WIDTH = 64
CLIP_VOCABULARY = 514
LATENT_SCALE = 0.08333  # StableDiffusionUpscalePipeline forces this one
ROOT_TWO = 1.41421
NEIGHBOUR_BIAS = 4.0
SIDE_BIAS = 2.0

IF_BLOCKS = {
    "out_channels": 6,
    "layers_per_block": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "cross_attention_dim": TEXT_WIDTH,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": TEXT_WIDTH,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "resnet_time_scale_shift": "scale_shift",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": ROOT_TWO,
    "mid_block_scale_factor": ROOT_TWO,
    "act_fn": "gelu",
    "down_block_types": ["ResnetDownsampleBlock2D"] * 3 + ["SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] + ["ResnetUpsampleBlock2D"] * 3,
}


def text_encoder(vocabulary: int) -> T5EncoderModel:
    """A T5 v1.1 encoder of three layers, 0.5 million parameters.

    Its heads start out looking at the word before, the word after, everything before and everything
    after: from T5's own start it took thousands of steps to bind a colour to its noun.
    """
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    attention = encoder.encoder.block[0].layer[0].SelfAttention
    bias = attention.relative_attention_bias.weight
    after = attention.relative_attention_num_buckets // 2
    with torch.no_grad():
        bias[1, 0] += NEIGHBOUR_BIAS
        bias[after + 1, 1] += NEIGHBOUR_BIAS
        bias[1:after, 2] += SIDE_BIAS
        bias[after:, 3] += SIDE_BIAS
    return encoder


def stage_1_unet() -> UNet2DConditionModel:
    """Text to 64 px, with attention at 8 x 8 as the real one has it at its lowest levels."""
    unet = UNet2DConditionModel(
        **IF_BLOCKS,
        norm_num_groups=8,
        sample_size=64,
        in_channels=3,
        block_out_channels=[16, 32, 64, 112],
        attention_head_dim=28,
        time_embedding_dim=256,
    )
    return _silence(unet)


def stage_2_unet() -> UNet2DConditionModel:
    """64 px to 256 px: the noisy picture beside the blown-up one, told how noisy the latter is."""
    unet = UNet2DConditionModel(
        **IF_BLOCKS,
        norm_num_groups=2,
        sample_size=256,
        in_channels=6,
        block_out_channels=[16, 24, 48, 64],
        attention_head_dim=32,
        time_embedding_dim=128,
        class_embed_type="timestep",
        only_cross_attention=True,
        mid_block_only_cross_attention=True,
    )
    return _silence(unet)


def upscaler_vae() -> AutoencoderKL:
    """Pictures to latents four times smaller.

    No attention, which would span 65,536 places; and group norms of one group, for with more of them
    a flat ground's colour is normalised away and comes back wrong.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[16, 32, 48],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=256,
        scaling_factor=LATENT_SCALE,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def upscaler_unet() -> UNet2DConditionModel:
    """256 px to the latents of 1024 px: noisy latents beside the small picture, which is noised too."""
    unet = UNet2DConditionModel(
        sample_size=256,
        in_channels=7,
        out_channels=4,
        down_block_types=["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        block_out_channels=[24, 32, 64],
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=CLIP_WIDTH,
        norm_num_groups=2,
        num_class_embeds=1000,
        use_linear_projection=True,
        only_cross_attention=True,
    )
    return _silence(unet)


def upscaler_text_encoder() -> CLIPTextModel:
    """A one-layer CLIP text model, left at its random start: the upscaler needs no words here."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=CLIP_VOCABULARY,
                hidden_size=CLIP_WIDTH,
                intermediate_size=128,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=77,
                hidden_act="gelu",
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )


def picture_scheduler(largest: float = 1.5) -> DDPMScheduler:
    """The schedule of stage 1, and of stage 2 with `largest` 1.0, as in the IF repositories."""
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="epsilon",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=largest,
        clip_sample=True,
    )


def image_noising_scheduler() -> DDPMScheduler:
    """The schedule by which stage 2 noises its small picture."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def latent_scheduler() -> DDIMScheduler:
    """The upscaler's schedule, which predicts v as the real one does."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def low_res_scheduler() -> DDPMScheduler:
    """The schedule by which the upscaler noises its small picture."""
    return DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="scaled_linear")


def _silence(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Zero every residual branch's last convolution and the output's: a calm start of training."""
    for name, module in unet.named_modules():
        if name.endswith("conv2") or name == "conv_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet
